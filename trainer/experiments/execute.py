"""Train the runs of an experiment one after another on this machine."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from trainer.errors import StoppedBySignal
from trainer.experiments.results import LEFT_ALONE, log_of, state_of
from trainer.launch.failure import reason

_LAST_BYTES = 20_000
_WIDEFIELD = (sys.executable, "-m", "trainer")


def train_all(
    folders: Sequence[Path], ranks: int | None, say: Callable[[str], None], after_each: Callable[[], object]
) -> list[Path]:
    """Train every run that is neither finished nor being trained; one that fails does not keep the others from it.

    Args:
      folders: of the runs, each with its config.yaml.
      ranks: None: one process, which no launcher starts.
      say: is told what begins, what has ended, and when all will have.
      after_each: called when a run has ended.
    Returns:
      The runs that failed.
    Raises:
      StoppedBySignal: SIGTERM or SIGUSR1 came, and the run that was being trained has ended.
    """
    failed, seconds = [], []
    for number, folder in enumerate(folders, 1):
        place, state = f"{number}/{len(folders)} {folder.name}", state_of(folder)
        if state in LEFT_ALONE:
            say(f"{place}: {'is finished' if state == 'finished' else 'is being trained by another process'}")
            continue
        log, started = log_of(folder), time.monotonic()
        say(f"{place}: {'goes on' if state == 'stopped' else 'begins'}, log {log}")
        status, said = _run(train_command(folder, ranks), log)
        after_each()
        if status == StoppedBySignal.EXIT_CODE:
            raise StoppedBySignal(f"stopped by a signal in {folder}: give the same command again")
        if status:
            failed.append(folder)
            say(f"{place}: failed with status {status}\n{reason(said)}")
            continue
        seconds.append(time.monotonic() - started)
        left = sum(state_of(f) not in LEFT_ALONE for f in folders[number:])
        eta = _clock(left * sum(seconds) / len(seconds))
        say(f"{place}: finished in {_clock(seconds[-1])}; {left} to go, ETA {eta}")
    return failed


def train_command(folder: Path, ranks: int | None) -> list[str]:
    """The arguments of `widefield` that begin a run, or go on with it where it was broken off."""
    launch = ["launch", "--ranks", str(ranks)] if ranks else []
    return [*launch, "train", str(folder / "config.yaml"), "--continue"]


def _run(arguments: Sequence[str], log: Path) -> tuple[int, str]:
    """Run `widefield`, its output added to a log. Returns its exit status and the end of what it said."""
    with log.open("ab") as file:
        file.write(f"+ widefield {shlex.join(arguments)}    {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
        file.flush()
        start = file.tell()
        line = [*_WIDEFIELD, *arguments]
        with (
            subprocess.Popen(line, stdout=file, stderr=subprocess.STDOUT) as process,
            _signals_passed_on(process) as got,
        ):
            status = process.wait()
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - _LAST_BYTES))
        said = file.read().decode(errors="replace")
    return StoppedBySignal.EXIT_CODE if got else status, said


@contextmanager
def _signals_passed_on(process: subprocess.Popen) -> Iterator[list[int]]:
    """Yields the signals that came: SIGTERM and SIGUSR1 reach the process as SIGUSR1, for which mpirun gives time."""
    got: list[int] = []

    def pass_on(number: int, _: object) -> None:
        got.append(number)
        process.send_signal(signal.SIGUSR1)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield got
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
