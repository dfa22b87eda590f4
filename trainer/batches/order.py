"""The one order of patches that all ranks compute alike, and each rank's slice of it.

A stage reads an endless stream of each of its patch sizes: epoch 0's permutation, then epoch 1's, and so on. A
step takes the next positions of one stream and deals them out: every world_size-th to each rank. So each patch of an
epoch is read by exactly one rank, all take the same number of steps, no batch is ever short, and one number per size
says how far a run has come, on whatever number of ranks it goes on.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from trainer.config.schema import SamplingConfig


class EpochOrder:
    """Which patch stands at each position of a stage's stream.

    Args:
      rows: [n] int64 row numbers of the training patches.
      is_positive: [n] bool.
      is_hard: [n] bool, which negative patches are hard; None where no list is given.
      sampling: shares of positive and hard patches, and patches per epoch.
      seed: numbers that the order depends on, e.g. (seed, stage).
    """

    def __init__(
        self,
        rows: np.ndarray,
        is_positive: np.ndarray,
        sampling: SamplingConfig,
        seed: tuple[int, ...],
        is_hard: np.ndarray | None = None,
    ) -> None:
        hard = np.zeros_like(is_positive) if is_hard is None else is_hard & ~is_positive
        self._pools = [rows[is_positive], rows[~is_positive & ~hard], rows[hard]]
        num_positive, num_easy, num_hard = (len(p) for p in self._pools)
        positive, negative = epoch_quota(num_positive, num_easy + num_hard, sampling)
        self._quota = (positive, *hard_quota(num_easy, num_hard, negative, sampling.hard_negative_share))
        self._seed = seed
        self.length = sum(self._quota)
        self.epoch = lru_cache(maxsize=2)(self._epoch)  # a batch lies in two at the most

    def _epoch(self, epoch: int) -> np.ndarray:
        """[length] int64 rows of one epoch, without repetition while the pool lasts."""
        rng = np.random.default_rng([*self._seed, epoch])
        chosen = [_draw(p, n, rng) for p, n in zip(self._pools, self._quota, strict=True)]
        return rng.permutation(np.concatenate(chosen))

    def at(self, positions: np.ndarray) -> list[tuple[int, int]]:
        """(epoch, row) of each stream position."""
        places = (divmod(int(p), self.length) for p in positions)
        return [(epoch, int(self.epoch(epoch)[offset])) for epoch, offset in places]


def epoch_quota(num_positive: int, num_negative: int, sampling: SamplingConfig) -> tuple[int, int]:
    """Positive and negative patches in one epoch.

    Without `patches_per_epoch` an epoch is as long as the pools allow at the wanted share without repeating a patch;
    with it, a pool that is too small is repeated. A side that is empty leaves the other one all of the epoch.
    """
    share, wanted = sampling.positive_share, sampling.patches_per_epoch
    total = num_positive + num_negative
    if num_positive == 0 or num_negative == 0:
        share = None
    if share is None:
        share = num_positive / total
        wanted = wanted or total
    elif wanted is None:
        limits = [n / s for n, s in ((num_positive, share), (num_negative, 1 - share)) if s > 0]
        wanted = max(1, int(min(limits)))
    positive = round(wanted * share)
    return positive, wanted - positive


def hard_quota(num_easy: int, num_hard: int, num_negative: int, hard_share: float) -> tuple[int, int]:
    """Easy and hard patches among the negative ones of an epoch; a side that is empty leaves the other one all."""
    if num_easy == 0 or num_hard == 0:
        return (num_negative, 0) if num_hard == 0 else (0, num_negative)
    hard = round(num_negative * hard_share)
    return num_negative - hard, hard


def _draw(pool: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of the pool, each as often as any other to within one."""
    if count == 0:
        return pool[:0]
    repeats = -(-count // len(pool))
    return np.concatenate([rng.permutation(pool) for _ in range(repeats)])[:count]


def positions_of_rank(first: int, count: int, rank: int, world_size: int) -> np.ndarray:
    """[count] stream positions that one rank reads where all ranks together take `count * world_size` from `first`."""
    return first + rank + world_size * np.arange(count, dtype=np.int64)


def rows_of_rank(order: EpochOrder, first: int, count: int, rank: int, world_size: int) -> np.ndarray:
    """[n] int64 rows at a rank's positions (as `positions_of_rank`), ascending, each once."""
    positions = positions_of_rank(first, count, rank, world_size)
    epochs = positions // order.length
    rows = [order.epoch(int(e))[positions[epochs == e] % order.length] for e in np.unique(epochs)]
    return np.unique(np.concatenate(rows)) if rows else np.zeros(0, np.int64)
