"""Regions that start between two pixels of a level, as OpenSlide draws them.

OpenSlide takes positions in level-0 pixels, so at a level most of them fall between pixels. It then has cairo draw each
tile, shifted and bilinearly interpolated with transparency around, under the operator SATURATE: the parts of two tiles
add up along their seam. Seen with OpenSlide 4.0.1 (2025): weights are not quantised, and each drawing is stored as
floor(256 v) of a value v in [0, 1], so inside a tile one rounding tells all, and on a seam each part is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from trainer.slides.images import over_white

_CHUNK_PX = 4096
"""OpenSlide draws larger regions in squares of this side, each from its own level-0 position."""
_NO_SHIFT = 2.0**-10
"""A shift by less than this part of a pixel changes no pixel by more than a quarter of a grey level."""
_STORED = 255.9999 / 255
"""Stored value per grey level: floor(256 v), where 255 itself stays 255."""
_ROWS_AT_ONCE = 32
"""Rows interpolated at a time, so that their floating-point values stay in the processor's cache."""


class Span(NamedTuple):
    """Pixels `start` to `start + length` of a region begin at pixel `first` + `shift` of the level, 0 <= shift < 1."""

    start: int
    length: int
    first: int
    shift: float


def spans(l0_start: int, length: int, downsample: float) -> Iterator[Span]:
    """One axis of a region in the pieces that OpenSlide draws.

    Args:
      l0_start: level-0 pixels; before the slide's border OpenSlide rounds to whole pixels of the level.
      length: pixels of the level.
    """
    for start in range(0, length, _CHUNK_PX):
        l0 = int(l0_start + start * downsample)
        position = l0 / downsample if l0 >= 0 else -int(-l0 / downsample)
        first = math.floor(position + _NO_SHIFT)
        shift = position - first
        shift = round(shift * 65536) / 65536 if shift > _NO_SHIFT else 0.0  # cairo's positions have 16 bits
        yield Span(start, min(_CHUNK_PX, length - start), first, shift)


def blend(
    pixels: np.ndarray, is_opaque: np.ndarray, row_seams: np.ndarray, col_seams: np.ndarray, shift: tuple[float, float]
) -> np.ndarray:
    """A region shifted by parts of a pixel.

    Args:
      pixels: [h + 1, w + 1, 3] uint8, white where the slide has no pixels.
      is_opaque: [h + 1, w + 1] bool, whether the slide has a pixel there.
      row_seams, col_seams: rows below which, and columns right of which, another tile begins or the slide ends.
      shift: (x, y) in [0, 1).
    Returns:
      [h, w, 3] uint8 over white.
    """
    x, y = shift
    region = np.empty((pixels.shape[0] - 1, pixels.shape[1] - 1, 3), np.uint8)
    for top in range(0, len(region), _ROWS_AT_ONCE):
        strip = pixels[top : top + _ROWS_AT_ONCE + 1].astype(np.float32)
        region[top : top + _ROWS_AT_ONCE] = _between(_between(strip, x, 1), y, 0) * np.float32(_STORED)

    all_rows, all_cols = np.arange(region.shape[0]), np.arange(region.shape[1])
    for rows, cols, layers in (
        (row_seams, all_cols, ((2, 3), (0, 1))),
        (all_rows, col_seams, ((1, 3), (0, 2))),
        (row_seams, col_seams, ((3,), (2,), (1,), (0,))),
    ):
        if rows.size and cols.size:
            region[np.ix_(rows, cols)] = _drawn(_parts(pixels, is_opaque, rows, cols, shift), layers)
    return region


def _between(pixels: np.ndarray, shift: float, axis: int) -> np.ndarray:
    """Values between neighbours along an axis: one fewer than before."""
    first, second = (pixels[:-1], pixels[1:]) if axis == 0 else (pixels[:, :-1], pixels[:, 1:])
    if not shift:
        return first
    step = second - first
    step *= np.float32(shift)
    step += first
    return step


def _parts(
    pixels: np.ndarray, is_opaque: np.ndarray, rows: np.ndarray, cols: np.ndarray, shift: tuple[float, float]
) -> list[np.ndarray]:
    """What each of four neighbours (upper left, upper right, lower left, lower right) gives to pixels between them.

    Returns:
      Four [rows, cols, RGBA] float32 in [0, 1], colours times alpha.
    """
    parts = []
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        there = np.ix_(rows + down, cols + right)
        weight = (shift[0] if right else 1 - shift[0]) * (shift[1] if down else 1 - shift[1])
        alpha = is_opaque[there][..., None] * np.float32(weight)
        parts.append(np.concatenate([pixels[there] * np.float32(1 / 255) * alpha, alpha], axis=2))
    return parts


def _drawn(parts: list[np.ndarray], layers: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """Sums of parts, each sum a layer, drawn one after another over nothing, then seen on white: uint8 RGB."""
    drawn = np.zeros(parts[0].shape, np.uint16)
    for layer in layers:
        source = np.sum([parts[i] for i in layer], axis=0)
        target = drawn * np.float32(1 / 255)
        factor = np.minimum(1, (1 - target[..., 3:]) / np.maximum(source[..., 3:], np.float32(1e-9)))
        drawn = np.minimum(255, (source * factor + target) * 256).astype(np.uint16)
    alpha = drawn[..., 3:]
    colours = drawn[..., :3] * 255 // np.maximum(alpha, 1)
    return over_white(np.concatenate([colours, alpha], axis=2).astype(np.uint8))
