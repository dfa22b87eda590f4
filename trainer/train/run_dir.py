"""The run directory: one run writes it, rank 0 only, atomically."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from trainer.errors import RunError
from trainer.files import replace_content
from trainer.locking import flock

MARK = "# resolved by widefield"
"""Begins the config.yaml that a run writes."""
_OURS = (
    "config.yaml",
    "metrics.jsonl",
    "report.json",
    "report.md",
    "evaluation.json",
    "slides.json",
    "slides.html",
    "affinity.json",
    "run.log",
)
_OUR_FOLDERS = ("checkpoints", "tensorboard", "figures", "bad_batches")


def claim_run(path: Path, *, resume: bool, overwrite: bool) -> int:
    """Take the run directory for this process and return the held lock.

    The lock is the kernel's (flock), so it is gone when its holder dies, however it dies.

    Raises:
      RunError: another run holds the directory; it holds a run already and neither flag was given; or resume was
        asked for and there is no run to resume.
    """
    if resume and not (path / "config.yaml").exists():
        raise RunError("there is no run here to resume", where=str(path))
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RunError(f"cannot be written: {error}", where=str(path), fix="output=SOME/OTHER/DIR") from None
    if not _lock(lock):
        holder = os.read(lock, 200).decode(errors="replace").strip() or "another process"
        os.close(lock)
        raise RunError(
            f"is being written by {holder}", where=str(path), fix="wait for it, or use output=SOME/OTHER/DIR"
        )
    if not resume:
        if holds_run(path) and not overwrite:
            os.close(lock)
            raise RunError("holds a run already", where=str(path), fix="--resume, --overwrite, or output=OTHER/DIR")
        clear_run(path)
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"process {os.getpid()} on {platform.node()}, since {time.ctime()}\n".encode(), 0)
    return lock


def holds_run(path: Path) -> bool:
    """False also where one has written its settings and never began: it was stopped while it indexed slides, say."""
    settings = path / "config.yaml"
    if not settings.exists():
        return False
    return (path / "metrics.jsonl").exists() or not settings.read_text(errors="replace").startswith(MARK)


def _lock(lock: int) -> bool:
    """Take the lock if no other run has it; `widefield runs` holds it for an instant when it looks, so ask twice."""
    for wait_s in (0.1, 0):
        try:
            flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(wait_s)
    return False


def clear_run(path: Path) -> None:
    """Remove what a run leaves; anything else in the folder stays, and the index too: it is checked before its use."""
    for name in _OURS:
        (path / name).unlink(missing_ok=True)
    for name in _OUR_FOLDERS:
        shutil.rmtree(path / name, ignore_errors=True)


class Lines:
    """A file that lines are added to, each at once. A disk that is full costs lines, not the run."""

    def __init__(self, path: Path) -> None:
        self._path, self._has_failed = path, False
        self._file = path.open("ab", buffering=0)

    def add(self, line: str) -> None:
        try:
            self._file.write(f"{line}\n".encode())
        except OSError as error:
            if not self._has_failed:
                print(f"warning: {self._path} is not complete: {error}", file=sys.stderr, flush=True)
            self._has_failed = True

    def close(self) -> None:
        self._file.close()


class MetricsFile:
    """`metrics.jsonl`: one JSON object per event and line."""

    def __init__(self, path: Path, keep_to_step: int) -> None:
        """Drop events after `keep_to_step` (a resumed run will write them again), then append."""
        kept = [e for e in read_events(path) if e.get("step", 0) <= keep_to_step and e.get("event") != "end"]
        try:
            replace_content(path, "".join(json.dumps(e) + "\n" for e in kept))
        except OSError as error:
            print(f"warning: {path} keeps what went before step {keep_to_step}: {error}", file=sys.stderr, flush=True)
        self._lines = Lines(path)

    def write(self, event: str, **fields: Any) -> None:
        self._lines.add(json.dumps({"event": event, **fields}))

    def close(self) -> None:
        self._lines.close()


def read_events(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics file; a last line cut short by a crash is left out."""
    events = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                events.append(json.loads(line))
    return events
