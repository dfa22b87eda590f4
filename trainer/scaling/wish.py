"""Which points a study is to have, from what somebody asked for. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

from trainer.config import Config
from trainer.errors import StudyError
from trainer.scaling.records import Point


@dataclass(frozen=True)
class Effort:
    """How long each point is measured."""

    warmup_steps: int
    """At the start of every repeat, not counted; before the first repeat as many again, which trace the network."""
    repeats: int
    steps_per_repeat: int


@dataclass(frozen=True)
class Wish:
    """What `widefield scaling` was asked for; None: as the configuration has it."""

    mode: Literal["weak", "strong"]
    patch_sizes: tuple[int, ...] | None
    local_batch: int | None
    global_batch: int | None
    compressions: tuple[Literal["none", "fp16", "bf16"], ...]
    data: tuple[Literal["memory", "slides"], ...]
    effort: Effort
    model_inputs: bool = False
    """Also measure what the performance model needs."""


def points_of(config: Config, wish: Wish, world_size: int, num_nodes: int) -> list[Point]:
    """The points of one number of ranks.

    A single rank exchanges nothing, so it has one point for all compressions, named after the first.

    Raises:
      StudyError: a size that the curriculum has no batch for, a global batch that does not divide, too little effort.
    """
    effort = wish.effort
    if effort.warmup_steps < 1 or effort.repeats < 1 or effort.steps_per_repeat < 1:
        raise StudyError(
            f"--warmup {effort.warmup_steps} --repeats {effort.repeats} --steps {effort.steps_per_repeat}: the first "
            "step traces the network, and each figure needs at least one more",
            where="command line",
            fix="--warmup 2 --repeats 5 --steps 4",
        )
    batches = {size: _batch(config, wish, size, world_size) for size in wish.patch_sizes or config.patch_sizes}
    compressions = wish.compressions if world_size > 1 else wish.compressions[:1]
    return [
        Point(
            num_nodes=num_nodes,
            world_size=world_size,
            mode=wish.mode,
            patch_size=size,
            local_batch_size=batch,
            compression=compression,
            data=data,
        )
        for (size, batch), compression, data in product(batches.items(), compressions, wish.data)
    ]


def _batch(config: Config, wish: Wish, size: int, world_size: int) -> int:
    """Patches per rank."""
    if wish.mode == "strong":
        if not wish.global_batch or wish.global_batch % world_size:
            raise StudyError(
                f"strong scaling shares out one batch: {wish.global_batch or 'none'} does not divide by {world_size}",
                where="--global-batch",
                fix=f"--global-batch {world_size * max(1, (wish.global_batch or world_size) // world_size)}",
            )
        return wish.global_batch // world_size
    if wish.local_batch:
        return wish.local_batch
    for stage in config.curriculum:
        if stage.patch_size == size and stage.local_batch_size != "auto":
            return stage.local_batch_size
    raise StudyError(
        f"no stage of the curriculum says how many patches of {size} px a rank takes",
        where="--patch-sizes",
        fix="--local-batch 4",
    )
