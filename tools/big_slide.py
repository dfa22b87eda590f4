"""A slide of any size from the real pixels of a small one, in seconds: `big_slide.py OUT.tif --from SLIDE.svs`.

The square of the source that holds most tissue is encoded once as JPEG tiles, and these are repeated over the canvas
and its pyramid, so that tiles cost to decode what real ones cost. With `--tissue 0.5` half of the area is glass:
near-white noise around a few ellipses of tissue. The same arguments give the same bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

from trainer.slides.slide import Slide, open_slide

TILE_PX = 256
UM_PER_PX = 0.5
JPEG_QUALITY = 80
SMALLEST_LEVEL_PX = 1000
_SOURCE_PX = 1024
_GLASS, _GLASS_NOISE = 243, 2
_ELLIPSES = ((0.30, 0.32, 0.24, 0.20), (0.68, 0.30, 0.16, 0.22), (0.50, 0.72, 0.34, 0.17))
"""Centre and radii (x, y) relative to the slide, before all radii are scaled to the share of tissue that is wanted."""


def write_big_slide(path: Path, source: Path, width: int, height: int, tissue: float = 1.0) -> None:
    """A BigTIFF pyramid of 256 px JPEG tiles at 0.5 um/px, each level half of the one before.

    Args:
      source: any slide of at least 1024 x 1024 px.
      width, height: level-0 pixels.
      tissue: share of the area that holds the source's pixels, 0 to 1; the rest is glass.
    """
    pixels = _densest_square(open_slide(source))
    glass = np.random.default_rng(0).normal(_GLASS, _GLASS_NOISE, (_SOURCE_PX, _SOURCE_PX, 3)).clip(0, 255)
    patterns = pixels, glass.astype(np.uint8)
    scale = _ellipse_scale(tissue)
    num_levels = 1 + sum(max(width, height) >> n >= SMALLEST_LEVEL_PX for n in range(1, 32))
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level in range(num_levels):
            size = max(1, width >> level), max(1, height >> level)
            px_per_cm = 1e4 / UM_PER_PX / 2**level
            tiff.write(
                _tiles(patterns, size, scale),
                shape=(size[1], size[0], 3),
                dtype=np.uint8,
                photometric="ycbcr",
                tile=(TILE_PX, TILE_PX),
                compression="jpeg",
                subsampling=(2, 2),
                resolution=(px_per_cm, px_per_cm),
                resolutionunit="CENTIMETER",
                subfiletype=int(level > 0),
                software="widefield tools/big_slide.py",
                metadata=None,
            )
            patterns = _halved(patterns[0]), _halved(patterns[1])


def _densest_square(slide: Slide) -> np.ndarray:
    """The [1024, 1024, 3] pixels with the strongest colours: whole tissue, as JPEG finds it hardest."""
    cell = 32
    overview = slide.resample(0, 0, (slide.size[0] // cell, slide.size[1] // cell), cell)
    colour = (overview.max(axis=2) - overview.min(axis=2)).astype(float)
    sums = np.lib.stride_tricks.sliding_window_view(colour, (_SOURCE_PX // cell,) * 2).sum(axis=(2, 3))
    row, col = np.unravel_index(sums.argmax(), sums.shape)
    return slide.read(int(col) * cell, int(row) * cell, _SOURCE_PX)


def _tiles(patterns: tuple[np.ndarray, np.ndarray], size: tuple[int, int], scale: float) -> Iterator[bytes]:
    """Encoded tiles of a level, row by row; only those that the ellipses cut are encoded one by one."""
    tissue, glass = ([[_jpeg(tile) for tile in row] for row in _cut(pattern)] for pattern in patterns)
    raw = [_cut(pattern) for pattern in patterns]
    num = len(tissue)
    probes, centres = np.linspace(0, TILE_PX, 9), np.arange(TILE_PX) + 0.5
    for row, col in np.ndindex(-(-size[1] // TILE_PX), -(-size[0] // TILE_PX)):
        i, j, corner = row % num, col % num, np.array((col, row)) * TILE_PX
        is_tissue = _is_tissue(corner, probes, size, scale)
        if is_tissue.all() or not is_tissue.any():
            yield (tissue if is_tissue.all() else glass)[i][j]
        else:
            is_tissue = _is_tissue(corner, centres, size, scale)
            yield _jpeg(np.where(is_tissue[..., None], raw[0][i][j], raw[1][i][j]))


def _is_tissue(corner: np.ndarray, places: np.ndarray, size: tuple[int, int], scale: float) -> np.ndarray:
    """[n, n] bool at the given places of a tile, right of and below its corner (pixels of a level with this size)."""
    x, y = (corner[0] + places)[None] / size[0], (corner[1] + places)[:, None] / size[1]
    return np.any([((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 <= scale**2 for cx, cy, rx, ry in _ELLIPSES], axis=0)


def _ellipse_scale(tissue: float) -> float:
    """The factor for all radii at which the ellipses cover this share of the slide."""
    low, high = 0.0, 16.0
    for _ in range(40):
        scale = (low + high) / 2
        is_enough = _is_tissue(np.zeros(2), np.arange(512) + 0.5, (512, 512), scale).mean() >= tissue
        low, high = (low, scale) if is_enough else (scale, high)
    return high if tissue > 0 else 0.0


def _cut(pattern: np.ndarray) -> list[list[np.ndarray]]:
    """A square as rows of tiles, repeated where it is smaller than one tile."""
    pattern = np.tile(pattern, (max(1, TILE_PX // len(pattern)),) * 2 + (1,))
    starts = range(0, len(pattern), TILE_PX)
    return [[pattern[y : y + TILE_PX, x : x + TILE_PX] for x in starts] for y in starts]


def _jpeg(tile: np.ndarray) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(tile), level=JPEG_QUALITY, subsampling="420"))


def _halved(pattern: np.ndarray) -> np.ndarray:
    side = len(pattern)
    if side == 1:
        return pattern
    return (pattern.reshape(side // 2, 2, side // 2, 2, 3).mean(axis=(1, 3)) + 0.5).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, metavar="OUT.tif")
    parser.add_argument("--from", dest="source", type=Path, required=True, metavar="SLIDE")
    parser.add_argument("--width", type=int, default=60_000, help="level-0 pixels")
    parser.add_argument("--height", type=int, default=40_000, help="level-0 pixels")
    parser.add_argument("--tissue", type=float, default=1.0, help="share of the area that is tissue")
    arguments = parser.parse_args()
    write_big_slide(arguments.path, arguments.source, arguments.width, arguments.height, arguments.tissue)


if __name__ == "__main__":
    main()
