"""Step times of two ways to train the same network on the same batch, one step each in turns.

  mpirun -np 1 python tools/bench_step.py ours plain BACKBONE PATCH BATCH [PAIRS]

What else the machine does hits both alike; the ratio is the median over the pairs. All run TensorFlow's deterministic
operations, as `widefield train` does. Ways:
  ours         our step under Horovod on 1 rank, fp16 on the wire
  plain        what a reader of the TensorFlow tutorial would write
  bfloat16     ours with training.precision=mixed_bfloat16
  keras_norm   ours with Keras' GroupNormalization in place of our group norm
Horovod's background thread is alive (asleep but for a poll each millisecond) all the time. Prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from unittest import mock

import numpy as np

from trainer.config.schema import LossConfig, ModelConfig, OptimizerConfig, TrainingConfig
from trainer.models import build_model, norms, segmentation_loss
from trainer.models.determinism import deterministic_operations
from trainer.models.keras import keras, tf
from trainer.runtime.comm_horovod import HorovodComm
from trainer.runtime.start import my_threads
from trainer.train.step import TrainStep, make_optimizer

Step = Callable[[np.ndarray, np.ndarray], object]


class KerasGroupNorm(keras.layers.Layer):
    """Keras' own layer with the groups that ours takes."""

    def __init__(self, epsilon: float = 1e-3, **kwargs) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, input_shape) -> None:
        self.norm = keras.layers.GroupNormalization(norms.num_groups(int(input_shape[-1])), epsilon=self.epsilon)
        super().build(input_shape)

    def call(self, x):
        return self.norm(x)


def plain_step(model: keras.Model) -> Step:
    optimizer = make_optimizer(OptimizerConfig(), "float32")

    @tf.function
    def step(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss, _ = segmentation_loss(model(images, training=True), labels, LossConfig())
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return lambda images, labels: float(step(tf.constant(images), tf.constant(labels)))


def our_step(model: keras.Model, config: TrainingConfig, comm: HorovodComm) -> Step:
    step = TrainStep(model, make_optimizer(OptimizerConfig(), config.precision), config, comm)
    return lambda images, labels: step(images, labels, 0)


def way(name: str, backbone: str, comm: HorovodComm) -> Step:
    precision = "mixed_bfloat16" if name == "bfloat16" else "float32"
    keras.mixed_precision.set_global_policy(precision)
    with mock.patch.object(norms, "GroupNorm", KerasGroupNorm if name == "keras_norm" else norms.GroupNorm):
        model = build_model(ModelConfig(backbone=backbone), 2)
    if name == "plain":
        return plain_step(model)
    return our_step(model, TrainingConfig(compression="fp16", precision=precision), comm)


def seconds_of(step: Step, images: np.ndarray, labels: np.ndarray) -> float:
    start = time.perf_counter()
    step(images, labels)
    return time.perf_counter() - start


def main(first: str, second: str, backbone: str, patch_size: int, batch: int, num_pairs: int) -> None:
    """Time both ways in turns and print the median ratio."""
    threads = my_threads().intra_op
    comm = HorovodComm()
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    deterministic_operations()
    steps = {name: way(name, backbone, comm) for name in (first, second)}
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, patch_size, patch_size, 3), np.uint8)
    labels = rng.integers(0, 2, (batch, patch_size, patch_size), np.uint8)
    for step in [*steps.values()] * 2:  # trace, then settle
        seconds_of(step, images, labels)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for pair in range(num_pairs):
        for name in sorted(steps, reverse=bool(pair % 2)):
            times[name].append(seconds_of(steps[name], images, labels))
    ratios = np.array(times[second]) / np.array(times[first])
    result = {"first": first, "second": second, "backbone": backbone, "patch_size": patch_size, "batch": batch}
    result |= {"threads": threads, "pairs": num_pairs}
    result |= {f"{name}_step_s": float(np.median(t)) for name, t in times.items()}
    result["speed_of_first_over_second"] = float(np.median(ratios))
    result["quartiles_of_pairs"] = [float(np.quantile(ratios, q)) for q in (0.25, 0.75)]
    print(json.dumps(result))


if __name__ == "__main__":
    a, b, backbone, *numbers = sys.argv[1:]
    main(a, b, backbone, *[int(number) for number in [*numbers, "40"][:3]])
