"""Where on a slide there is tissue: a small mask, its share in any box and its outlines."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

from trainer.config.schema import TissueConfig
from trainer.slides.geometry import mask_rings
from trainer.slides.slide import Slide

_DOWNSAMPLE = 32.0
"""Level-0 pixels per mask pixel on an ordinary slide: 8 um at 0.25 um/px, about one cell."""
_MASK_PX_PER_PATCH = 8
"""Mask pixels that the side of the smallest patch should span, so that its share is known to about 1 %."""
_MAX_MASK_PX = 20_000_000
"""Larger masks are made coarser: the whole takes about 20 bytes per mask pixel, 400 MB at the most."""
_BLOCK_PX = 2048
"""Side of the blocks of a level that are read at once."""
_OTSU_RANGE = (0.05, 0.2)
"""Otsu always splits: glass without tissue along its noise, tissue without glass into pale and dark. Tissue stained
with H&E has a saturation above 0.2 nearly everywhere, glass has less than 0.05, so the threshold stays between."""
_COLOURLESS = 13
"""Largest difference between the channels (0-255) of a grey slide, noise included: 0.05."""
_DARK, _GLASS = 64, 128
"""Fluorescence: most of the slide is darker than the one, and nothing is as white as the other."""
_PEN_AREA_PX, _PEN_EDGE_PX = 64, 2
"""Least area of a pen mark in mask pixels (64 um squared; a marker's dot is 500 um wide), and what is left out around
it, where ink runs out."""
_INK_ROWS = 64
"""Rows of an overview whose optical densities are held at once."""
_DENSITY = -np.log10(np.maximum(np.arange(256, dtype=np.float32), 10) / 255)
"""Optical density of each grey level; below 10 it is the noise of a scanner and JPEG."""


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

    def touches(self, l0_boxes: np.ndarray) -> np.ndarray:
        """Whether there is any tissue in boxes: [N, 4] (left, top, right, bottom), level-0 pixels -> [N] bool."""
        left, right = l0_boxes[:, 0] / self.downsample_x, l0_boxes[:, 2] / self.downsample_x
        top, bottom = l0_boxes[:, 1] / self.downsample_y, l0_boxes[:, 3] / self.downsample_y
        inside = self._sum(right, bottom) - self._sum(left, bottom) - self._sum(right, top) + self._sum(left, top)
        return inside > 1e-6  # of a mask pixel: sums of millions are exact to less

    def outlines(self, tolerance_px: float = 0.5) -> list[np.ndarray]:
        """Borders of the tissue, for drawing.

        Args:
          tolerance_px: largest distance between a ring and the mask's border, mask pixels.
        Returns:
          closed rings, [N, 2] float64 (x, y) level-0 pixels each; holes run the other way round.
        """
        return [ring * (self.downsample_x, self.downsample_y) for ring in mask_rings(self.mask, tolerance_px)]

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All of it as plain arrays for a file, one bit per mask pixel."""
        downsample = np.array([self.downsample_x, self.downsample_y])
        return {"bits": np.packbits(self.mask), "shape": np.array(self.mask.shape), "downsample": downsample}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> TissueMask:
        height, width = (int(n) for n in arrays["shape"])
        mask = np.unpackbits(arrays["bits"], count=height * width).astype(bool).reshape(height, width)
        return cls(mask, *(float(d) for d in arrays["downsample"]))

    def _sum(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Tissue left of and above each point; between grid points the integral of constant pixels is bilinear."""
        height, width = self.mask.shape
        x, y = np.clip(x, 0, width), np.clip(y, 0, height)
        column, row = np.minimum(x.astype(np.int64), width - 1), np.minimum(y.astype(np.int64), height - 1)
        right, down = x - column, y - row
        upper = self._integral[row, column] * (1 - right) + self._integral[row, column + 1] * right
        lower = self._integral[row + 1, column] * (1 - right) + self._integral[row + 1, column + 1] * right
        return upper * (1 - down) + lower * down


def find_tissue(slide: Slide, l0_smallest_patch: int, config: TissueConfig = TissueConfig()) -> TissueMask:  # noqa: B008 - frozen
    """The tissue of a slide at about 1/32 of full size. Small patches make the mask finer, giant slides coarser.

    Args:
      l0_smallest_patch: side of the smallest patch, level-0 pixels.
    Raises:
      SlideError: the slide cannot be read.
    """
    image, downsample_x, downsample_y = _overview(slide, _target_downsample(slide.size, l0_smallest_patch))
    return TissueMask(tissue_pixels(image, config), downsample_x, downsample_y)


def tissue_pixels(image: np.ndarray, config: TissueConfig = TissueConfig()) -> np.ndarray:  # noqa: B008 - frozen
    """Otsu on saturation, without pen marks, dust and small holes. Black (not scanned) and white are never tissue.

    A slide without any colour is judged by its darkness, a fluorescence slide (dark background) by its brightness:
    neither is searched for pen marks or follows `config.saturation`, nor the latter `config.black`.

    Args:
      image: [h, w, 3] uint8 RGB.
    Returns:
      [h, w] bool.
    """
    brightest, darkest = _extremes(image[..., 0], image[..., 1], image[..., 2])
    is_lit = brightest > config.black
    if not is_lit.any():
        return is_lit
    is_pen = np.zeros_like(is_lit)
    if np.median(brightest) < _DARK and np.percentile(darkest, 99.9) < _GLASS:
        is_tissue = _glowing(brightest)
    elif np.percentile((brightest - darkest)[is_lit], 99.9) < _COLOURLESS:
        is_tissue = _above_otsu(255 - brightest, is_lit, None)
    else:
        is_pen = pen_marks(image) if config.exclude_pen else is_pen
        is_tissue = _above_otsu(_saturation(brightest, darkest), is_lit & ~is_pen, config.saturation)
    is_tissue = _without_small(is_tissue, config.min_area_px)
    return ~_without_small(~is_tissue, config.max_hole_px) & ~is_pen


def _extremes(red: np.ndarray, green: np.ndarray, blue: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest and the smallest of three channels, per pixel; 20 times faster than reducing the last axis."""
    return np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)


def _saturation(brightest: np.ndarray, darkest: np.ndarray) -> np.ndarray:
    """The S of HSV, 0 to 255."""
    return ((brightest - darkest) * np.uint16(255) // np.maximum(brightest, 1)).astype(np.uint8)


def _above_otsu(signal: np.ndarray, is_candidate: np.ndarray, threshold: float | None) -> np.ndarray:
    """Candidates whose signal (uint8) is above the threshold (0-1), or above Otsu's where that is None."""
    if threshold is None and is_candidate.any():
        threshold = float(np.clip(threshold_otsu(signal[is_candidate]) / 255, *_OTSU_RANGE))
    return is_candidate & (signal > (threshold or 0) * 255)


def _glowing(brightest: np.ndarray) -> np.ndarray:
    """Tissue of a fluorescence slide: dim stroma between bright nuclei too, hence smoothed and in logarithms."""
    glow = np.log1p(ndimage.gaussian_filter(brightest.astype(np.float32), 2))
    return glow > threshold_otsu(glow)


def pen_marks(image: np.ndarray) -> np.ndarray:
    """Strokes of green, blue and black ink; [h, w, 3] uint8 -> [h, w] bool.

    Ink is told by ratios of optical densities, which do not change with its amount. No stain of routine histology
    absorbs red more than green (red : green is 0.93 in haematoxylin, 0.47 in DAB, 0.07 in eosin; Ruifrok & Johnston
    2001), green, turquoise and blue ink do. Violet-blue ink absorbs both alike but leaves blue alone, of which
    haematoxylin takes 0.45 of what it takes of red. Black ink is dark and absorbs all three alike. Small and thin
    areas are no strokes: they are pigment, foreign bodies, coloured edges.

    Not told: red ink (from blood and eosin), dark violet ink (from haematoxylin), thin ink over dark tissue. Stains
    that are blue or green themselves (Alcian blue, trichromes, methyl green) are taken for ink: turn it off for them.

    Source: the colours are those of the RGB boxes in IBM's deep-histopath and histolab (`GreenPenFilter`,
    `BluePenFilter`); their boxes for blue also take pale haematoxylin. Margins: see the tests' real slides.
    """
    rows = [_ink_coloured(image[top : top + _INK_ROWS]) for top in range(0, len(image), _INK_ROWS)]
    strokes = ndimage.binary_opening(np.concatenate(rows), np.ones((3, 3)))
    strokes = _without_small(strokes, _PEN_AREA_PX)
    return ndimage.binary_dilation(strokes, iterations=_PEN_EDGE_PX) if strokes.any() else strokes


def _ink_coloured(image: np.ndarray) -> np.ndarray:
    red, green, blue = (_DENSITY[image[..., channel]] for channel in range(3))
    most, least = _extremes(red, green, blue)
    is_green_or_blue = red > 1.2 * green + 0.03
    is_violet_blue = (blue < 0.3 * red) & (red > 0.7 * green) & (red > 0.2)
    # mixtures of haematoxylin and DAB come as near to black as 0.226
    is_black = (least > 0.5) & (most - least < 0.225 * most) & (blue < 1.15 * red)
    return is_green_or_blue | is_violet_blue | is_black


def _without_small(mask: np.ndarray, max_px: int) -> np.ndarray:
    """The mask without its connected areas of up to `max_px` pixels."""
    areas, num = ndimage.label(mask)
    sizes = np.zeros(num + 1, np.int64)
    for rows in np.array_split(areas, 16):  # bincount copies what it counts to int64
        sizes += np.bincount(rows.ravel(), minlength=num + 1)
    return mask & (sizes > max_px)[areas]


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
    width, height = slide.level_size(level)
    step = max(1, int(target / downsample + 0.02), math.ceil((width * height / _MAX_MASK_PX) ** 0.5))
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
