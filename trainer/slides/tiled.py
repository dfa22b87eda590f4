"""The fast way into tiled JPEG pyramids: read a tile's bytes where the TIFF says they are, decode, paste.

OpenSlide opens the file first and says what its levels are; `tile_levels` then finds out whether each of them is one
TIFF image of JPEG tiles, and `TilePyramid` reads those, giving OpenSlide's pixels three to six times as fast. Every
other format stays with OpenSlide (`slide.py`).
"""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
import tifffile

from trainer.errors import SlideError
from trainer.slides.tile_blend import Span, blend, spans
from trainer.slides.tile_cache import TileCache

_CACHE = TileCache(64 << 20)
"""Decoded tiles of all open slides. 64 MiB are 340 tiles of 256 x 256 px."""
_KEPT_SHARE = 8
"""Regions above this part of the cache leave only those tiles there that their border cuts: the neighbours need these,
while the inner ones would push out everything else."""
_VENDORS = ("aperio", "generic-tiff", "philips")
"""OpenSlide's names of the formats whose levels are one TIFF image each and whose tiles do not overlap."""
_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
"""APP14 segment without its last byte, the colour transform: 0 is RGB, 1 is YCbCr."""
_FIX = "copy the file again from its source, or take the slide out of the data set"


@dataclass(frozen=True, eq=False)
class TileLevel:
    """Where the tiles of a level lie in the file.

    Args:
      size, tile_size: (width, height) in pixels of the level.
      offsets, num_bytes: [tile rows, tile columns] int64; no bytes: the file leaves this tile out.
      header: JPEG segments that go before a tile's own ones: its tables and its colour space.
    """

    size: tuple[int, int]
    tile_size: tuple[int, int]
    offsets: np.ndarray
    num_bytes: np.ndarray
    header: bytes

    def has_pixels(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """[rows, cols] bool, whether there is a tile with these pixels of the level."""
        width, height = self.size
        is_inside = np.logical_and.outer((rows >= 0) & (rows < height), (cols >= 0) & (cols < width))
        if self.num_bytes.all():
            return is_inside
        tile_rows = (rows // self.tile_size[1]).clip(0, len(self.num_bytes) - 1)
        tile_cols = (cols // self.tile_size[0]).clip(0, self.num_bytes.shape[1] - 1)
        return is_inside & (self.num_bytes[np.ix_(tile_rows, tile_cols)] > 0)


def tile_levels(path: Path, vendor: str, level_sizes: Sequence[tuple[int, int]]) -> list[TileLevel] | None:
    """The tiles of each level, or None where some level is no TIFF image of 8-bit RGB or YCbCr JPEG tiles.

    Args:
      vendor, level_sizes: what OpenSlide says of the file.
    Raises:
      SlideError: tiles lie beyond the end of the file.
    """
    if vendor not in _VENDORS:
        return None
    try:
        with tifffile.TiffFile(path) as file:
            pages = _level_pages(file, vendor)
            if len(pages) != len(level_sizes) or not all(map(_is_plain_jpeg, pages)):
                return None
            levels = [_tile_level(page, size) for page, size in zip(pages, level_sizes, strict=True)]
            stored_sizes = [(page.imagewidth, page.imagelength) for page in pages]
    except Exception:  # tifffile raises nearly everything on files that it does not understand; OpenSlide does
        return None
    # Philips pads its images to whole tiles, and OpenSlide cuts the padding off.
    is_padded = vendor == "philips" and bool((np.array(stored_sizes) >= level_sizes).all())
    if stored_sizes != list(level_sizes) and not is_padded:
        return None
    if vendor == "aperio" and not all(level.num_bytes.all() for level in levels):
        return None  # OpenSlide fills gaps in these from the next finer level
    _check_complete(path, levels)
    return levels


def _level_pages(file: tifffile.TiffFile, vendor: str) -> list[tifffile.TiffPage]:
    """The images that OpenSlide takes as levels, finest first."""
    pages = [page.aspage() for page in file.pages]
    tiled = [p for n, p in enumerate(pages) if p.is_tiled and (n == 0 or vendor == "aperio" or p.is_reduced)]
    return sorted(tiled, key=lambda page: -page.imagewidth) if vendor == "generic-tiff" else tiled


def _is_plain_jpeg(page: tifffile.TiffPage) -> bool:
    return (
        page.compression == tifffile.COMPRESSION.JPEG
        and page.photometric in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
        and (page.bitspersample, page.samplesperpixel, page.planarconfig) == (8, 3, tifffile.PLANARCONFIG.CONTIG)
    )


def _tile_level(page: tifffile.TiffPage, size: tuple[int, int]) -> TileLevel:
    across, down = -(-page.imagewidth // page.tilewidth), -(-page.imagelength // page.tilelength)
    transform = 1 if page.photometric == tifffile.PHOTOMETRIC.YCBCR else 0
    tables = _without_app_segments(page.jpegtables).removesuffix(_EOI) if page.jpegtables else b""
    return TileLevel(
        size,
        (page.tilewidth, page.tilelength),
        np.array(page.dataoffsets, np.int64).reshape(down, across),
        np.array(page.databytecounts, np.int64).reshape(down, across),
        _SOI + tables + _ADOBE + bytes([transform]),
    )


def _without_app_segments(jpeg: bytes) -> bytes:
    """A JPEG stream without SOI and the APPn segments after it: OpenSlide goes by TIFF's colour space, not theirs."""
    start = len(_SOI)
    while jpeg[start : start + 1] == b"\xff" and 0xE0 <= int.from_bytes(jpeg[start + 1 : start + 2]) <= 0xEF:
        start += 2 + int.from_bytes(jpeg[start + 2 : start + 4])
    return jpeg[start:]


def _check_complete(path: Path, levels: list[TileLevel]) -> None:
    size = path.stat().st_size
    for number, level in enumerate(levels):
        is_missing = level.offsets + level.num_bytes > size
        if is_missing.any():
            row, col = np.argwhere(is_missing)[0]
            raise SlideError(
                f"is cut short at {size} bytes: {is_missing.sum()} of {is_missing.size} tiles of level {number} lie "
                f"beyond, the first in column {col}, row {row}",
                where=str(path),
                fix=_FIX,
            )


class TilePyramid:
    """Regions of a slide from its tiles. Reading is safe from many threads, which decode side by side.

    Args:
      downsamples: level-0 pixels per pixel of each level.
    """

    _numbers = itertools.count()  # tells the slides in the cache apart

    def __init__(self, path: Path, levels: Sequence[TileLevel], downsamples: Sequence[float]) -> None:
        self._path, self._levels, self._downsamples = path, levels, downsamples
        self._number = next(self._numbers)
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._finalizer = weakref.finalize(self, os.close, self._descriptor)

    def close(self) -> None:
        self._descriptor = -1  # the number may soon be another file's
        self._finalizer()

    def read(self, x: int, y: int, width: int, height: int, level: int) -> np.ndarray:
        """[height, width, 3] uint8 from level-0 position (x, y), equal to OpenSlide's over white within one grey level.

        Raises:
          SlideError: a tile is damaged, or the file cannot be read any more.
        """
        downsample = self._downsamples[level]
        columns, rows = list(spans(x, width, downsample)), list(spans(y, height, downsample))
        if len(columns) == len(rows) == 1:
            return self._piece(columns[0], rows[0], level)
        region = np.empty((height, width, 3), np.uint8)
        for row, column in itertools.product(rows, columns):
            piece = self._piece(column, row, level)
            region[row.start : row.start + row.length, column.start : column.start + column.length] = piece
        return region

    def read_level(self, lv_x: int, lv_y: int, width: int, height: int, level: int) -> np.ndarray:
        """[height, width, 3] uint8 from pixel (lv_x, lv_y) of a level, white outside; nothing is interpolated."""
        tiles = self._levels[level]
        tile_width, tile_height = tiles.tile_size
        left, top = max(lv_x, 0), max(lv_y, 0)
        right, bottom = min(lv_x + width, tiles.size[0]), min(lv_y + height, tiles.size[1])
        is_inside = (right - left, bottom - top) == (width, height)
        region = np.empty((height, width, 3), np.uint8) if is_inside else np.full((height, width, 3), 255, np.uint8)
        if left >= right or top >= bottom:
            return region
        keep_all = region.nbytes * _KEPT_SHARE <= _CACHE.max_bytes
        for row in range(top // tile_height, (bottom - 1) // tile_height + 1):
            y = row * tile_height
            y0, y1 = max(top, y), min(bottom, y + tile_height)
            for col in range(left // tile_width, (right - 1) // tile_width + 1):
                x = col * tile_width
                x0, x1 = max(left, x), min(right, x + tile_width)
                is_kept = keep_all or (x1 - x0, y1 - y0) != tiles.tile_size
                tile = self._tile(level, row, col, is_kept)
                target = region[y0 - lv_y : y1 - lv_y, x0 - lv_x : x1 - lv_x]
                target[:] = 255 if tile is None else tile[y0 - y : y1 - y, x0 - x : x1 - x]
        return region

    def _piece(self, column: Span, row: Span, level: int) -> np.ndarray:
        if not (column.shift or row.shift):
            return self.read_level(column.first, row.first, column.length, row.length, level)
        pixels = self.read_level(column.first, row.first, column.length + 1, row.length + 1, level)
        tiles = self._levels[level]
        rows, cols = row.first + np.arange(row.length + 1), column.first + np.arange(column.length + 1)
        row_seams, col_seams = (
            np.flatnonzero(np.diff(np.where(places < size, places // tile, -1)))
            for places, size, tile in zip((rows, cols), tiles.size[::-1], tiles.tile_size[::-1], strict=True)
        )
        return blend(pixels, tiles.has_pixels(rows, cols), row_seams, col_seams, (column.shift, row.shift))

    def _tile(self, level: int, row: int, col: int, is_kept: bool) -> np.ndarray | None:
        """[tile height, tile width, 3] uint8, None where the file leaves the tile out."""
        key = (self._number, level, row, col)
        tile = _CACHE.get(key)
        if tile is None and self._levels[level].num_bytes[row, col]:
            tile = self._decoded(level, row, col)
            if is_kept:
                _CACHE.put(key, tile)
        return tile

    def _decoded(self, level: int, row: int, col: int) -> np.ndarray:
        tiles = self._levels[level]
        num_bytes = int(tiles.num_bytes[row, col])
        try:
            data = os.pread(self._descriptor, num_bytes, int(tiles.offsets[row, col]))
            if len(data) < num_bytes:
                raise ValueError(f"the file ends {num_bytes - len(data)} bytes before it does")
            # strict: after damaged bytes libjpeg makes up pixels, and imagecodecs and sometimes OpenSlide let it
            tile = simplejpeg.decode_jpeg(tiles.header + _without_app_segments(data), "RGB", strict=True)
            if tile.shape != (*tiles.tile_size[::-1], 3):
                raise ValueError(f"it has {tile.shape[1]} x {tile.shape[0]} px, not {tiles.tile_size}")
            return tile
        except (OSError, ValueError) as error:
            lv_corner = col * tiles.tile_size[0], row * tiles.tile_size[1]
            corner = tuple(round(n * self._downsamples[level]) for n in lv_corner)
            raise SlideError(
                f"the tile in column {col}, row {row} of level {level} (level-0 pixel {corner}) cannot be read: "
                f"{error}",
                where=str(self._path),
                fix=_FIX,
            ) from error
