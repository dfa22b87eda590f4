"""The folder of a run's checkpoints: written in the background, kept by a policy, searched for the newest whole one."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from trainer.errors import CheckpointError, RunError
from trainer.files import replace_content
from trainer.train.checkpoint import Progress, check_checkpoint, write_checkpoint


def checkpoint_path(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}.safetensors"


def checkpoints(run: Path) -> dict[int, Path]:
    """Step -> checkpoint, oldest first."""
    files = [(p.stem.removeprefix("step-"), p) for p in (run / "checkpoints").glob("step-*.safetensors")]
    return dict(sorted((int(step), path) for step, path in files if step.isdecimal()))


def latest_checkpoint(run: Path) -> tuple[Path, list[Path]]:
    """The newest checkpoint that is whole, and newer ones that are damaged.

    Raises:
      RunError: there is none.
      CheckpointError: all are damaged; what is wrong with the oldest.
    """
    damaged: list[Path] = []
    failure: Exception = RunError("has no checkpoint", where=str(run), fix="train first, or give a run's directory")
    for path in reversed(checkpoints(run).values()):
        try:
            check_checkpoint(path)
            return path, damaged
        except CheckpointError as error:
            damaged.append(path)
            failure = error
    raise failure


@dataclass(frozen=True)
class Best:
    """Which checkpoint has scored best: `checkpoints/best.json`."""

    step: int
    metric: str
    score: float


def read_best(run: Path) -> Best | None:
    """None: no checkpoint has been scored.

    Raises:
      CheckpointError: the file is not as it was written.
    """
    path = _best_path(run)
    try:
        return Best(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"cannot be read: {error}", where=str(path), fix=f"rm {path}") from None


def _best_path(run: Path) -> Path:
    return run / "checkpoints" / "best.json"


def superseded(steps: Iterable[int], step: int, keep: int, always: Collection[int]) -> set[int]:
    """The steps whose checkpoints go once that of `step` is written.

    What stays: the last `keep` up to `step`, and those of `always`. Later ones are what a run left that has gone back,
    because they are damaged: it will write its own.
    """
    done = sorted(s for s in steps if s <= step)
    return {*steps} - {*done[-keep:], *always}


class CheckpointWriter:
    """Writes a run's checkpoints one at a time in a thread of its own. For rank 0; called from one thread.

    A disk that is full or fails is a warning (`poll`): training goes on, and what was written before stays.
    """

    def __init__(self, run: Path, keep: int) -> None:
        """`keep`: how many of the last checkpoints stay, beside the best and the end of each stage."""
        self._run, self._keep = run, keep
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        for left_by_a_killed_run in (run / "checkpoints").glob(".*.part"):
            left_by_a_killed_run.unlink()
        self._best = read_best(run)
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[list[str]] | None = None
        self._warnings: list[str] = []
        self.saved_step: int | None = None
        """Step of the last checkpoint that this writer has put on the disk; wait first."""

    def save(self, arrays: dict[str, np.ndarray], progress: Progress) -> None:
        """Begin to write a snapshot, as soon as the one before it is written."""
        self.wait()
        self._writing = self._thread.submit(self._write, arrays, progress)

    def wait(self) -> None:
        """Until nothing is being written."""
        writing, self._writing = self._writing, None
        if writing:
            self._warnings += writing.result()

    def poll(self) -> list[str]:
        """What has gone wrong since the last call, for people."""
        if self._writing and self._writing.done():
            self.wait()
        warnings, self._warnings = self._warnings, []
        return warnings

    def close(self) -> None:
        """Wait for the last write; `poll` still tells how it went."""
        self._thread.shutdown()
        self.wait()

    def mark_best(self, step: int, metric: str, score: float) -> None:
        """Note the score of a checkpoint: the best one so far is not deleted."""
        self.wait()
        if not checkpoint_path(self._run, step).exists():
            return  # the disk was full: what was best is still the best that there is
        so_far = self._best.score if self._best and self._best.metric == metric else -math.inf
        if not score > so_far:
            return
        best = Best(step, metric, score)
        text = json.dumps(asdict(best)) + "\n"
        try:
            replace_content(_best_path(self._run), text)
            self._best = best
        except OSError as error:
            self._warnings.append(f"step {step} is the best so far but cannot be marked: {error}")

    def _write(self, arrays: dict[str, np.ndarray], progress: Progress) -> list[str]:
        step = progress.position.step
        broken = next((n for n, a in arrays.items() if a.dtype.kind == "f" and not np.isfinite(a).all()), None)
        if broken:  # the next step's loss will not be finite and wants to go back to a checkpoint that is
            return [_not_saved(step, f"{broken} is not finite", self._run)]
        try:
            write_checkpoint(checkpoint_path(self._run, step), arrays, progress)
            self.saved_step = step
            self._drop_old(progress)
        except OSError as error:
            return [_not_saved(step, str(error), self._run)]
        return []

    def _drop_old(self, progress: Progress) -> None:
        paths = checkpoints(self._run)
        always = {*progress.position.stage_ends, *([self._best.step] if self._best else [])}
        for step in superseded(paths, progress.position.step, self._keep, always):
            paths[step].unlink(missing_ok=True)


def _not_saved(step: int, why: str, run: Path) -> str:
    newest = next((p.name for p in reversed(checkpoints(run).values())), "none")
    return f"the checkpoint of step {step} is not saved: {why}. Training goes on; the newest is {newest}"
