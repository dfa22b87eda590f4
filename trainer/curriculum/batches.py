"""Batch sizes of every stage: as configured, or as many pixels as the largest patch, as far as memory allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from trainer.config.schema import StageConfig
from trainer.curriculum.plan import Batch
from trainer.errors import ConfigError

Fits = Callable[[int, int, int, int], bool]
"""(patch size, local batch size, passes, ranks that share a patch) -> whether a training step of it fits into a rank's
memory."""


def plan_batches(stages: Sequence[StageConfig], fits: Fits) -> list[dict[int, Batch]]:
    """For each stage, patch size -> its batch.

    `auto` keeps the pixels of a step constant: those of the largest patch of the curriculum. What does not fit at once
    is split over several forward passes whose gradients are averaged, so that memory does not change what is learned.

    Raises:
      ConfigError: a patch that does not fit at batch 1 under `auto`.
    """
    pixels = max(s.largest_size for s in stages) ** 2
    return [
        {size: _batch(stage, number, size, pixels, fits) for size in stage.size_shares}
        for number, stage in enumerate(stages)
    ]


def _batch(stage: StageConfig, number: int, size: int, pixels: int, fits: Fits) -> Batch:
    wanted = wanted_batch(stage.local_batch_size, size, stage.largest_size, pixels)
    if stage.local_batch_size != "auto":
        return Batch(wanted, stage.accumulate)
    for passes in (n for n in range(1, wanted + 1) if wanted % n == 0):  # the step keeps its patches
        local = wanted // passes
        if fits(size, local, stage.accumulate * passes, stage.parallel.spatial):
            return Batch(local, stage.accumulate * passes)
    raise ConfigError(
        f"one patch of {size} px does not fit into the memory of a rank",
        where=f"curriculum[{number}].local_batch_size = 'auto'",
        fix="training.recompute=blocks, training.precision=mixed_bfloat16, parallel.spatial=2 or more, fewer ranks per "
        "node, or, if the memory is there, runtime.memory_gb=... or a number for local_batch_size",
    )


def wanted_batch(local_batch_size: int | Literal["auto"], size: int, largest_of_stage: int, pixels: int) -> int:
    """Patches of one size with as many pixels as the stage's largest size has, or for `auto` as `pixels`."""
    budget = pixels if local_batch_size == "auto" else local_batch_size * largest_of_stage**2
    return max(1, budget // size**2)


def scoring_batches(stages: Sequence[StageConfig]) -> dict[int, int]:
    """Patch size -> patches per forward pass when scoring: a function of the settings alone, so that scores do not
    depend on the machine."""
    pixels = max(s.largest_size for s in stages) ** 2
    return {
        size: wanted_batch(s.local_batch_size, size, s.largest_size, pixels) for s in stages for size in s.size_shares
    }


def scoring_splits(stages: Sequence[StageConfig], world_size: int) -> dict[int, int]:
    """Patch size -> ranks that share a patch of it when scoring: as many as in training, where so many ranks come out
    even."""
    splits: dict[int, int] = {}
    for stage in stages:
        for size in stage.size_shares:
            splits[size] = max(splits.get(size, 1), stage.parallel.spatial)
    return {size: spatial if world_size % spatial == 0 else 1 for size, spatial in splits.items()}
