"""What a person watches: a live bar on a terminal, plain timed lines in a log. Only rank 0 speaks."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from trainer.train.run_dir import Lines


class Console:
    """Lines and one progress bar.

    Args:
      active: False silences it (all ranks but 0).
      live: draw a bar when standard output is a terminal. Open MPI gives every rank a pseudo-terminal, so under a
        launcher the caller says False.
      log: file that every line also goes to.
    """

    def __init__(self, active: bool, log: Path | None = None, *, live: bool = True) -> None:
        self._active = active
        self._log = Lines(log) if active and log else None
        self._started = time.monotonic()
        self._bar: Progress | None = None
        if active and live and sys.stdout.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=RichConsole(),
            )

    def line(self, text: str) -> None:
        if not self._active:
            return
        stamped = f"[{clock_text(time.monotonic() - self._started)}] {text}"
        if self._log:
            self._log.add(stamped)
        if self._bar and self._bar.live.is_started:
            self._bar.console.print(stamped, markup=False, highlight=False)
        else:
            with suppress(OSError):  # the reader of a pipe has gone, or a full disk takes no more: run.log has it
                print(stamped, flush=True)

    def start_bar(self, description: str, done: int, total: int) -> None:
        if self._bar:
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            self._bar.add_task(description, completed=done, total=total)
            self._bar.start()

    def advance(self) -> None:
        if self._bar and self._bar.task_ids:
            self._bar.advance(self._bar.task_ids[0])

    def stop_bar(self) -> None:
        if self._bar:
            self._bar.stop()

    def close(self) -> None:
        self.stop_bar()
        if self._log:
            self._log.close()


def clock_text(seconds: float) -> str:
    """`h:mm:ss`."""
    minutes, s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{s:02d}"


def eta(seconds_per_step: float, steps_left: int) -> str:
    return clock_text(seconds_per_step * steps_left)
