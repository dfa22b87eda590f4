"""Patches read directly from the slides: nothing is extracted beforehand, nothing is stored twice."""

from __future__ import annotations

import numpy as np

from trainer.config.schema import Config
from trainer.patches.index import PatchIndex
from trainer.slides.cache import SlideCache
from trainer.slides.labels import Labels, open_labels
from trainer.slides.slide import Slide, open_slide
from trainer.stores import Part

_OPEN_SLIDES = 64
"""Slides kept open per rank. A pyramid costs a few MB besides the shared tile cache, a plain image all its pixels."""


class SlideStore:
    """The default PatchStore. Safe to read from many threads; slides open when their first patch is read.

    Errors (SlideError, AnnotationError) name the slide or annotation file; a patch is never replaced.
    """

    def __init__(self, index: PatchIndex, config: Config) -> None:
        self._index, self._config = index, config.data
        self._open: SlideCache[int, tuple[Slide, Labels]] = SlideCache(self._open_one, _OPEN_SLIDES)

    def read(self, rows: np.ndarray, part: Part | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Patches of one size.

        Args:
          rows: [N] row numbers of the index, N at least 1, all of the same patch size.
          part: of each patch, instead of all of it.
        Returns:
          images [N, P, P, 3] uint8 RGB, labels [N, P, P] uint8 (class numbers or IGNORE_LABEL).
        """
        index = self._index
        columns = (index.slide, index.x, index.y, index.size)
        squares = (tuple(int(column[row]) for column in columns) for row in rows)
        patches = [self.read_at(slide, x, y, size, part) for slide, x, y, size in squares]
        images, labels = zip(*patches, strict=True)
        return np.stack(images), np.stack(labels)

    def read_at(self, slide: int, x: int, y: int, size: int, part: Part | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Any square of a slide, patch or not.

        Args:
          slide: position in `index.slides`.
          x, y: top-left corner, level-0 pixels.
          size: side in patch pixels (`index.infos[slide].downsample` level-0 pixels each).
          part: of the square, instead of all of it; a level that is read as it is begins at a whole level-0 pixel.
        Returns:
          image [size, size, 3] uint8, labels [size, size] uint8.
        """
        pixels, labels = self._open.get(slide)
        downsample = self._index.infos[slide].downsample
        left, top, width, height = part or Part(0, 0, size, size)
        where = (x + left * downsample, y + top * downsample, (width, height), downsample)
        return pixels.resample(*where), labels.read(*where)

    def _open_one(self, number: int) -> tuple[Slide, Labels]:
        record = self._index.slides[number]
        slide = open_slide(record.slide)
        return slide, open_labels(record, slide, self._config)
