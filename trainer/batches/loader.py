"""Read batches ahead in threads while the network computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from trainer.batches.augment import augment
from trainer.config.schema import AugmentConfig

Patch = tuple[np.ndarray, np.ndarray]
"""One image [P, P, 3] uint8 and its labels [P, P] uint8."""
Batch = tuple[np.ndarray, np.ndarray]
"""Images [B, P, P, 3] uint8 and labels [B, P, P] uint8."""


def prefetched(
    jobs_of_batches: Iterable[Sequence[Callable[[], Patch]]], threads: int, prefetch_batches: int
) -> Generator[Batch]:
    """Run each batch's jobs in a pool, at most `prefetch_batches` batches ahead; batches come out in order.

    A job's exception is raised where its batch would have come.
    """
    waiting: deque[list[Future[Patch]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="read") as pool:
        try:
            for jobs in jobs_of_batches:
                waiting.append([pool.submit(job) for job in jobs])
                if len(waiting) > prefetch_batches:
                    yield _collect(waiting.popleft())
            while waiting:
                yield _collect(waiting.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _collect(futures: list[Future[Patch]]) -> Batch:
    images, labels = zip(*(f.result() for f in futures), strict=True)
    return np.stack(images), np.stack(labels)


def training_jobs(
    store_read: Callable[[np.ndarray], Batch],
    places_of_steps: Iterable[list[tuple[int, int]]],
    config: AugmentConfig,
    seed: int,
) -> Iterator[list[Callable[[], Patch]]]:
    """The patches one rank trains on at each step, given as (epoch, row) places, as jobs for `prefetched`."""
    for places in places_of_steps:
        yield [_training_job(store_read, epoch, row, config, seed) for epoch, row in places]


def _training_job(
    store_read: Callable[[np.ndarray], Batch], epoch: int, row: int, config: AugmentConfig, seed: int
) -> Callable[[], Patch]:
    def read() -> Patch:
        images, labels = store_read(np.array([row]))
        return augment(images[0], labels[0], config, np.random.default_rng([seed, epoch, row]))

    return read
