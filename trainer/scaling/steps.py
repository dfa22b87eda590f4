"""The timed steps of one run, and steps.csv: one row for each repeat, step and rank."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.errors import StudyError

_INDEX = ("repeat", "step", "rank")
_TIMES = ("step_s", "compute_s", "allreduce_s", "wait_s")


@dataclass(frozen=True, eq=False)
class Steps:
    """Seconds of every timed step, each [repeats, steps, ranks] float64."""

    step_s: np.ndarray
    """The whole step."""
    compute_s: np.ndarray
    allreduce_s: np.ndarray
    """All-reduce that no computing hid; it holds the waiting for slower ranks."""
    wait_s: np.ndarray
    """Waiting for data."""

    def __post_init__(self) -> None:
        shapes = {getattr(self, name).shape for name in _TIMES}
        assert len(shapes) == 1 and self.step_s.ndim == 3, f"not [repeats, steps, ranks] alike: {shapes}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(repeats, steps, ranks)."""
        repeats, steps, ranks = self.step_s.shape
        return repeats, steps, ranks


def as_csv(steps: Steps) -> str:
    """Text of steps.csv; repeats, steps and ranks count from 0, seconds are rounded to nanoseconds."""
    index = np.indices(steps.shape).reshape(3, -1)
    times = [getattr(steps, name).ravel() for name in _TIMES]
    out = io.StringIO()
    header = ",".join((*_INDEX, *_TIMES))
    np.savetxt(out, np.stack([*index, *times], axis=1), ["%d"] * 3 + ["%.9f"] * 4, ",", header=header, comments="")
    return out.getvalue()


def read_steps(path: Path, shape: tuple[int, int, int]) -> Steps:
    """Read steps.csv.

    Args:
      shape: (repeats, steps, ranks) that it must hold, each row once.
    Raises:
      StudyError: it cannot be read, a column or row is missing or there twice, or a number cannot be a duration.
    """
    rows = _read_columns(path)
    index, times = rows[:, :3].astype(np.int64), rows[:, 3:]
    wrong = (times < 0) | ~np.isfinite(times)
    wrong[:, 0] |= times[:, 0] == 0  # a step takes time; its parts may be nothing
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise _damaged(f"{_TIMES[column]} = {times[row, column]:g} at {_named(index[row])} is not a duration", path)
    _check_grid(index, shape, path)
    cube = np.empty((*shape, len(_TIMES)))
    cube[tuple(index.T)] = times
    return Steps(*np.moveaxis(cube, -1, 0))


def _read_columns(path: Path) -> np.ndarray:
    """[rows, 7] float64 in the order of our columns, whatever theirs is."""
    try:
        header, _, body = path.read_text().partition("\n")
        names = header.strip().split(",")
        missing = [n for n in (*_INDEX, *_TIMES) if n not in names]
        if missing:
            raise _damaged(f"has no column {', '.join(missing)}", path)
        if not body.strip():
            raise _damaged("has no rows", path)
        columns = [names.index(n) for n in (*_INDEX, *_TIMES)]
        return np.loadtxt(io.StringIO(body), delimiter=",", usecols=columns, ndmin=2)
    except (OSError, ValueError) as error:
        raise _damaged(f"cannot be read: {error}", path) from None


def _check_grid(index: np.ndarray, shape: tuple[int, int, int], path: Path) -> None:
    """Every (repeat, step, rank) of the shape is there, once, and nothing else is."""
    beyond = ((index < 0) | (index >= shape)).any(axis=1)
    if beyond.any():
        raise _damaged(f"{_named(index[beyond][0])} is none of {_sizes(shape)} that run.json says", path)
    count = np.zeros(shape, np.int64)
    np.add.at(count, tuple(index.T), 1)
    for axis, name in ((0, "repeat"), (2, "rank")):
        empty = np.flatnonzero(count.any(axis=tuple({0, 1, 2} - {axis})) == 0)
        if empty.size:
            raise _damaged(f"has no rows of {name} {', '.join(map(str, empty[:10]))}; expected {_sizes(shape)}", path)
    if (count != 1).any():
        first = np.argwhere(count != 1)[0]
        state = "is missing" if count[tuple(first)] == 0 else "is there twice"
        raise _damaged(f"the row of {_named(first)} {state}; expected {_sizes(shape)}", path)


def _sizes(shape: tuple[int, int, int]) -> str:
    return "{} repeats x {} steps x {} ranks".format(*shape)


def _named(index: np.ndarray) -> str:
    return ", ".join(f"{name} {number}" for name, number in zip(_INDEX, index, strict=True))


def _damaged(what: str, path: Path) -> StudyError:
    return StudyError(what, where=str(path), fix=f"measure the point again, or remove {path.parent}")
