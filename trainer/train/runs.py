"""The runs below a folder, as their files tell: for `widefield runs`. Reads only, and starts without TensorFlow."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from trainer.errors import WidefieldError
from trainer.locking import flock
from trainer.train.run_dir import read_events

State = Literal["running", "finished", "stopped", "damaged"]
"""running: its directory is held. stopped: neither held nor finished; `--resume` goes on. damaged: see `problem`."""


@dataclass(frozen=True)
class RunSummary:
    """One line of the list; None is what the run's files do not say (yet)."""

    name: str
    """Path below the folder that was searched."""
    state: State
    updated: datetime
    """When something was last written to its metrics."""
    stage: int | None = None
    """Number of the stage it is in or ended with, from 1."""
    num_stages: int | None = None
    patch_sizes: tuple[int, ...] = ()
    """Those of that stage."""
    step: int | None = None
    total_steps: int | None = None
    """A stage that ends at a plateau counts with its largest length."""
    best_common_miou: float | None = None
    megapixels_per_second: float | None = None
    """Over all ranks, at the latest line of the log."""
    world_size: int | None = None
    problem: str = ""


def list_runs(folder: Path) -> list[RunSummary]:
    """All runs below a folder (or the folder itself), the one written to last first."""
    runs = [summarise(path, str(path.relative_to(folder))) for path in run_folders(folder)]
    return sorted(runs, key=lambda run: run.updated, reverse=True)


def run_folders(folder: Path) -> Iterator[Path]:
    """Folders with a config.yaml and a metrics.jsonl. Nothing is searched within one, nor in hidden folders."""
    for path, folders, files in os.walk(folder):
        if {"config.yaml", "metrics.jsonl"} <= set(files):
            folders.clear()
            yield Path(path)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def summarise(run: Path, name: str) -> RunSummary:
    """One run; whatever is wrong with its files becomes its `problem`."""
    updated = datetime.fromtimestamp((run / "metrics.jsonl").stat().st_mtime).astimezone()
    try:
        return _summarise(run, name, updated)
    except WidefieldError as error:
        problem = f"{error.where}: {error.what}"
    except OSError as error:
        problem = str(error)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        problem = f"{run / 'metrics.jsonl'}: does not hold the events of a run ({type(error).__name__}: {error})"
    return RunSummary(name, "damaged", updated, problem=problem)


def _summarise(run: Path, name: str, updated: datetime) -> RunSummary:
    events = read_events(run / "metrics.jsonl")
    by_kind: dict[str, list[dict[str, Any]]] = {kind: [] for kind in ("start", "step", "score", "stage", "end")}
    for event in events:
        by_kind.setdefault(event["event"], []).append(event)
    state: State = "running" if is_held(run) else "finished" if by_kind["end"] else "stopped"
    if not events:
        return RunSummary(name, state, updated)
    plan = by_kind["start"][-1]
    stages = plan["stages"]
    now = max((event["stage"] for event in events if "stage" in event), default=0)
    scores = [e.get("common_miou") for e in (*by_kind["score"], *(e["result"] for e in by_kind["stage"]))]
    return RunSummary(
        name=name,
        state=state,
        updated=updated,
        stage=now + 1,
        num_stages=len(stages),
        patch_sizes=tuple(sorted(map(int, stages[now]["sizes"]))),
        step=events[-1]["step"],
        total_steps=plan["total_steps"],
        best_common_miou=max((s for s in scores if s is not None), default=None),
        megapixels_per_second=by_kind["step"][-1].get("megapixels_per_second") if by_kind["step"] else None,
        world_size=plan["world_size"],
    )


def is_held(run: Path) -> bool:
    """True while a living process, here or on another node of a shared file system, has claimed the directory."""
    try:
        lock = os.open(run / ".lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False
