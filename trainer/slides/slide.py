"""One slide: its levels and its pixels.

Whole-slide formats are opened by OpenSlide, which says what their levels are. Pyramids of JPEG tiles (most SVS and
TIFF) are then read tile by tile (`tiled.py`), all others by OpenSlide; PNG, JPEG and TIFF files that OpenSlide does not
know are one-level slides held in memory. Annotations, tissue and patches are elsewhere.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openslide
from PIL import Image

from trainer.errors import SlideError
from trainer.slides.images import IMAGE_SUFFIXES, TIFF_SUFFIXES, ImageFault, over_white, read_image, to_rgb
from trainer.slides.tile_blend import spans
from trainer.slides.tiled import TilePyramid, tile_levels

_TILE_CACHE = openslide.OpenSlideCache(64 << 20)
"""Decoded tiles of all open slides, 64 MiB. OpenSlide's default is 32 MiB for each slide, which does not scale."""
LEVEL_TOLERANCE = 0.005
"""Relative difference of downsamples up to which a level counts as the wanted one: levels are whole pixels in size, so
that of a fourth is not exactly 4."""
_BLOCK_PX = 4096
"""Side of the parts of a level that are reduced at a time, which bounds memory: 50 MB as RGB."""


class Slide(ABC):
    """A pyramid of RGB images. Reading is safe from many threads; `close` is not to be called while others read.

    Attributes:
      path: the file.
      level_sizes: (width, height) of each level in its own pixels; level 0 is the finest.
      downsamples: level-0 pixels per pixel of each level.
      mpp: micrometres per level-0 pixel, None where the file does not say.
    """

    path: Path
    level_sizes: tuple[tuple[int, int], ...]
    downsamples: tuple[float, ...]
    mpp: float | None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in level-0 pixels."""
        return self.level_sizes[0]

    @property
    def level_count(self) -> int:
        return len(self.level_sizes)

    def level_size(self, level: int) -> tuple[int, int]:
        """(width, height) of a level in its own pixels; SlideError where the slide has no such level."""
        return self.level_sizes[self._checked(level)]

    def downsample(self, level: int) -> float:
        """Level-0 pixels per pixel of `level`; SlideError where the slide has no such level."""
        return self.downsamples[self._checked(level)]

    def read(self, x: float, y: float, size: int | tuple[int, int], level: int = 0) -> np.ndarray:
        """Pixels of a region.

        Args:
          x, y: level-0 pixels of the top-left corner; may lie outside the slide. Rounded to whole ones.
          size: width and height in pixels of `level`, or both as (width, height).
          level: pyramid level to read.
        Returns:
          [h, w, 3] uint8 RGB; white outside the slide and where the slide is transparent.
        Raises:
          SlideError: no such level, or the file cannot be read (any more).
        """
        width, height = (size, size) if isinstance(size, int | np.integer) else size
        return self._read(round(x), round(y), int(width), int(height), self._checked(level))

    def best_level(self, downsample: float) -> int:
        """The coarsest level that is at least as fine as `downsample`, within LEVEL_TOLERANCE.

        Raises:
          ValueError: level 0 is coarser.
        """
        fine_enough = [i for i, d in enumerate(self.downsamples) if d <= downsample * (1 + LEVEL_TOLERANCE)]
        if not fine_enough:
            raise ValueError(f"{self.path} has no pixels as fine as downsample {downsample}")
        return max(fine_enough, key=lambda i: self.downsamples[i])

    def resample(self, x: float, y: float, size: int | tuple[int, int], downsample: float) -> np.ndarray:
        """Pixels of a region at any downsample: a level as it is where one fits, else the next finer one reduced.

        The centre of pixel (i, j) lies at level-0 position (x + (i + 0.5) downsample, y + (j + 0.5) downsample).
        Neighbouring regions fit together: pixels around the region count as the filter needs them.

        Args:
          x, y, size: as in `read`, with the size in pixels of the result.
          downsample: level-0 pixels per pixel of the result, at least that of level 0.
        Returns:
          [h, w, 3] uint8 RGB; white outside the slide.
        Raises:
          SlideError: the file cannot be read.
        Source: Pillow's Hamming filter, which is antialiased and nearly as sharp as the means of 2 x 2 pixels that
          scanners build their levels of.
        """
        level = self.best_level(downsample)
        scale = downsample / self.downsamples[level]
        if scale <= 1 + LEVEL_TOLERANCE:
            return self.read(x, y, size, level)
        width, height = (size, size) if isinstance(size, int | np.integer) else size
        region = np.empty((height, width, 3), np.uint8)
        block = max(1, int(_BLOCK_PX / scale))
        for top in range(0, height, block):
            for left in range(0, width, block):
                target = region[top : top + block, left : left + block]
                target[:] = self._reduced(x + left * downsample, y + top * downsample, target.shape, level, scale)
        return region

    def _reduced(self, l0_x: float, l0_y: float, shape: tuple[int, ...], level: int, scale: float) -> np.ndarray:
        """[*shape] uint8, each pixel `scale` pixels of the level wide."""
        height, width = shape[:2]
        margin = math.ceil(scale) + 1  # the filter reaches one pixel of the result beyond the region
        lv_x, lv_y = (math.floor(l0 / self.downsamples[level]) - margin for l0 in (l0_x, l0_y))
        lv_size = math.ceil(width * scale) + 2 * margin + 1, math.ceil(height * scale) + 2 * margin + 1
        pixels, lv_x0, lv_y0 = self._read_level(lv_x, lv_y, *lv_size, level)
        left, top = l0_x / self.downsamples[level] - lv_x0, l0_y / self.downsamples[level] - lv_y0
        box = (left, top, left + width * scale, top + height * scale)
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.HAMMING, box))

    def close(self) -> None:  # noqa: B027 - a plain image has no file to free
        """Free the file. Not needed: a slide that nobody holds any more closes itself."""

    @abstractmethod
    def _read(self, x: int, y: int, width: int, height: int, level: int) -> np.ndarray: ...

    def _read_level(self, lv_x: int, lv_y: int, width: int, height: int, level: int) -> tuple[np.ndarray, float, float]:
        """Pixels from about (lv_x, lv_y) of a level, and the position in the level where they really begin."""
        l0_x, l0_y = (round(lv * self.downsamples[level]) for lv in (lv_x, lv_y))
        starts = (next(spans(l0, 1, self.downsamples[level])) for l0 in (l0_x, l0_y))
        lv_x0, lv_y0 = (span.first + span.shift for span in starts)
        return self._read(l0_x, l0_y, width, height, level), lv_x0, lv_y0

    def _checked(self, level: int) -> int:
        if not 0 <= level < self.level_count:
            raise SlideError(
                f"there is no level {level}: the slide has {self.level_count} (0 to {self.level_count - 1})",
                where=str(self.path),
                fix=f"index.resolution.level={self.level_count - 1} or less",
            )
        return int(level)


class PyramidSlide(Slide):
    """A slide in any format that OpenSlide opens, read by OpenSlide."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = openslide.OpenSlide(path)
        self._file.set_cache(_TILE_CACHE)
        self.level_sizes = self._file.level_dimensions
        self.downsamples = self._file.level_downsamples
        self.mpp = _mpp(self._file.properties)

    def _read(self, x: int, y: int, width: int, height: int, level: int) -> np.ndarray:
        try:
            return over_white(np.asarray(self._file.read_region((x, y), level, (width, height))))
        except openslide.OpenSlideError as error:
            raise SlideError(
                f"reading {width} x {height} px of level {level} at ({x}, {y}) failed: {error}",
                where=str(self.path),
                fix="copy the file again from its source, or take the slide out of the data set",
            ) from error

    def close(self) -> None:
        self._file.close()

    def tile_pyramid(self) -> TilePyramid | None:
        """The faster reader of the same pixels, None where the file's tiles are not plain JPEG."""
        vendor = self._file.properties[openslide.PROPERTY_NAME_VENDOR]
        levels = tile_levels(self.path, vendor, self.level_sizes)
        return None if levels is None else TilePyramid(self.path, levels, self.downsamples)


