"""Our training step under Horovod on 1 rank, against a plain TensorFlow loop on the same network and batch.

  mpirun -np 1 python tools/bench_step.py BACKBONE PATCH BATCH

Both run in this process, one step each in turns, so that what else the machine does hits both alike; the ratio is
that of the median step times. Horovod's background thread is alive (asleep but for a poll each millisecond) during the
plain steps too. Prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np

from trainer.config.schema import LossConfig, ModelConfig, OptimizerConfig, TrainingConfig
from trainer.models import build_model, segmentation_loss
from trainer.models.keras import keras, tf
from trainer.runtime.comm_horovod import HorovodComm
from trainer.runtime.start import my_threads
from trainer.train.step import make_optimizer, make_train_step

ROUNDS = 40


def plain_step(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> Callable:
    """What a reader of the TensorFlow tutorial would write."""

    @tf.function
    def step(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss, _ = segmentation_loss(model(images, training=True), labels, LossConfig())
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return step


def seconds_of(step: Callable, images: np.ndarray, labels: np.ndarray) -> float:
    start = time.perf_counter()
    step(images, labels)
    return time.perf_counter() - start


def main() -> None:
    backbone, patch, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    threads = my_threads()
    comm = HorovodComm()
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    model = build_model(ModelConfig(backbone=backbone), 2)
    plain = plain_step(model, make_optimizer(OptimizerConfig(), "float32"))
    ours = make_train_step(
        model, make_optimizer(OptimizerConfig(), "float32"), TrainingConfig(compression="fp16"), comm
    )
    steps = {
        "plain": lambda images, labels: float(plain(tf.constant(images), tf.constant(labels))),
        "ours": lambda images, labels: ours(1)(images, labels, 0, False),
    }
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, patch, patch, 3), np.uint8)
    labels = rng.integers(0, 2, (batch, patch, patch), np.uint8)
    for step in [*steps.values()] * 2:  # trace, then settle
        seconds_of(step, images, labels)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(ROUNDS):
        for name in sorted(steps, reverse=bool(round_number % 2)):
            times[name].append(seconds_of(steps[name], images, labels))
    ratios = np.array(times["plain"]) / np.array(times["ours"])
    print(
        json.dumps(
            {
                "backbone": backbone,
                "patch_size": patch,
                "batch": batch,
                "threads": threads,
                "plain_step_s": float(np.median(times["plain"])),
                "our_step_s": float(np.median(times["ours"])),
                "ratio": float(np.median(times["plain"]) / np.median(times["ours"])),
                "ratio_spread": [float(np.quantile(ratios, 0.25)), float(np.quantile(ratios, 0.75))],
                "rounds": ROUNDS,
            }
        )
    )


if __name__ == "__main__":
    main()
