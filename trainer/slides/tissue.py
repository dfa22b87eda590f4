"""Where on a slide there is tissue: a small mask, and its share in any box."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

from trainer.slides.slide import Slide

_DOWNSAMPLE = 32.0
"""Level-0 pixels per mask pixel on an ordinary slide: 8 um at 0.25 um/px, about one cell."""
_MASK_PX_PER_PATCH = 8
"""Mask pixels that the side of the smallest patch should span, so that its share is known to about 1 %."""
_MAX_MASK_PX = 1 << 25
"""Larger masks are made coarser: with RGB and integral image this is 270 MB at the most."""
_BLOCK_PX = 2048
"""Side of the blocks of a level that are read at once."""
_SPECK_PX, _HOLE_PX = 16, 64
"""Areas in mask pixels up to which specks are dust and holes are filled (fat and lumina stay open above)."""
_BLACK = 20
"""Brightest channel of pixels that a scanner left black, JPEG noise included."""
_OTSU_RANGE = (0.05, 0.2)
"""Otsu always splits: glass without tissue along its noise, tissue without glass into pale and dark. Tissue stained
with H&E has a saturation above 0.2 nearly everywhere, glass has less than 0.05, so the threshold stays between."""


class TissueMask:
    """Tissue on a coarse grid.

    Args:
      mask: [h, w] bool.
      downsample_x, downsample_y: level-0 pixels per mask pixel.
    """

    def __init__(self, mask: np.ndarray, downsample_x: float, downsample_y: float) -> None:
        self.mask, self.downsample_x, self.downsample_y = mask, downsample_x, downsample_y
        self._integral = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int32)
        self._integral[1:, 1:] = mask.astype(np.int32).cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int32)

    def fraction(self, l0_points: np.ndarray, l0_size: int) -> np.ndarray:
        """Share of tissue in boxes, exact for this mask: cut mask pixels count by the part that is inside.

        Args:
          l0_points: [N, 2] (x, y) top-left corners, level-0 pixels.
          l0_size: side of the boxes, level-0 pixels.
        Returns:
          [N] float32 in [0, 1]; what lies outside the mask is no tissue.
        """
        left, top = l0_points[:, 0] / self.downsample_x, l0_points[:, 1] / self.downsample_y
        right, bottom = left + l0_size / self.downsample_x, top + l0_size / self.downsample_y
        inside = self._sum(right, bottom) - self._sum(left, bottom) - self._sum(right, top) + self._sum(left, top)
        area = l0_size**2 / (self.downsample_x * self.downsample_y)
        return np.clip(inside / area, 0, 1).astype(np.float32)

    def _sum(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Tissue left of and above each point; between grid points the integral of constant pixels is bilinear."""
        height, width = self.mask.shape
        x, y = np.clip(x, 0, width), np.clip(y, 0, height)
        column, row = np.minimum(x.astype(np.int64), width - 1), np.minimum(y.astype(np.int64), height - 1)
        right, down = x - column, y - row
        upper = self._integral[row, column] * (1 - right) + self._integral[row, column + 1] * right
        lower = self._integral[row + 1, column] * (1 - right) + self._integral[row + 1, column + 1] * right
        return upper * (1 - down) + lower * down


def find_tissue(slide: Slide, l0_smallest_patch: int) -> TissueMask:
    """Otsu on saturation at about 1/32 of full size, without dust and small holes.

    Black (not scanned) and white are never tissue. A slide without any colour is judged by its darkness instead.
    Small patches make the mask finer, giant slides coarser.

    Args:
      l0_smallest_patch: side of the smallest patch, level-0 pixels.
    Raises:
      SlideError: the slide cannot be read.
    """
    image, downsample_x, downsample_y = _overview(slide, _target_downsample(slide.size, l0_smallest_patch))
    return TissueMask(tissue_pixels(image), downsample_x, downsample_y)


def tissue_pixels(image: np.ndarray) -> np.ndarray:
    """[h, w, 3] uint8 RGB -> [h, w] bool."""
    brightest, darkest = image.max(axis=2), image.min(axis=2)
    is_lit = brightest > _BLACK
    if not is_lit.any():
        return is_lit
    signal = (brightest - darkest) / np.maximum(brightest, 1).astype(np.float32)
    if np.percentile(signal[is_lit], 99) < _OTSU_RANGE[0]:
        signal = 1 - brightest / np.float32(255)
    threshold = np.clip(threshold_otsu(signal[is_lit]), *_OTSU_RANGE)
    is_tissue = (signal > threshold) & is_lit
    return ~_without_small(~_without_small(is_tissue, _SPECK_PX), _HOLE_PX)


def _without_small(mask: np.ndarray, max_px: int) -> np.ndarray:
    """The mask without its connected areas of up to `max_px` pixels."""
    areas, _ = ndimage.label(mask)
    is_large = np.bincount(areas.ravel()) > max_px
    return mask & is_large[areas]


def _target_downsample(size: tuple[int, int], l0_smallest_patch: int) -> float:
    wanted = min(_DOWNSAMPLE, l0_smallest_patch / _MASK_PX_PER_PATCH)
    return max(1.0, wanted, (size[0] * size[1] / _MAX_MASK_PX) ** 0.5)


def _overview(slide: Slide, target: float) -> tuple[np.ndarray, float, float]:
    """The slide at about `target` level-0 pixels per pixel: ([h, w, 3] uint8, downsample x, downsample y).

    Reads the coarsest level that is fine enough, block by block, and averages whole groups of its pixels, so memory
    does not grow with the level even where a slide has no low one.
    """
    level = max(i for i in range(slide.level_count) if i == 0 or slide.downsample(i) <= target * 1.02)
    downsample = slide.downsample(level)
    step = max(1, int(target / downsample + 0.02))
    width, height = slide.level_size(level)
    image = np.empty((-(-height // step), -(-width // step), 3), np.uint8)
    block = _BLOCK_PX // step  # in pixels of the overview
    for top in range(0, image.shape[0], block):
        for left in range(0, image.shape[1], block):
            shape = min(block, image.shape[0] - top), min(block, image.shape[1] - left)
            l0_x, l0_y = round(left * step * downsample), round(top * step * downsample)
            pixels = slide.read(l0_x, l0_y, (shape[1] * step, shape[0] * step), level)
            groups = pixels.reshape(shape[0], step, shape[1], step, 3)
            image[top : top + shape[0], left : left + shape[1]] = groups.mean(axis=(1, 3)) + 0.5
    return image, slide.size[0] / width * step, slide.size[1] / height * step