class TiledSlide(Slide):
    """A pyramid of JPEG tiles with OpenSlide's levels and pixels, read without OpenSlide."""

    def __init__(self, slide: PyramidSlide, tiles: TilePyramid) -> None:
        self.path, self.mpp = slide.path, slide.mpp
        self.level_sizes, self.downsamples = slide.level_sizes, slide.downsamples
        self._tiles = tiles

    def _read(self, x: int, y: int, width: int, height: int, level: int) -> np.ndarray:
        return self._tiles.read(x, y, width, height, level)

    def _read_level(self, lv_x: int, lv_y: int, width: int, height: int, level: int) -> tuple[np.ndarray, float, float]:
        return self._tiles.read_level(lv_x, lv_y, width, height, level), lv_x, lv_y

    def close(self) -> None:
        self._tiles.close()


class ImageSlide(Slide):
    """A plain image as a one-level slide, held in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pixels = to_rgb(read_image(path))
        self.level_sizes = ((self._pixels.shape[1], self._pixels.shape[0]),)
        self.downsamples = (1.0,)
        self.mpp = None

    def _read(self, x: int, y: int, width: int, height: int, level: int) -> np.ndarray:
        region = np.full((height, width, 3), 255, np.uint8)
        left, top = max(x, 0), max(y, 0)
        inside = self._pixels[top : max(y + height, 0), left : max(x + width, 0)]
        region[top - y : top - y + inside.shape[0], left - x : left - x + inside.shape[1]] = inside
        return region


def open_slide(path: str | Path) -> Slide:
    """Open a slide or a plain image.

    TIFF is first tried with OpenSlide, which knows pyramids and vendors, then as a plain image. Where OpenSlide finds a
    pyramid of JPEG tiles, these are read directly.
    Raises:
      SlideError: the file is missing or nothing here can open it; names the file and the reason.
    """
    path = Path(path)
    if not path.exists():
        raise SlideError("there is no such file", where=str(path), fix="correct the path in the manifest")
    reasons, suffix = [], path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES or suffix in TIFF_SUFFIXES:
        try:
            slide = PyramidSlide(path)
            tiles = slide.tile_pyramid()
            return slide if tiles is None else TiledSlide(slide, tiles)
        except openslide.OpenSlideError as error:
            reasons.append(f"OpenSlide: {error}")
    if suffix in IMAGE_SUFFIXES:
        try:
            return ImageSlide(path)
        except ImageFault as error:
            reasons.append(f"as a plain image: {error}")
    raise SlideError(
        f"cannot be opened ({'; '.join(reasons)})",
        where=str(path),
        fix="convert it to a tiled pyramidal TIFF, or take it out of the data set",
    )


def _mpp(properties: Mapping[str, str]) -> float | None:
    values = [properties.get(key) for key in (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)]
    try:
        numbers = [float(v) for v in values if v is not None]
    except ValueError:
        return None
    return sum(numbers) / 2 if len(numbers) == 2 and all(0 < n < math.inf for n in numbers) else None
