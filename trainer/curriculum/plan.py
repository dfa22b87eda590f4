"""From the configured stages, the size of each epoch and the number of ranks to steps. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from trainer.config.schema import StageConfig


@dataclass(frozen=True)
class Stage:
    """One stage, in steps: global steps `first_step <= step < end_step`."""

    number: int
    patch_size: int
    local_batch_size: int
    global_batch_size: int
    learning_rate_factor: float
    first_step: int
    num_steps: int

    @property
    def end_step(self) -> int:
        return self.first_step + self.num_steps

    @property
    def megapixels_per_step(self) -> float:
        return self.global_batch_size * self.patch_size**2 / 1e6


@dataclass(frozen=True)
class Plan:
    stages: tuple[Stage, ...]

    @property
    def total_steps(self) -> int:
        return self.stages[-1].end_step

    def stage_at(self, step: int) -> Stage:
        """The stage that global step `step` belongs to; the last stage from the end on."""
        return next((s for s in self.stages if step < s.end_step), self.stages[-1])


def make_plan(stages: tuple[StageConfig, ...], patches_per_epoch: Mapping[int, int], world_size: int) -> Plan:
    """Turn every stage's duration into steps.

    Args:
      patches_per_epoch: for each patch size, patches that one epoch shows over all ranks.
    """
    planned: list[Stage] = []
    for number, stage in enumerate(stages):
        global_batch = stage.local_batch_size * world_size
        patches = (stage.epochs or 0) * patches_per_epoch[stage.patch_size]
        steps = stage.steps or math.ceil(patches / global_batch)
        planned.append(
            Stage(
                number=number,
                patch_size=stage.patch_size,
                local_batch_size=stage.local_batch_size,
                global_batch_size=global_batch,
                learning_rate_factor=stage.learning_rate_factor,
                first_step=planned[-1].end_step if planned else 0,
                num_steps=steps,
            )
        )
    return Plan(tuple(planned))
