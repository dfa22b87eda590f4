"""A loss or weights that are not finite: all ranks go back to a checkpoint with a lower rate, or stop."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np

from trainer.curriculum import Stage
from trainer.errors import TrainingError
from trainer.files import replace_content
from trainer.models.keras import keras
from trainer.train.checkpoint import Progress
from trainer.train.data import places_of_step
from trainer.train.restore import find_checkpoint, restore
from trainer.train.run import Run
from trainer.train.session import Session


class LossNotFinite(Exception):
    """Raised on all ranks at the same step."""

    def __init__(self, loss: float, stage: Stage, step: int, progress: Progress) -> None:
        super().__init__(f"loss {loss} at step {step + 1}")
        self.loss, self.stage, self.step, self.progress = loss, stage, step, progress


def require_finite(model: keras.Model, stage: Stage, progress: Progress) -> None:
    """Whether the last step has left a network that can be scored: its loss was that before its update.

    Raises:
      LossNotFinite: on all ranks, whose weights are equal.
    """
    if not all(np.isfinite(v.numpy()).all() for v in model.variables if v.dtype.is_floating):
        raise LossNotFinite(float("nan"), stage, progress.position.step - 1, progress)


def roll_back(run: Run, bad: LossNotFinite) -> Progress:
    """Go back to the newest checkpoint with a lower rate, on all ranks.

    Raises:
      TrainingError: it has been done as often as the configuration allows.
    """
    session, training = run.session, run.session.config.training
    batch = run.path / "bad_batches" / f"step-{bad.step + 1:08d}.csv"
    run.attempt("the list of that step's patches", lambda: _write_batch(session, bad, batch))
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
    replace_content(path, text.getvalue())
