"""What the performance model needs, measured: when gradients become ready, and what an all-reduce takes alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.stats import trim_mean

from trainer.config import Config
from trainer.models.keras import tf
from trainer.runtime import Comm, SingleComm
from trainer.runtime.buckets import fill_buckets
from trainer.runtime.start import my_threads
from trainer.scaling.inputs import Inputs
from trainer.scaling.model import Curve, Profile
from trainer.scaling.records import Point
from trainer.scaling.wish import Wish
from trainer.train.session import build_network
from trainer.train.step import TrainStep, make_optimizer

MEGABYTES = (0.25, 1, 4, 8, 16, 24, 32)
"""Sizes of the curve in float32 MB: those of buckets, whose limit is 32 unless one gradient is larger."""
TENSOR_MB = 1
"""Of what size each is made up, as a bucket is of gradients: Horovod gathers them first."""
CURVE_S = 2.0
"""About how long each size of a curve is measured, at least five times."""
Say = Callable[[str], None]


def measure_inputs(config: Config, comm: Comm, wish: Wish, points: Sequence[Point], say: Say) -> Inputs:
    """Everything the model needs for these points. A collective."""
    batches = sorted({(p.patch_size, p.local_batch_size) for p in points})
    steps = wish.effort.repeats * wish.effort.steps_per_repeat
    profiles = tuple(measure_profile(config, comm, size, batch, steps) for size, batch in batches)
    for profile in profiles:
        ready = ", ".join(f"{t:.3f}" for t in profile.ready_s)
        say(f"  {profile.patch_size} px alone: {profile.step_s:.3f} s, buckets ready after {ready} s")
    curves: dict[str, Curve] = {c: measure_curve(comm, c, say) for c in dict.fromkeys(p.compression for p in points)}
    return Inputs(comm.world_size, my_threads().comm_cpu is not None, profiles, curves)


class _Watch(SingleComm):
    """Pretends to be one of two ranks, exchanges nothing, and notes when each bucket's last gradient was there."""

    world_size = 2

    def __init__(self, bucket_bytes: float) -> None:
        self._limit = bucket_bytes
        self.sizes: list[int] = []
        self.times: list[float] = []

    def allreduce_gradients(self, gradients: Sequence[Any], compression: str, name: str = "gradients") -> list[Any]:
        if name != "gradients":  # moving averages of batch norm
            return list(gradients)
        sizes = [4 * g.shape.num_elements() for g in gradients]
        buckets = fill_buckets(sizes, self._limit)
        self.sizes = [sum(sizes[i] for i in bucket) for bucket in buckets]
        return [gradient for bucket in buckets for gradient in self._noted([gradients[i] for i in bucket])][::-1]

    def _noted(self, gradients: Sequence[Any]) -> list[Any]:
        """The same values, the smallest of them once all are there and that is noted.

        A Python function that has a state would wait for all that were made before it, and one whose result nobody
        needs would be left out.
        """
        smallest = min(range(len(gradients)), key=lambda i: gradients[i].shape.num_elements())
        with tf.control_dependencies(gradients):
            some = tf.reshape(gradients[smallest], [-1])[0]
            now = tf.ensure_shape(tf.numpy_function(self._note, [some], tf.float32, stateful=False), [])
        return [g + now if i == smallest else g for i, g in enumerate(gradients)]

    def _note(self, some: np.ndarray) -> np.ndarray:
        self.times.append(time.perf_counter())
        return np.zeros_like(some)


def measure_profile(config: Config, comm: Comm, patch_size: int, batch: int, num_steps: int) -> Profile:
    """A rank's step without communication, on all ranks at the same time. A collective."""
    watch = _Watch(config.runtime.horovod.bucket_mb * 1e6)
    model = build_network(config, watch, read_weights=False)
    optimizer = make_optimizer(config.training.optimizer, config.training.precision)
    step = TrainStep(model, optimizer, config.training, watch)
    rng = np.random.default_rng(comm.rank)
    images = rng.integers(0, 256, (batch, patch_size, patch_size, 3), np.uint8)
    labels = rng.integers(0, 2, (batch, patch_size, patch_size), np.uint8)
    for number in range(2):
        step(images, labels, number)
    rows = []
    comm.barrier()
    for number in range(num_steps):
        watch.times.clear()
        start = time.perf_counter()
        step(images, labels, number)
        rows.append([*(t - start for t in watch.times), time.perf_counter() - start])
    everyone = np.concatenate(comm.gather(np.array(rows)))  # [ranks x steps, buckets + 1]
    *ready, whole = np.median(everyone, axis=0)
    lower, upper = np.quantile(np.log(everyone[:, -1]), (0.25, 0.75))
    spread = float(upper - lower) / 1.349  # that many standard deviations apart where logarithms are normal
    times, sizes = tuple(map(float, ready)), tuple(map(float, watch.sizes))
    return Profile(patch_size, batch, times, sizes, float(whole), spread)


def measure_curve(comm: Comm, compression: str, say: Say) -> Curve:
    """All-reduce of a bucket of each size while nobody computes. A collective.

    The time is the slowest rank's; of repeats the mean of the middle half: a step has several buckets, whose mean is
    what it feels where an all-reduce takes now this long and now that, and a pause of the machine does not count.
    """
    measured = []
    for megabytes in MEGABYTES:
        number = math.ceil(megabytes / TENSOR_MB)
        bucket = [tf.random.stateless_normal([int(megabytes * 250_000 / number)], [1, 2]) for _ in range(number)]
        name = f"curve_{compression}_{megabytes}"
        reduce = tf.function(lambda tensors, n=name: comm.allreduce_gradients(tensors, compression, n))
        reduce(bucket)
        once = max(comm.gather(_time(comm, reduce, bucket)))
        count = int(np.clip(CURVE_S / once, 5, 40))  # the same on all ranks: they have the same numbers
        times = np.array(comm.gather([_time(comm, reduce, bucket) for _ in range(count)]))  # [ranks, count]
        measured.append(float(trim_mean(times.max(axis=0), 0.25)))
    pairs = zip(MEGABYTES, measured, strict=True)
    say(f"  all-reduce alone, {compression}: " + "  ".join(f"{m:g} MB {t * 1e3:.1f} ms" for m, t in pairs))
    return Curve(tuple(1e6 * m for m in MEGABYTES), tuple(measured))


def _time(comm: Comm, reduce: Callable[[Any], Any], bucket: Sequence[Any]) -> float:
    comm.barrier()
    start = time.perf_counter()
    reduce(bucket)[-1].numpy()
    return time.perf_counter() - start
