"""Peak memory and step time of one training setting, in a process of its own.

  python tools/bench_memory_step.py PATCH BATCH PRECISION RECOMPUTE [BACKBONE] [STEPS]

PRECISION is float32, mixed_bfloat16 or mixed_float16; RECOMPUTE is none or blocks. A step is forward, backward and
Adam on one random batch. The first step traces and warms up; the median is over the others. Peak memory is the
process's largest resident set (VmHWM), decimal gigabytes; the baseline is that with TensorFlow imported and no model.
Prints one line of JSON.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from trainer.config.schema import LossConfig, ModelConfig
from trainer.models import build_model, segmentation_loss
from trainer.models.keras import keras, tf
from trainer.runtime.start import my_threads

NUM_CLASSES = 2


def main() -> None:
    patch_size, batch, precision, recompute = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    backbone = sys.argv[5] if len(sys.argv) > 5 else "resnet50"
    num_steps = int(sys.argv[6]) if len(sys.argv) > 6 else 4
    threads = my_threads()
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(1)
    keras.mixed_precision.set_global_policy(precision)
    baseline_gb = peak_memory_gb()

    step = train_step(build_model(ModelConfig(backbone=backbone), NUM_CLASSES), precision, recompute)
    rng = np.random.default_rng(0)
    images = tf.constant(rng.integers(0, 256, (batch, patch_size, patch_size, 3), np.uint8))
    labels = tf.constant(rng.integers(0, NUM_CLASSES, (batch, patch_size, patch_size), np.uint8))
    seconds = [seconds_of(step, images, labels) for _ in range(num_steps)]
    print(
        json.dumps(
            {
                "patch_size": patch_size,
                "batch": batch,
                "precision": precision,
                "recompute": recompute,
                "backbone": backbone,
                "threads": threads,
                "median_step_s": round(float(np.median(seconds[1:] or seconds)), 4),
                "peak_memory_gb": round(peak_memory_gb(), 3),
                "baseline_gb": round(baseline_gb, 3),
            }
        )
    )


def train_step(model: keras.Model, precision: str, recompute: str) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    forward = forward_pass(model, recompute)
    optimizer = keras.optimizers.Adam(jit_compile=False)
    scaled = precision == "mixed_float16"
    if scaled:
        optimizer = keras.mixed_precision.LossScaleOptimizer(optimizer)
    weights = model.trainable_variables
    optimizer.build(weights)

    @tf.function
    def step(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss, _ = segmentation_loss(forward(images), labels, LossConfig())
            target = optimizer.get_scaled_loss(loss) if scaled else loss
        gradients = tape.gradient(target, weights)
        if scaled:
            gradients = optimizer.get_unscaled_gradients(gradients)
        optimizer.apply_gradients(zip(gradients, weights, strict=True))
        return loss

    return step


def forward_pass(model: keras.Model, recompute: str) -> Callable[[tf.Tensor], tf.Tensor]:
    if recompute == "none":
        return lambda images: model(images, training=True)
    from trainer.models.recompute import recomputing

    return recomputing(model)


def seconds_of(step: Callable, images: tf.Tensor, labels: tf.Tensor) -> float:
    start = time.perf_counter()
    float(step(images, labels))
    return time.perf_counter() - start


def peak_memory_gb() -> float:
    kib = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert kib is not None
    return int(kib[1]) * 1024 / 1e9


if __name__ == "__main__":
    main()
