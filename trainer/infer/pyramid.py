"""A map of a whole slide as a pyramidal TIFF that OpenSlide, QuPath and ASAP open. Knows nothing of networks.

Level 0 is written as its pixels are read, each further level from the one just written: a few tiles are in memory,
whatever the size of the map. Levels are images of their own that are marked as reduced, as OpenSlide wants them. There
is no OME-XML: it promises levels in SubIFDs, where OpenSlide does not look, and ASAP's own reader refuses a description
that is XML (TIFFImage.cpp). Palettes ASAP leaves to OpenSlide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import tifffile

from trainer.config.schema import IGNORE_LABEL
from trainer.errors import PredictionError
from trainer.files import replace_file

Read = Callable[[int, int, int, int], np.ndarray]
"""read(x, y, width, height) -> uint8 [height, width], a region inside the map, in map pixels."""
TILE_PX = 512
_SMALLEST_LEVEL_PX = 1024
"""A level whose sides are not longer is the last: a viewer shows it whole."""
_NARROWEST_PX = 64
"""Nor is one halved that is narrower: rounded to whole pixels, its sides would tell of different downsamples."""
_PASS_BYTES = 4 << 20
"""Pixels that tifffile compresses in one pass: 16 tiles keep its threads busy; its own choice is 256 MiB."""
_UNPREDICTED = (255, 255, 255)


def write_pyramid(
    path: Path,
    read: Read,
    width: int,
    height: int,
    *,
    mpp: float | None,
    colours: Sequence[tuple[int, int, int]] | None = None,
) -> None:
    """Write a map as a tiled, losslessly compressed BigTIFF pyramid, whole or not at all.

    Every pixel is read once, in tiles of 512 px, row by row. The longer side of the last level is at most 1024 px;
    sides of odd length are rounded up. A tile of one value takes 300 bytes.

    Args:
      read: called from this thread.
      mpp: micrometres per map pixel, None where nobody knows.
      colours: RGB of each class: the map holds class ids, 255 is shown white, and a coarser level takes the top left
        one of 2 x 2 pixels. Without, it holds probabilities, shown in grey, and a coarser level takes the mean.
    """
    halved = _mean_halved if colours is None else _nearest_halved
    palette = None if colours is None else _palette(colours)

    def write(file: BinaryIO) -> None:
        source = read
        with tifffile.TiffWriter(file, bigtiff=True) as tiff:
            for level, (level_width, level_height) in enumerate(level_sizes(width, height)):
                px_per_cm = None if mpp is None else 1e4 / mpp / 2**level
                tiff.write(
                    _tiles(source, level_width, level_height),
                    shape=(level_height, level_width),
                    dtype=np.uint8,
                    tile=(TILE_PX, TILE_PX),
                    compression="deflate",  # by its old number, 32946: ASAP refuses the new one, 8
                    compressionargs={"level": 3},  # 6 takes half as long again, for 2 % of the bytes
                    subfiletype=int(level > 0),  # 1: reduced image, which OpenSlide asks of every further level
                    buffersize=_PASS_BYTES,
                    software="widefield predict",
                    metadata=None,
                    photometric="minisblack" if palette is None else "palette",
                    colormap=palette,
                    resolution=None if px_per_cm is None else (px_per_cm, px_per_cm),
                    resolutionunit="NONE" if px_per_cm is None else "CENTIMETER",
                )
                file.flush()
                source = _halving(Path(file.name), level, halved)

    replace_file(path, write)


def level_sizes(width: int, height: int) -> list[tuple[int, int]]:
    """(width, height) of every level of a map."""
    sizes = [(width, height)]
    while max(sizes[-1]) > _SMALLEST_LEVEL_PX and min(sizes[-1]) >= 2 * _NARROWEST_PX:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


def _tiles(read: Read, width: int, height: int) -> Iterator[np.ndarray]:
    for y in range(0, height, TILE_PX):
        for x in range(0, width, TILE_PX):
            yield read(x, y, min(TILE_PX, width - x), min(TILE_PX, height - y))


def open_pyramid(path: Path) -> tuple[tuple[int, int], Read]:
    """(width, height) of the finest level of a file that `write_pyramid` wrote, and what reads it tile by tile.

    Raises:
      PredictionError: missing, damaged or another kind of file; also when it is read.
    """

    def unreadable(error: Exception) -> PredictionError:
        return PredictionError(
            f"cannot be read: {type(error).__name__}: {error}",
            where=str(path),
            fix=f"rm -r {path.parent}, then run the command again",
        )

    try:
        page, tile = _level(path, 0)
        if (page.tilelength, page.tilewidth, page.dtype) != (TILE_PX, TILE_PX, np.uint8):
            raise ValueError(f"not in uint8 tiles of {TILE_PX} px")
    except Exception as error:  # tifffile and its decoders raise nearly everything on files that are not theirs
        raise unreadable(error) from None

    def read(x: int, y: int, width: int, height: int) -> np.ndarray:
        rows, columns = (
            range(start // TILE_PX, -(-(start + length) // TILE_PX)) for start, length in ((y, height), (x, width))
        )
        try:
            pixels = np.block([[tile(row, column) for column in columns] for row in rows])
        except Exception as error:
            raise unreadable(error) from None
        return pixels[y % TILE_PX :, x % TILE_PX :][:height, :width]

    return (page.imagewidth, page.imagelength), read


def _level(path: Path, level: int) -> tuple[tifffile.TiffPage, Callable[[int, int], np.ndarray]]:
    """A level of a file that may be unfinished, and what reads its tiles by (row, column), cut off at its border."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[level].aspage()
    columns = -(-page.imagewidth // TILE_PX)

    def tile(row: int, column: int) -> np.ndarray:
        index = row * columns + column
        with path.open("rb") as file:
            file.seek(page.dataoffsets[index])
            pixels = page.decode(file.read(page.databytecounts[index]), index)[0]
        assert pixels is not None  # no tile was left out
        return pixels[0, : page.imagelength - row * TILE_PX, : page.imagewidth - column * TILE_PX, 0]

    return page, tile


def _halving(path: Path, level: int, halved: Callable[[np.ndarray], np.ndarray]) -> Read:
    """Reads the level that comes after `level` of an unfinished file; for whole tiles only, as `_tiles` asks."""
    _, tile = _level(path, level)

    def read(x: int, y: int, width: int, height: int) -> np.ndarray:
        row, column = 2 * y // TILE_PX, 2 * x // TILE_PX
        rows = range(row, row + 1 + (height > TILE_PX // 2))
        return halved(
            np.block([[tile(r, c) for c in range(column, column + 1 + (width > TILE_PX // 2))] for r in rows])
        )

    return read


def _mean_halved(pixels: np.ndarray) -> np.ndarray:
    """Rounded means of 2 x 2 pixels; an odd last row or column counts twice."""
    even = np.pad(pixels, [(0, n % 2) for n in pixels.shape], "edge").astype(np.uint16)
    pairs = even[::2] + even[1::2]
    return ((pairs[:, ::2] + pairs[:, 1::2] + 2) // 4).astype(np.uint8)


def _nearest_halved(pixels: np.ndarray) -> np.ndarray:
    return pixels[::2, ::2]


def _palette(colours: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """[3, 256] uint16, TIFF's ColorMap."""
    palette = np.zeros((256, 3), np.uint16)
    palette[: len(colours)] = colours
    palette[IGNORE_LABEL] = _UNPREDICTED
    return palette.T * np.uint16(257)  # 255 becomes 65535
