"""Any store, with each slide's stains mapped to the reference ones as its patches are read."""

from __future__ import annotations

import numpy as np

from trainer.patches.index import PatchIndex
from trainer.slides.stain import Stains, normalise_stains
from trainer.stores import Part, PatchStore


class StainedStore:
    """A PatchStore over another. A slide without stains of its own (too few stained pixels) stays as it is.

    The stains are the slide's, not the patch's: patches of every size from one slide change alike, and a patch of
    little tissue is not stretched to look like a full one.
    """

    def __init__(self, store: PatchStore, index: PatchIndex) -> None:
        self._store, self._index = store, index
        self._stains = [Stains.from_json(i.stains) if i.stains else None for i in index.infos]

    def read(self, rows: np.ndarray, part: Part | None = None) -> tuple[np.ndarray, np.ndarray]:
        """As the store's, normalised."""
        images, labels = self._store.read(rows, part)
        slides = self._index.slide[rows]
        return np.stack([self._normalised(i, int(s)) for i, s in zip(images, slides, strict=True)]), labels

    def read_at(self, slide: int, x: int, y: int, size: int, part: Part | None = None) -> tuple[np.ndarray, np.ndarray]:
        """As the store's, normalised."""
        image, labels = self._store.read_at(slide, x, y, size, part)
        return self._normalised(image, slide), labels

    def _normalised(self, image: np.ndarray, slide: int) -> np.ndarray:
        stains = self._stains[slide]
        return image if stains is None else normalise_stains(image, stains)
