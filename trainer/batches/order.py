"""The one order of patches that all ranks compute alike, and each rank's slice of it.

A stage reads an endless stream: epoch 0's permutation, then epoch 1's, and so on. Position p of the stream belongs to
rank p mod world_size. So each patch of an epoch is read by exactly one rank, ranks differ by at most one patch, all
take the same number of steps, no batch is ever short, and one number says how far a run has come.
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
      sampling: share of positive patches and patches per epoch.
      seed: numbers that the order depends on, e.g. (seed, stage).
    """

    def __init__(
        self, rows: np.ndarray, is_positive: np.ndarray, sampling: SamplingConfig, seed: tuple[int, ...]
    ) -> None:
        self._positive, self._negative = rows[is_positive], rows[~is_positive]
        self._quota = epoch_quota(len(self._positive), len(self._negative), sampling)
        self._seed = seed
        self.length = sum(self._quota)
        self.epoch = lru_cache(maxsize=4)(self._epoch)

    def _epoch(self, epoch: int) -> np.ndarray:
        """[length] int64 rows of one epoch, without repetition while the pool lasts."""
        rng = np.random.default_rng([*self._seed, epoch])
        chosen = [_draw(p, n, rng) for p, n in zip((self._positive, self._negative), self._quota, strict=True)]
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


def _draw(pool: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of the pool, each as often as any other to within one."""
    if count == 0:
        return pool[:0]
    repeats = -(-count // len(pool))
    return np.concatenate([rng.permutation(pool) for _ in range(repeats)])[:count]


def positions_of_step(step: int, local_batch_size: int, rank: int, world_size: int) -> np.ndarray:
    """[local_batch_size] stream positions that one rank reads at one step of a stage."""
    return step * local_batch_size * world_size + rank + world_size * np.arange(local_batch_size)
