"""From the configured stages, the size of each epoch and the number of ranks to steps. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from trainer.config.schema import PlateauConfig, StageConfig


@dataclass(frozen=True)
class Batch:
    """How many patches of one size one rank, or one group that shares them, takes in one optimiser step."""

    local_batch_size: int
    """Patches of one forward pass."""
    accumulate: int = 1
    """Forward passes of one step."""

    @property
    def patches(self) -> int:
        return self.local_batch_size * self.accumulate


@dataclass(frozen=True)
class Position:
    """How far a run has come; all of it is in a checkpoint."""

    step: int = 0
    """Optimiser steps done."""
    samples: Mapping[int, int] = field(default_factory=dict)
    """Patch size -> positions of its stream that all ranks together have used up in this stage."""
    stage_ends: tuple[int, ...] = ()
    """Step at which each finished stage ended."""

    @property
    def stage(self) -> int:
        """Number of the stage it is in."""
        return len(self.stage_ends)


START = Position()
"""Where a run begins."""


@dataclass(frozen=True)
class Stage:
    """One stage, or what is left of it, in steps: global steps `start_step <= step < end_step`.

    A stage that is resumed starts after `start_step - first_step` of its steps; where the number of ranks has changed,
    the streams go on at `start_samples`, so that each patch of an epoch is still seen once.
    """

    number: int
    size_shares: Mapping[int, float]
    batches: Mapping[int, Batch]
    spatial: int
    """Ranks that share each patch."""
    num_groups: int
    """Groups of so many ranks, each with patches of its own; all ranks where patches are not split."""
    learning_rate_factor: float
    plateau: PlateauConfig | None
    first_step: int
    start_step: int
    end_step: int
    start_samples: Mapping[int, int]

    @property
    def num_steps(self) -> int:
        return self.end_step - self.first_step

    @property
    def largest_size(self) -> int:
        return max(self.size_shares)

    @cached_property
    def _sizes(self) -> np.ndarray:
        return size_sequence(self.size_shares, self.num_steps)

    @cached_property
    def _turns(self) -> dict[int, np.ndarray]:
        """Patch size -> [num_steps + 1] int64: its steps before each step of the stage."""
        return {s: np.concatenate([[0], np.cumsum(self._sizes == s)]) for s in self.size_shares}

    def size_at(self, step: int) -> int:
        """The patch size of a global step, on all ranks."""
        return int(self._sizes[step - self.first_step])

    def samples_at(self, step: int) -> dict[int, int]:
        """Patch size -> positions of its stream used up when global step `step` begins."""
        start, now = self.start_step - self.first_step, step - self.first_step
        return {
            size: self.start_samples.get(size, 0) + int(turns[now] - turns[start]) * self.global_batch(size)
            for size, turns in self._turns.items()
        }

    def global_batch(self, size: int) -> int:
        """Patches of one optimiser step over all ranks."""
        return self.batches[size].patches * self.num_groups

    def megapixels_at(self, step: int) -> float:
        size = self.size_at(step)
        return self.global_batch(size) * size**2 / 1e6

    @property
    def label(self) -> str:
        """The stage's patch sizes for people: `1024 px`, or `70% 1024 px + 30% 256 px`."""
        if len(self.size_shares) == 1:
            return f"{self.largest_size} px"
        return " + ".join(f"{share:.0%} {size} px" for size, share in sorted(self.size_shares.items(), reverse=True))


@dataclass(frozen=True)
class Plan:
    stages: tuple[Stage, ...]

    @property
    def total_steps(self) -> int:
        return self.stages[-1].end_step


def size_sequence(shares: Mapping[int, float], num_steps: int) -> np.ndarray:
    """[num_steps] int64: the patch size of every step of a stage, each as evenly spread as its share allows.

    The i-th step of a size is due at (i + 1/2) / share; steps are taken in the order in which they are due. A longer
    stage begins with the same sequence.
    """
    sizes = sorted(shares)
    due = [(np.arange(math.ceil(num_steps * shares[s]) + 1) + 0.5) / shares[s] for s in sizes]
    size_of_due = np.repeat(np.array(sizes, np.int64), [len(d) for d in due])
    return size_of_due[np.argsort(np.concatenate(due), kind="stable")][:num_steps]


def make_plan(
    stages: Sequence[StageConfig],
    batches: Sequence[Mapping[int, Batch]],
    patches_per_epoch: Mapping[int, int],
    world_size: int,
    done: Position = START,
) -> Plan:
    """Turn every stage's duration into steps.

    Args:
      batches: for each stage, its patch sizes' batches (see `batches.plan_batches`).
      patches_per_epoch: for each patch size, patches that one epoch shows over all ranks.
      done: how far the run has come, on whatever number of ranks; the rest is planned for `world_size`.
    """
    planned: list[Stage] = []
    groups = [world_size // stage.parallel.spatial for stage in stages]
    for number, (stage, stage_batches) in enumerate(zip(stages, batches, strict=True)):
        first = planned[-1].end_step if planned else 0
        is_current = number == done.stage
        start = done.step if is_current else first
        samples = dict(done.samples) if is_current else {}
        if number < done.stage:
            end = done.stage_ends[number]
        else:
            end = start + _steps_left(stage, stage_batches, patches_per_epoch, groups[number], start - first, samples)
        planned.append(
            Stage(
                number=number,
                size_shares=stage.size_shares,
                batches=stage_batches,
                spatial=stage.parallel.spatial,
                num_groups=groups[number],
                learning_rate_factor=stage.learning_rate_factor,
                plateau=stage.plateau,
                first_step=first,
                start_step=start,
                end_step=end,
                start_samples=samples,
            )
        )
    return Plan(tuple(planned))


def _steps_left(
    stage: StageConfig,
    batches: Mapping[int, Batch],
    patches_per_epoch: Mapping[int, int],
    num_groups: int,
    steps_done: int,
    samples: Mapping[int, int],
) -> int:
    limit = stage.steps or (stage.plateau.max_steps if stage.plateau else None)
    if limit is not None:
        return max(0, limit - steps_done)
    largest, shares = stage.largest_size, stage.size_shares
    wanted = stage.images or math.ceil((stage.epochs or 0) * patches_per_epoch[largest])
    turns = math.ceil(max(0, wanted - samples.get(largest, 0)) / (batches[largest].patches * num_groups))
    if turns == 0:
        return 0
    # the step at which the largest size has had its turns
    sequence = size_sequence(shares, steps_done + math.ceil((turns + 1) / shares[largest]) + len(shares))
    return int(np.flatnonzero(sequence[steps_done:] == largest)[turns - 1]) + 1
