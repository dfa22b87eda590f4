"""The batches of a stage: which patches a rank reads at each step, read ahead in threads."""

from __future__ import annotations

from collections.abc import Generator

from trainer.batches.loader import Batch, prefetched, training_jobs
from trainer.batches.order import positions_of_rank
from trainer.curriculum import Stage
from trainer.train.session import Session


def stage_batches(session: Session, stage: Stage) -> Generator[Batch]:
    """What this rank trains on at each step that is left of a stage."""
    config = session.config
    places = (
        places_of_step(session, stage, step, session.comm.rank) for step in range(stage.start_step, stage.end_step)
    )
    jobs = training_jobs(session.store.read, places, config.augment, config.seed)
    return prefetched(jobs, config.runtime.read_threads, config.runtime.prefetch_batches)


def places_of_step(session: Session, stage: Stage, step: int, rank: int) -> list[tuple[int, int]]:
    """(epoch, index row) of the patches that one rank takes at one global step, pass after pass."""
    size = stage.size_at(step)
    positions = positions_of_rank(
        stage.samples_at(step)[size], stage.batches[size].patches, rank, session.comm.world_size
    )
    return session.orders[stage.number, size].at(positions)
