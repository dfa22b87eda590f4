"""Large mask TIFFs, tiled and often pyramidal (CAMELYON17, ASAP): only tiles that are asked for are decoded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import tifffile

from trainer.errors import AnnotationError
from trainer.slides.images import normalised_tiff
from trainer.slides.mask_values import LabelTable, to_labels

_KEPT_TILES = 32
"""Decoded tiles kept per mask, 8 MiB at the usual 512 x 512: neighbouring patches share them, and `MaskLabels` counts
boxes in blocks that fit."""
_REDUCED = 1
"""Bit of NewSubfileType: a smaller version of another image of the file."""
_CHECKED_PIXELS, _CHECKED_SIDE = 32, 4096


@dataclass(frozen=True)
class MaskLevel:
    """One resolution of a mask: mask pixels per pixel of the level, and its (width, height)."""

    factor: int
    size: tuple[int, int]


class TiledMask:
    """A large tiled TIFF; the last few decoded tiles stay.

    Values are checked as they are read: indexing reads every position that training will read.
    """

    def __init__(self, path: Path, table: LabelTable) -> None:
        self.path, self._table = path, table
        self._file = tifffile.TiffFile(path)
        self._page = self._file.pages.first.aspage()
        self._lock = threading.RLock()  # seek and read of the shared file handle belong together
        self._tile = lru_cache(maxsize=_KEPT_TILES)(self._decoded)

    @property
    def size(self) -> tuple[int, int]:
        return self._page.imagewidth, self._page.imagelength

    @property
    def levels(self) -> tuple[MaskLevel, ...]:
        return tuple(MaskLevel(factor, (page.imagewidth, page.imagelength)) for factor, page in self._pages[0])

    @property
    def faults(self) -> dict[str, int]:
        return self._pages[1]

    def sample(self, rows: np.ndarray, columns: np.ndarray, level: int = 0) -> np.ndarray:
        page = self._pages[0][level][1] if level else self._page
        return self._sampled(page, rows, columns)

    def _sampled(self, page: tifffile.TiffPage, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        labels = np.empty((len(rows), len(columns)), np.uint8)
        height, width = page.tilelength, page.tilewidth
        tile_rows, tile_columns = rows // height, columns // width
        for tile_row in np.unique(tile_rows):
            to_rows = np.flatnonzero(tile_rows == tile_row)
            for tile_column in np.unique(tile_columns):
                to_columns = np.flatnonzero(tile_columns == tile_column)
                tile = self._tile(page, int(tile_row), int(tile_column))
                from_rows, from_columns = rows[to_rows] - tile_row * height, columns[to_columns] - tile_column * width
                picked(labels, to_rows, to_columns)[:] = picked(tile, from_rows, from_columns)
        return labels

    def _decoded(self, page: tifffile.TiffPage, tile_row: int, tile_column: int) -> np.ndarray:
        """[tile height, tile width] uint8 labels, cut off at the page's border."""
        number = tile_row * -(-page.imagewidth // page.tilewidth) + tile_column
        left, top = tile_column * page.tilewidth, tile_row * page.tilelength
        height, width = min(page.tilelength, page.imagelength - top), min(page.tilewidth, page.imagewidth - left)
        try:
            count = page.databytecounts[number]
            if count == 0:  # a sparse TIFF leaves out tiles of zeros
                shape = (height, width) if page.samplesperpixel == 1 else (height, width, page.samplesperpixel)
                pixels = np.zeros(shape, page.dtype)
            else:
                with self._lock:
                    self._file.filehandle.seek(page.dataoffsets[number])
                    data = self._file.filehandle.read(count)
                tile, *_ = page.decode(data, number, jpegtables=page.jpegtables)
                pixels = np.asarray(tile)[0, :height, :width]
        except Exception as error:  # decoders raise nearly everything on damaged files
            raise AnnotationError(
                f"mask tile at ({left}, {top}) cannot be decoded: {error}", where=str(self.path), fix="save it again"
            ) from error
        return to_labels(normalised_tiff(page, pixels), self._table, self.path, (left, top))

    @cached_property
    def _pages(self) -> tuple[tuple[tuple[int, tifffile.TiffPage], ...], dict[str, int]]:
        """(factor, page) of every level that can be used, finest first, and why others cannot."""
        with self._lock:
            found = {0: (1, self._page)} | {
                factor: (factor, page) for page in self._reduced() if (factor := whole_factor(self._page, page)) > 1
            }
        pages = tuple(found[factor] for factor in sorted(found))
        if not self._is_nearest(pages[1:]):
            return pages[:1], {"mask pyramid that mixes values of neighbours: level 0 is read": 1}
        return pages, {}

    def _reduced(self) -> Iterator[tifffile.TiffPage]:
        """Smaller versions of the first image: ASAP appends them as pages, others as SubIFDs."""
        try:
            candidates = [*(self._page.pages or ()), *self._file.pages[1:]]
            for page in (candidate.aspage() for candidate in candidates):
                is_alike = page.dtype == self._page.dtype and page.samplesperpixel == self._page.samplesperpixel
                if (
                    page.is_tiled
                    and min(page.tilewidth, page.tilelength) > 0
                    and is_alike
                    and page.subfiletype & _REDUCED
                ):
                    yield page
        except Exception:  # tifffile raises nearly everything on damaged files; level 0 is all that is needed
            return

    def _is_nearest(self, reduced: tuple[tuple[int, tifffile.TiffPage], ...]) -> bool:
        """Whether smaller versions took their values from the pixels beneath and did not average them (ASAP's default).

        Averages of ids are other ids. A few pixels along borders of labels tell; the coarsest level that has borders
        tells most clearly.
        """
        try:
            for factor, page in reversed(reduced):
                if max(page.imagewidth, page.imagelength) > _CHECKED_SIDE:
                    break
                labels = self._sampled(page, np.arange(page.imagelength), np.arange(page.imagewidth))
                rows, columns = np.nonzero(labels[:, 1:] != labels[:, :-1])
                if len(rows):
                    some = np.linspace(0, len(rows) - 1, _CHECKED_PIXELS).astype(int)
                    pixels = zip(rows[some], columns[some], strict=True)
                    return all(labels[pixel] in self._beneath(*pixel, factor) for pixel in pixels)
        except AnnotationError:  # a value without a class, or a damaged tile
            return False
        return True

    def _beneath(self, row: int, column: int, factor: int) -> np.ndarray:
        """Labels under a pixel of a level, and half a pixel around it: writers round a level's size differently."""
        spans = [
            np.arange(max(0, at * factor - factor // 2), min(length, (at + 1) * factor + factor // 2))
            for at, length in ((row, self.size[1]), (column, self.size[0]))
        ]
        return self._sampled(self._page, *spans)


def whole_factor(full: tifffile.TiffPage, small: tifffile.TiffPage) -> int:
    """Pixels of a page per pixel of a smaller one, the same both ways; 0 where that is no whole number."""
    factor = max(1, round(full.imagewidth / max(1, small.imagewidth)))
    pairs = ((full.imagewidth, small.imagewidth), (full.imagelength, small.imagelength))
    return factor if all(abs(f - s * factor) < factor for f, s in pairs) else 0


def picked(array: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """[len(rows), len(columns)]: a view where both are consecutive (ten times faster), else a copy."""
    if (np.diff(rows) == 1).all() and (np.diff(columns) == 1).all():
        return array[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return array[np.ix_(rows, columns)]
