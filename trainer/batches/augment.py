"""Random changes of one patch, a pure function of (seed, epoch, row): the same on any rank, thread or restart.

Ranks that share a patch each make their own rows of it: the numbers are drawn for the patch, and a pixel of the result
depends on where it comes from and on nothing else.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from trainer.batches.warp import draw_map, rows_under, warp
from trainer.config.schema import AugmentConfig
from trainer.slides.stain import hed_jitter
from trainer.stores import Part

Rows = tuple[int, int]
"""Rows `first <= row < last` of a patch."""
Patch = tuple[np.ndarray, np.ndarray]

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_MIDDLE_GREY = 127.5
_BLOCK_PX = 1 << 16
"""Pixels that change colour at once, to bound the float32 copies of a large patch."""


def augment(
    read: Callable[[Part], Patch], size: int, rows: Rows, config: AugmentConfig, rng: np.random.Generator
) -> Patch:
    """Flip, turn, zoom, deform, stain-jitter and colour-jitter one patch, and give some rows of the result.

    Args:
      read: image [h, w, 3] and labels [h, w] uint8 of a part of the patch. Called once, for what the rows come from.
      size: side of the patch, P pixels.
      rows: of the changed patch.
    Returns:
      image [n, P, 3] and labels [n, P] uint8; nearest label where pixels are interpolated.
    """
    turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
    jitter = 1 + rng.uniform(-1, 1, 3) * (config.brightness, config.contrast, config.saturation)
    # what came later draws later, whatever is applied first: the numbers above stay what they were
    stain = config.hed * rng.uniform(-1, 1, (2, 3)) if config.hed else None
    corners = draw_map(size, config.scale, config.elastic, rng) if config.scale or config.elastic else None
    if not config.flip:
        turns, mirror = 0, False
    needed = rows if corners is None else rows_under(corners, size, rows)
    image, label = (np.rot90(pixels, turns) for pixels in read(part_under(needed, size, turns)))
    if mirror:
        image, label = image[:, ::-1], label[:, ::-1]
    if corners is not None:
        image, label = warp(image, label, corners, rows, needed[0])
    if stain is not None:
        image = hed_jitter(image, 1 + stain[0], stain[1])
    if config.brightness or config.contrast or config.saturation:
        image = jitter_colour(image, *jitter)
    return image, label


def part_under(rows: Rows, size: int, turns: int) -> Part:
    """What becomes some rows of a square of `size` pixels when it is turned by so many quarters (as `numpy.rot90`)."""
    first, last = rows if turns in (0, 3) else (size - rows[1], size - rows[0])
    if turns % 2:
        return Part(first, 0, last - first, size)
    return Part(0, first, size, last - first)


def jitter_colour(image: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    """Scale brightness, contrast around middle grey, and saturation around each pixel's grey; factors near 1.

    The three are linear in the pixel, so they are one 3x3 matrix and one offset.
    """
    matrix = saturation * np.eye(3, dtype=np.float32) + (1 - saturation) * np.outer(np.ones(3, np.float32), _LUMA)
    matrix = (brightness * contrast * matrix.T).astype(np.float32)
    offset = np.float32(brightness * (1 - contrast) * _MIDDLE_GREY)
    changed = np.empty(image.shape, np.uint8)
    block = max(1, _BLOCK_PX // image.shape[1])
    for top in range(0, len(image), block):
        pixels = image[top : top + block].astype(np.float32) @ matrix
        pixels += offset
        changed[top : top + block] = np.clip(np.rint(pixels, out=pixels), 0, 255, out=pixels)
    return changed
