"""Reading extracted patches: checked against the index before the first one is read, then one read of a file each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np

from trainer.config.schema import Config
from trainer.errors import StoreError
from trainer.patches.index import PatchIndex
from trainer.slides.cache import SlideCache
from trainer.stores import Part
from trainer.stores.coding import EncodedPatch, decode
from trainer.stores.contents import Contents, contents_of_slide, differences
from trainer.stores.lookup import patch_around, patch_at
from trainer.stores.patch_files import OpenFile, PatchFormat, PatchTable

_OPEN_FILES = 256
"""File descriptors kept; the usual limit of a process is 1024. Opening one again is one system call."""
_KEPT_PATCHES = 4
"""Decoded large patches kept for squares inside them: 17 MB each at 2048 px."""
_SHOWN_PROBLEMS = 3
_FIX = "widefield extract CONFIG (it does again exactly the files that are missing or differ)"

Patch = tuple[np.ndarray, np.ndarray]
Key = tuple[int, int]
"""Number of the slide, patch size."""


class Source(Protocol):
    """Where the bytes of index rows come from. Safe to ask from many threads."""

    def encoded(self, row: int) -> EncodedPatch:
        """The patch of an index row."""

    def file_of(self, row: int) -> Path:
        """The file it comes from, for messages."""


class PatchFiles:
    """The files of all slides and sizes of an index.

    Tables stay in memory once read (20 bytes a patch); file descriptors are bounded.
    """

    def __init__(self, index: PatchIndex, config: Config, format: PatchFormat) -> None:
        self._index, self._format = index, format
        self._wanted: dict[Key, Contents] = {
            (slide, contents.patch_size): contents
            for slide in range(len(index.slides))
            for contents in contents_of_slide(index, config, slide, format.suffix)
        }
        self._tables: SlideCache[Key, tuple[int, PatchTable]] = SlideCache(self._read_table, len(self._wanted) or 1)
        self._files: SlideCache[Key, OpenFile] = SlideCache(lambda key: OpenFile(self._path(key)), _OPEN_FILES)

    def check(self) -> None:
        """Compare every file with what the index and the settings say.

        Raises:
          StoreError: files are missing, not whole, or hold something else.
        """
        check_files(list(self._wanted.values()), self._format)

    def encoded(self, row: int) -> EncodedPatch:
        key = self._key(row)
        try:
            first, table = self._tables.get(key)
            return table.read(self._files.get(key).number, row - first)
        except (OSError, EOFError) as error:
            raise StoreError(f"cannot be read: {error}", where=str(self._path(key)), fix=_FIX) from error

    def lengths(self, row: int) -> tuple[int, int]:
        """Bytes of the image and of the labels of a row."""
        first, table = self._tables.get(self._key(row))
        return int(table.image_bytes[row - first]), int(table.label_bytes[row - first])

    def file_of(self, row: int) -> Path:
        return self._path(self._key(row))

    def _path(self, key: Key) -> Path:
        return self._wanted[key].path

    def _key(self, row: int) -> Key:
        return int(self._index.slide[row]), int(self._index.size[row])

    def _read_table(self, key: Key) -> tuple[int, PatchTable]:
        return self._index.rows_of(*key).start, self._format.read_table(self._path(key))


class ExtractedStore:
    """A PatchStore over extracted patches. Subclasses say their format.

    Args:
      source: where the bytes come from instead of the files in `stores.path`, see `stage`.
    """

    format: ClassVar[PatchFormat]

    def __init__(self, index: PatchIndex, config: Config, source: Source | None = None) -> None:
        self.index, self.config = index, config
        self.source = source or PatchFiles(index, config, self.format)
        self._large: SlideCache[int, Patch] = SlideCache(self._decoded, _KEPT_PATCHES)

    def read(self, rows: np.ndarray, part: Part | None = None) -> Patch:
        """Patches of one size, or part of each: images [N, P, P, 3] and labels [N, P, P] uint8 of N index rows.

        Raises:
          StoreError: the bytes are damaged; names the file.
        """
        size = int(self.index.size[rows[0]])
        images, labels = np.empty((len(rows), size, size, 3), np.uint8), np.empty((len(rows), size, size), np.uint8)
        for row, image, label in zip(rows, images, labels, strict=True):
            self._decode(int(row), image, label)
        if part is None:
            return images, labels
        return images[:, *part.slices].copy(), labels[:, *part.slices].copy()

    def read_at(self, slide: int, x: int, y: int, size: int, part: Part | None = None) -> Patch:
        """One square of a slide, or part of it: a patch of the index, or cut from a larger one.

        The square's own patch comes first, then the largest that holds it.
        Raises:
          StoreError: no stored patch holds it.
        """
        row = patch_at(self.index, slide, x, y, size)
        if row is not None:
            images, labels = self.read(np.array([row]), part)
            return images[0], labels[0]
        crop = patch_around(self.index, slide, x, y, size)
        if crop is None:
            raise StoreError(
                f"no extracted patch holds the {size} px square at ({x}, {y})",
                where=str(self.index.slides[slide].slide),
                fix="stores.kind=slide reads any square",
            )
        image, labels = self._large.get(crop.row)
        left, top, width, height = part or Part(0, 0, size, size)
        place = Part(crop.left + left, crop.top + top, width, height).slices
        return image[place].copy(), labels[place].copy()

    def _decoded(self, row: int) -> Patch:
        images, labels = self.read(np.array([row]))
        return images[0], labels[0]

    def _decode(self, row: int, image: np.ndarray, labels: np.ndarray) -> None:
        try:
            decode(self.source.encoded(row), image, labels)
        except ValueError as error:
            raise StoreError(f"patch {row} of the index is damaged: {error}", where=str(self.source.file_of(row)),
                             fix="delete the file, then " + _FIX) from error  # fmt: skip


def problem_with(contents: Contents, format: PatchFormat) -> str:
    """What is wrong with a file in a few words; '' where it is whole and holds what it should."""
    if not contents.path.exists():
        return "is missing"
    try:
        return "; ".join(differences(format.read_header(contents.path), contents.header))
    except (OSError, KeyError, ValueError) as error:
        return f"is not whole ({error})"


def check_files(wanted: Sequence[Contents], format: PatchFormat) -> None:
    """Raise StoreError with the first few files that are missing or differ, and their number."""
    problems = [(c.path, p) for c in wanted if (p := problem_with(c, format))]
    if len(problems) == 1:
        raise StoreError(problems[0][1], where=str(problems[0][0]), fix=_FIX)
    if problems:
        shown = "\n".join(f"  {path}: {problem}" for path, problem in problems[:_SHOWN_PROBLEMS])
        more = f"\n  and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
        raise StoreError(
            f"{len(problems)} of {len(wanted)} files are missing or hold something else than the index and the "
            f"settings say:\n{shown}{more}",
            where="stores.path",
            fix=_FIX,
        )
