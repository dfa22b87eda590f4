"""Measure those points of a scaling study that one launch can: sizes, compressions and data for its number of ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np

from trainer.batches.loader import Batch
from trainer.config import Config
from trainer.config.schema import StageConfig
from trainer.curriculum import START
from trainer.runtime import Comm
from trainer.scaling.records import Point
from trainer.scaling.steps import Steps
from trainer.scaling.wish import Effort
from trainer.train.console import Console
from trainer.train.data import stage_batches
from trainer.train.session import Session, build_network, open_session
from trainer.train.step import TrainStep, allreduce_bytes, make_optimizer

NextBatch = Callable[[], Batch]
MANY_STEPS = 10_000
"""Length of the stage that patches are read from; more than anybody times."""


@dataclass(frozen=True)
class Measured:
    """One point, timed on all ranks."""

    point: Point
    steps: Steps
    allreduce_bytes: int
    """What one rank hands over per step."""


def measure_points(
    config: Config, comm: Comm, points: Sequence[Point], effort: Effort, say: Callable[[str], None]
) -> Iterator[Measured]:
    """Time every point, on all ranks; points of one patch size take turns within each repeat, so ratios hold.

    Yields:
      each point, on every rank, when all of its patch size are done.
    """
    subject = _Subject(config, comm, points)
    for number, size in enumerate(sorted({p.patch_size for p in points})):
        group = [p for p in points if p.patch_size == size]
        say(f"{size} px: {len(group)} points, {effort.repeats} x {effort.steps_per_repeat} steps each; tracing ...")
        rows: dict[Point, list[list[tuple[float, float, float]]]] = {p: [] for p in group}
        for repeat in range(-1, effort.repeats):  # the first one is thrown away
            for point in group if repeat % 2 else reversed(group):
                rows[point].append(subject.timed(point, number, effort, is_tracing=repeat < 0))
            if repeat >= 0:
                say(f"  repeat {repeat + 1}/{effort.repeats}: " + "  ".join(_mean_step(p, rows[p][-1]) for p in group))
        for point in group:
            gathered = np.array(comm.gather(rows[point][1:]))  # [ranks, repeats, steps, 3]
            step, wait, reduce = np.moveaxis(gathered, (3, 0), (0, 3))
            steps = Steps(step, np.maximum(step - wait - reduce, 0.0), reduce, wait)
            yield Measured(point, steps, allreduce_bytes(subject.model, point.compression))


def _mean_step(point: Point, rows: Sequence[tuple[float, float, float]]) -> str:
    return f"{point.compression}/{point.data} {np.mean([r[0] for r in rows]):.3f} s"


class _Subject:
    """The network and its batches. Slides are opened only where a point reads them."""

    def __init__(self, config: Config, comm: Comm, points: Sequence[Point]) -> None:
        stages = {p.patch_size: p.local_batch_size for p in points}
        curriculum = tuple(
            StageConfig(patch_size=s, local_batch_size=b, steps=MANY_STEPS) for s, b in sorted(stages.items())
        )
        self._config, self._comm = config.model_copy(update={"curriculum": curriculum}), comm
        self._session: Session | None = None
        if any(p.data == "slides" for p in points):
            self._session = open_session(self._config, comm, Console(False))
        self.model = self._session.model if self._session else build_network(config, comm, read_weights=False)
        self._optimizer = make_optimizer(config.training.optimizer, config.training.precision)
        self._optimizer.build(self.model.trainable_variables)
        comm.broadcast_variables([*self.model.variables, *self._optimizer.variables])
        self._steps = {c: self._step(c) for c in sorted({p.compression for p in points})}

    def _step(self, compression: str) -> TrainStep:
        training = self._config.training.model_copy(update={"compression": compression})
        return TrainStep(self.model, self._optimizer, training, self._comm)

    def timed(self, point: Point, number: int, effort: Effort, *, is_tracing: bool) -> list[tuple[float, float, float]]:
        """Seconds of (whole step, waiting for data, exposed all-reduce) of each counted step, on this rank."""
        step, rows = self._steps[point.compression], []
        total = effort.warmup_steps + (0 if is_tracing else effort.steps_per_repeat)
        with self._batches(point, number) as next_batch:
            self._comm.barrier()
            for count in range(total):
                start = time.perf_counter()
                images, labels = next_batch()
                waited = time.perf_counter()
                result = step(images, labels, count)
                rows.append((time.perf_counter() - start, waited - start, result.allreduce_s))
        return rows[effort.warmup_steps :]

    @contextmanager
    def _batches(self, point: Point, number: int) -> Iterator[NextBatch]:
        """Where the next batch comes from; readers end with the block, so that they disturb no other point."""
        if point.data == "memory" or self._session is None:
            rng = np.random.default_rng(self._comm.rank)
            shape = (point.local_batch_size, point.patch_size, point.patch_size)
            batch = rng.integers(0, 256, (*shape, 3), np.uint8), rng.integers(0, 2, shape, np.uint8)
            yield lambda: batch
            return
        batches = stage_batches(self._session, self._session.plan(START).stages[number])
        with closing(batches):
            yield lambda: next(batches)
