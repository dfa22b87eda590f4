"""Read batches ahead in threads while the network computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from trainer.batches.augment import Patch, Rows, augment
from trainer.config.schema import AugmentConfig
from trainer.stores import Part, PatchStore

Batch = tuple[np.ndarray, np.ndarray]
"""Images [B, P, P, 3] uint8 and labels [B, P, P] uint8, or some rows of them."""
Result = TypeVar("Result")


def prefetched(
    jobs_of_batches: Iterable[Sequence[Callable[[], Patch]]], threads: int, prefetch_batches: int
) -> Generator[Batch]:
    """Read each batch's patches in a pool of threads, see `read_ahead`."""
    for patches in read_ahead(jobs_of_batches, threads, prefetch_batches):
        images, labels = zip(*patches, strict=True)
        yield np.stack(images), np.stack(labels)


def read_ahead(
    jobs_of_batches: Iterable[Sequence[Callable[[], Result]]], threads: int, prefetch_batches: int
) -> Generator[list[Result]]:
    """Run each batch's jobs in a pool, at most `prefetch_batches` batches ahead; batches come out in order.

    A job's exception is raised where its batch would have come.
    """
    waiting: deque[list[Future[Result]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="read") as pool:
        try:
            for jobs in jobs_of_batches:
                waiting.append([pool.submit(job) for job in jobs])
                if len(waiting) > prefetch_batches:
                    yield [f.result() for f in waiting.popleft()]
            while waiting:
                yield [f.result() for f in waiting.popleft()]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class Wanted:
    """What one rank trains on at one step."""

    places: Sequence[tuple[int, int]]
    """(epoch, index row) of each patch."""
    patch_size: int
    rows: Rows
    """Rows of each patch: all, unless ranks share it."""


def training_jobs(
    store: PatchStore, steps: Iterable[Wanted], config: AugmentConfig, seed: int
) -> Iterator[list[Callable[[], Patch]]]:
    """What one rank trains on at each step as jobs for `prefetched`."""
    for wanted in steps:
        yield [partial(_training_patch, store, wanted, place, config, seed) for place in wanted.places]


def _training_patch(
    store: PatchStore, wanted: Wanted, place: tuple[int, int], config: AugmentConfig, seed: int
) -> Patch:
    epoch, row = place

    def read(part: Part) -> Patch:
        images, labels = store.read(np.array([row]), part)
        return images[0], labels[0]

    return augment(read, wanted.patch_size, wanted.rows, config, np.random.default_rng([seed, epoch, row]))
