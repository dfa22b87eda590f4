"""Going back to a checkpoint: to resume a run, on any number of ranks, and after a loss that is not finite."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.curriculum import Stage
from trainer.errors import TrainingError
from trainer.runtime import Comm, on_root
from trainer.train.agreement import require_agreement
from trainer.train.checkpoint import Progress, digest, load_checkpoint, read_progress
from trainer.train.checkpoints import checkpoints, latest_checkpoint
from trainer.train.console import Console
from trainer.train.data import places_of_step
from trainer.train.run import Run
from trainer.train.run_dir import write_atomically
from trainer.train.session import Session


@dataclass(frozen=True)
class Found:
    path: Path
    progress: Progress


class LossNotFinite(Exception):
    """Raised on all ranks at the same step."""

    def __init__(self, loss: float, stage: Stage, step: int, progress: Progress) -> None:
        super().__init__(f"loss {loss} at step {step + 1}")
        self.loss, self.stage, self.step, self.progress = loss, stage, step, progress


def find_checkpoint(comm: Comm, run: Path, console: Console) -> Found | None:
    """The newest whole checkpoint of a run, chosen by rank 0. None: it has none, being killed before its first."""
    if not on_root(comm, lambda: checkpoints(run)):
        return None
    path, skipped = on_root(comm, lambda: latest_checkpoint(run))
    for damaged in skipped:
        console.line(f"warning: {damaged} is damaged; an older checkpoint is used")
    return Found(path, on_root(comm, lambda: read_progress(path)))


def restore(session: Session, found: Found) -> None:
    """Fill network, optimiser and averages on every rank, and say what is different from when they were saved."""
    load_checkpoint(found.path, session.model, session.optimizer, session.averaged)
    weights = digest(session.model, session.optimizer, session.averaged)
    step, before, now = found.progress.position.step, found.progress.world_size, session.comm.world_size
    require_agreement(session.comm, session.hashes | {"weights": weights, "step": step}, f"after reading {found.path}")
    session.console.line(f"resuming after step {step} from {found.path}")
    if before != now:
        session.console.line(
            f"it was saved on {before} rank(s), this run has {now}: the epoch goes on where it was, each patch is "
            "still seen once; global batch, steps and learning rate follow the new number of ranks"
        )
    for what in sorted(k for k, v in found.progress.hashes.items() if session.hashes.get(k) != v):
        session.console.line(f"warning: {what} are not those that the checkpoint was trained with")


def roll_back(run: Run, bad: LossNotFinite) -> Progress:
    """Go back to the newest checkpoint with a lower rate, on all ranks.

    Raises:
      TrainingError: it has been done as often as the configuration allows.
    """
    session, training = run.session, run.session.config.training
    batch = run.path / "bad_batches" / f"step-{bad.step + 1:08d}.csv"
    on_root(session.comm, lambda: _write_batch(session, bad, batch))
    what = f"the loss is {bad.loss} at step {bad.step + 1}, on all ranks alike"
    if bad.progress.rollbacks >= training.rollbacks:
        raise TrainingError(
            f"{what}, after {bad.progress.rollbacks} rollback(s)",
            where=str(batch),
            fix="look at that batch's patches; lower training.optimizer.learning_rate, set clip_norm there, or use "
            "training.precision=float32; then `widefield train --resume`: checkpoints are untouched",
        )
    run.flush()
    found = find_checkpoint(session.comm, run.path, session.console)
    if found is None:
        raise TrainingError(f"{what}, and no checkpoint could be saved to go back to", where=str(run.path))
    restore(session, found)
    factor = bad.progress.rate_factor * training.rollback_rate_factor
    progress = replace(found.progress, rate_factor=factor, rollbacks=bad.progress.rollbacks + 1)
    run.save(progress)  # with its lower rate: a run that is killed now does not try the same again
    session.console.line(f"warning: {what} ({batch}); back to step {progress.position.step}, rate times {factor:g}")
    return progress


def _write_batch(session: Session, bad: LossNotFinite, path: Path) -> None:
    """The patches of one global step: which rank read what."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["rank", "epoch", "row", "slide", "x", "y", "size"])
    index = session.index
    for rank in range(session.comm.world_size):
        for epoch, row in places_of_step(session, bad.stage, bad.step, rank):
            slide = index.slides[int(index.slide[row])].slide
            table.writerow([rank, epoch, row, slide, int(index.x[row]), int(index.y[row]), int(index.size[row])])
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, text.getvalue())
