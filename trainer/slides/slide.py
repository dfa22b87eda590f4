"""One slide: its levels and its pixels.

Whole-slide formats are read by OpenSlide; PNG, JPEG and TIFF files that OpenSlide does not know are one-level slides
held in memory. Annotations, tissue and patches are elsewhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openslide

from trainer.errors import SlideError
from trainer.slides.images import IMAGE_SUFFIXES, TIFF_SUFFIXES, ImageFault, over_white, read_image, to_rgb

_TILE_CACHE = openslide.OpenSlideCache(64 << 20)
"""Decoded tiles of all open slides, 64 MiB. OpenSlide's default is 32 MiB for each slide, which does not scale."""


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

    def read(self, x: int, y: int, size: int | tuple[int, int], level: int = 0) -> np.ndarray:
        """Pixels of a region.

        Args:
          x, y: level-0 pixels of the top-left corner; may lie outside the slide.
          size: width and height in pixels of `level`, or both as (width, height).
          level: pyramid level to read.
        Returns:
          [h, w, 3] uint8 RGB; white outside the slide and where the slide is transparent.
        Raises:
          SlideError: no such level, or the file cannot be read (any more).
        """
        width, height = (size, size) if isinstance(size, int | np.integer) else size
        return self._read(int(x), int(y), int(width), int(height), self._checked(level))

    def close(self) -> None:  # noqa: B027 - a plain image has no file to free
        """Free the file. Not needed: a slide that nobody holds any more closes itself."""

    @abstractmethod
    def _read(self, x: int, y: int, width: int, height: int, level: int) -> np.ndarray: ...

    def _checked(self, level: int) -> int:
        if not 0 <= level < self.level_count:
            raise SlideError(
                f"there is no level {level}: the slide has {self.level_count} (0 to {self.level_count - 1})",
                where=str(self.path),
                fix=f"index.level={self.level_count - 1} or less",
            )
        return int(level)


class PyramidSlide(Slide):
    """A slide in any format that OpenSlide opens."""

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

    TIFF is first tried with OpenSlide, which knows pyramids and vendors, then as a plain image.
    Raises:
      SlideError: the file is missing or nothing here can open it; names the file and the reason.
    """
    path = Path(path)
    if not path.exists():
        raise SlideError("there is no such file", where=str(path), fix="correct the path in the manifest")
    reasons, suffix = [], path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES or suffix in TIFF_SUFFIXES:
        try:
            return PyramidSlide(path)
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
    return sum(numbers) / len(numbers) if len(numbers) == 2 and min(numbers) > 0 else None
