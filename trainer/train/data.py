"""The batches of a stage: which patches a rank reads at each step, read ahead in threads."""

from __future__ import annotations

from collections.abc import Generator

from trainer.batches.loader import Batch, Wanted, prefetched, training_jobs
from trainer.batches.order import positions_of_rank
from trainer.curriculum import Stage
from trainer.models.halos import slabs
from trainer.train.session import Session


def stage_batches(session: Session, stage: Stage) -> Generator[Batch]:
    """What this rank trains on at each step that is left of a stage."""
    config, rank = session.config, session.comm.rank
    steps = (
        Wanted(places_of_step(session, stage, step, rank), stage.size_at(step), rows_of_step(stage, step, rank))
        for step in range(stage.start_step, stage.end_step)
    )
    jobs = training_jobs(session.store, steps, config.augment, config.seed)
    return prefetched(jobs, config.runtime.read_threads, config.runtime.prefetch_batches)


def places_of_step(session: Session, stage: Stage, step: int, rank: int) -> list[tuple[int, int]]:
    """(epoch, index row) of the patches that one rank takes at one global step, pass after pass."""
    size = stage.size_at(step)
    first, count, group = stage.samples_at(step)[size], stage.batches[size].patches, rank // stage.spatial
    positions = positions_of_rank(first, count, group, stage.num_groups)
    return session.orders[stage.number, size].at(positions)


def rows_of_step(stage: Stage, step: int, rank: int) -> tuple[int, int]:
    """Rows of each of these patches that the rank takes."""
    rows = slabs(stage.size_at(step), stage.spatial)[rank % stage.spatial]
    return rows.start, rows.stop
