"""The map of a slide while it is predicted and until files are made of it: blocks of uint8 in one sparse file.

Beside it `map.json` says what the map was made from, so that a stopped prediction goes on where it was and another
one's folder is refused. A block is marked as finished once its pixels are on the disk.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.errors import PredictionError
from trainer.files import replace_content
from trainer.infer.blend import BLOCK, Place
from trainer.locking import flock

_BLOCKS = "map.blocks"
NOT_PREDICTED = 255
"""Class of a pixel that no tile counts at."""
_SYNC_EVERY_S = 20.0
"""Work that a failing machine may take with it; a process that is killed loses no finished block of this age."""


@dataclass(frozen=True)
class Hole:
    """A square of the map whose pixels could not be read."""

    x: int
    y: int
    side: int
    why: str


class MapFile:
    """Probabilities of a slide's classes, [C, height, width] uint8, of which most may be missing.

    Of 255; a pixel that is predicted has some class above 0, one that is not has none. Held by one process.

    Args:
      folder: holds the map and nothing of another one; made where it is missing.
      size: (width, height) in map pixels.
      made_from: plain data; equal data gives an equal map.
    Raises:
      PredictionError: the folder holds a map made from something else, is not ours, or another process is at it.
    """

    def __init__(self, folder: Path, size: tuple[int, int], num_classes: int, made_from: dict[str, Any]) -> None:
        self.folder, self.size, self.num_classes = folder, size, num_classes
        self._made_from = made_from
        columns, rows = (-(-n // BLOCK) for n in size)
        self._block_bytes = num_classes * BLOCK * BLOCK
        self._start = -(-columns * rows // 4096) * 4096  # before it, a byte for each block: 1 is finished
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(folder)
        try:
            self.holes = holes_of(folder, made_from) or []
            self._write_header()
            self._file = os.open(folder / _BLOCKS, os.O_RDWR | os.O_CREAT, 0o644)
        except BaseException:
            os.close(self._lock)
            raise
        os.ftruncate(self._file, self._start + columns * rows * self._block_bytes)
        marks = os.pread(self._file, columns * rows, 0)
        self._is_finished = np.frombuffer(marks, np.uint8).reshape(rows, columns) == 1
        self._unmarked: list[Place] = []
        self._synced = time.monotonic()

    def finished(self) -> set[Place]:
        """Blocks that are written; those without tissue never are."""
        return {(int(column), int(row)) for row, column in np.argwhere(self._is_finished)}

    def write(self, place: Place, probabilities: np.ndarray) -> None:
        """Write a block; [C, BLOCK, BLOCK] float32, NaN where not predicted."""
        scaled = np.fmax(probabilities, 0)  # of 0 and NaN it takes 0
        scaled *= 255
        _write_all(self._file, np.rint(scaled, out=scaled).astype(np.uint8), self._offset(place))
        self._unmarked.append(place)
        if time.monotonic() - self._synced > _SYNC_EVERY_S:
            self.sync()

    def add_hole(self, hole: Hole) -> None:
        """Note what could not be read; called before the blocks that lack it are written."""
        if hole not in self.holes:
            self.holes.append(hole)
            self._write_header()

    def sync(self) -> None:
        """Put what is written on the disk, then mark it as finished."""
        os.fsync(self._file)
        for column, row in self._unmarked:
            self._is_finished[row, column] = True
            os.pwrite(self._file, b"\1", row * self._is_finished.shape[1] + column)
        self._unmarked.clear()
        self._synced = time.monotonic()

    def read(self, x: int, y: int, width: int, height: int, classes: slice = slice(None)) -> np.ndarray:
        """[C, height, width] uint8 of a region, or of some of its classes; zeros outside the map."""
        numbers = range(self.num_classes)[classes]
        region = np.zeros((len(numbers), height, width), np.uint8)
        for row in range(max(0, y // BLOCK), min(len(self._is_finished), -(-(y + height) // BLOCK))):
            for column in range(max(0, x // BLOCK), min(self._is_finished.shape[1], -(-(x + width) // BLOCK))):
                if self._is_finished[row, column]:
                    left, top = column * BLOCK - x, row * BLOCK - y
                    target = region[:, max(0, top) : top + BLOCK, max(0, left) : left + BLOCK]
                    rows, columns = (slice(max(0, -n), max(0, -n) + length)
                                     for n, length in zip((top, left), target.shape[1:], strict=True))  # fmt: skip
                    target[:] = self._block((column, row), numbers)[:, rows, columns]
        return region

    def read_classes(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """[height, width] uint8, the most probable class (the first of equals), NOT_PREDICTED where there is none."""
        probabilities = self.read(x, y, width, height)
        highest, classes = probabilities[0], np.zeros((height, width), np.uint8)
        for number, probability in enumerate(probabilities[1:], 1):  # argmax takes six times as long
            classes[probability > highest] = number
            np.maximum(highest, probability, out=highest)
        classes[highest == 0] = NOT_PREDICTED
        return classes

    def read_probability(self, number: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """[height, width] uint8 of one class."""
        return self.read(x, y, width, height, slice(number, number + 1))[0]

    def has_predictions(self) -> bool:
        """Whether any pixel is predicted."""
        return any(self._block(place, range(self.num_classes)).any() for place in self.finished())

    def close(self) -> None:
        """Sync, and let others have the folder."""
        self.sync()
        os.close(self._file)
        os.close(self._lock)

    def _write_header(self) -> None:
        header = {"made_from": self._made_from, "holes": [asdict(hole) for hole in self.holes]}
        replace_content(self.folder / "map.json", json.dumps(header, indent=1) + "\n")

    def _offset(self, place: Place) -> int:
        return self._start + (place[1] * self._is_finished.shape[1] + place[0]) * self._block_bytes

    def _block(self, place: Place, numbers: range) -> np.ndarray:
        """[classes, BLOCK, BLOCK] of consecutive classes, which lie one after the other."""
        each = BLOCK * BLOCK
        data = os.pread(self._file, len(numbers) * each, self._offset(place) + numbers.start * each)
        return np.frombuffer(data, np.uint8).reshape(-1, BLOCK, BLOCK)


def _write_all(file: int, pixels: np.ndarray, offset: int) -> None:
    """A nearly full disk takes a part; the next call says why."""
    data = pixels.data.cast("B")
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


def _locked(folder: Path) -> int:
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise PredictionError(
            "another process predicts into it", where=str(folder), fix="wait for it, or give another folder"
        ) from None
    return lock


def remove_blocks(folder: Path) -> None:
    """Delete a map: whatever was wanted has been made of it. The header stays."""
    (folder / _BLOCKS).unlink(missing_ok=True)


def holes_of(folder: Path, made_from: dict[str, Any]) -> list[Hole] | None:
    """Holes of the map that a folder holds or once held; None where there was none.

    Raises:
      PredictionError: it was made from something else.
    """
    path = folder / "map.json"
    if not path.exists():
        return None
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        stored, holes = header["made_from"], [Hole(**hole) for hole in header["holes"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise PredictionError(f"cannot be read: {error}", where=str(path), fix=f"rm -r {folder}") from None
    wanted = json.loads(json.dumps(made_from))  # as it would be read
    different = [key for key in wanted if wanted[key] != stored.get(key)]
    if different:
        key = different[0]
        raise PredictionError(
            f"holds a map with another {key}: {stored.get(key)}, not {wanted[key]}",
            where=str(folder),
            fix=f"give another folder, or rm -r {folder}",
        )
    return holes
