"""Going back to a checkpoint, on any number of ranks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from trainer.errors import CheckpointError
from trainer.runtime import Comm, on_root
from trainer.train.agreement import require_agreement
from trainer.train.checkpoint import Progress, digest, load_checkpoint, read_progress
from trainer.train.checkpoints import checkpoints, latest_checkpoint
from trainer.train.console import Console
from trainer.train.session import Session


@dataclass(frozen=True)
class Found:
    path: Path
    progress: Progress


def find_checkpoint(comm: Comm, run: Path, console: Console) -> Found | None:
    """The newest whole checkpoint of a run, chosen by rank 0. None: it has none, being killed before its first."""
    if not on_root(comm, lambda: checkpoints(run)):
        return None
    path, skipped = on_root(comm, lambda: latest_checkpoint(run))
    for damaged in skipped:
        console.line(f"warning: {damaged} is damaged; an older checkpoint is used")
    return Found(path, on_root(comm, lambda: read_progress(path)))


def resumed(session: Session, found: Found) -> Progress:
    """`restore`, and where the run goes on. Whoever has changed the settings starts with rollbacks anew.

    Raises:
      CheckpointError: it is in a stage that there is no longer.
    """
    progress, num_stages = found.progress, len(session.config.curriculum)
    if progress.position.stage >= num_stages:
        raise CheckpointError(
            f"stage {progress.position.stage} was being trained, and the last one of curriculum is {num_stages - 1}",
            where=str(found.path),
            fix="give the curriculum that it was trained with (config.yaml in the run directory), or a longer one",
        )
    restore(session, found)
    if progress.rollbacks and progress.hashes.get("settings") != session.hashes["settings"]:
        session.console.line(f"settings are new: the learning rate is no longer times {progress.rate_factor:g}")
        return replace(progress, rate_factor=1.0, rollbacks=0)
    return progress


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
