"""What a run carries from step to step beside the network: its step, its record, its checkpoints, its wish to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NoReturn, Self

from trainer.errors import CheckpointError, StoppedBySignal
from trainer.runtime import on_root
from trainer.runtime.affinity import Placement
from trainer.train.agreement import require_agreement
from trainer.train.checkpoint import Progress, digest, snapshot
from trainer.train.checkpoints import CheckpointWriter
from trainer.train.record import Recorder
from trainer.train.session import Session, write_settings
from trainer.train.signals import StopRequest
from trainer.train.step import TrainStep


class Run:
    """One run on this rank. Only rank 0 writes; what needs all ranks says so."""

    def __init__(self, session: Session, stop_request: StopRequest, placements: Sequence[Placement]) -> None:
        config = session.config
        self.session, self.stop_request = session, stop_request
        self.path, self.metrics_path = config.output, config.output / "metrics.jsonl"
        self.metric = config.training.best_by
        parts = (session.model, session.optimizer, config.training, session.comm, session.averaged)
        self.step = TrainStep(*parts, seed=config.seed)
        self.total_steps = 0
        on_root(session.comm, lambda: write_settings(config, session.comm.world_size))
        self.recorder = Recorder(session, placements)
        is_root = session.comm.rank == 0
        self._writer = CheckpointWriter(self.path, config.training.keep_checkpoints) if is_root else None
        self._last_save = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._writer:
            self._writer.close()
            self.show_warnings()
        self.recorder.close()

    def begin(self, progress: Progress) -> None:
        """Start, or start again, from a position: the record forgets what came after it. All ranks."""
        self.recorder.begin(self.session.plan(progress.position), progress.position.step)

    def require_agreement(self, progress: Progress, when: str) -> None:
        """All ranks hold the same weights, settings, index and position. A collective."""
        session = self.session
        weights = digest(session.model, session.optimizer, session.averaged)
        require_agreement(session.comm, session.hashes | {"weights": weights, "step": progress.position.step}, when)

    def save(self, progress: Progress) -> None:
        """Write a checkpoint in the background."""
        if self._writer:
            session = self.session
            progress = replace(progress, hashes=session.hashes, world_size=session.comm.world_size)
            self._writer.wait()  # before the next copy is made: two would take twice the memory
            self._writer.save(snapshot(session.model, session.optimizer, session.averaged), progress)
            self._last_save = time.monotonic()

    def flush(self) -> None:
        """Until every checkpoint is on the disk. All ranks."""
        if self._writer:
            self._writer.wait()
            self.show_warnings()
        self.session.comm.barrier()

    def require_saved(self, progress: Progress) -> None:
        """Wait until the checkpoint of this position is on the disk. All ranks.

        Raises:
          CheckpointError: it could not be written.
        """
        self.flush()
        step = progress.position.step

        def check() -> None:
            if self._writer and self._writer.saved_step != step:
                raise CheckpointError(
                    f"the state after step {step} could not be saved (see the warning above); what was saved before "
                    "it is still there",
                    where=str(self.path / "checkpoints"),
                    fix=f"if the disk is full make room, then widefield train --resume {self.path}",
                )

        on_root(self.session.comm, check)

    def stop(self, progress: Progress) -> NoReturn:
        """End the run, its state saved, with the status that asks for a new start. All ranks."""
        self.require_saved(progress)
        step = progress.position.step
        raise StoppedBySignal(
            f"stopped by a signal after step {step} of {self.total_steps}; widefield train --resume {self.path}"
        )

    def stop_if_requested(self, progress: Progress) -> None:
        """End the run if any rank was asked to; this position has been given to `save` already. All ranks."""
        if any(self.session.comm.gather(self.stop_request.requested)):
            self.stop(progress)

    def attempt(self, what: str, write: Callable[[], object]) -> None:
        """Write something on rank 0 that a run can do without: a disk that is full is a warning."""
        if self._writer:
            try:
                write()
            except OSError as error:
                self.session.console.line(f"warning: {what} is not written: {error}")

    def save_if_due(self, progress: Progress) -> None:
        """Rank 0 decides alone: saving needs nobody else."""
        training = self.session.config.training
        every, minutes = training.checkpoint_every_steps, training.checkpoint_every_minutes
        is_old = minutes is not None and time.monotonic() - self._last_save > 60 * minutes
        if self._writer and (is_old or (every and progress.position.step % every == 0)):
            self.save(progress)

    def mark_best(self, step: int, scores: dict[str, Any]) -> None:
        if self._writer and scores[self.metric] is not None:
            self._writer.mark_best(step, self.metric, float(scores[self.metric]))

    def show_warnings(self) -> None:
        """What went wrong with a checkpoint in the background: training goes on, people are told."""
        for warning in self._writer.poll() if self._writer else []:
            self.session.console.line(f"warning: {warning}")
