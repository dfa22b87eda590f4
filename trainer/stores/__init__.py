"""Patches as pixels: one interface, one file per store."""

from typing import Protocol

import numpy as np


class PatchStore(Protocol):
    """What batches and evaluation read from. The order of patches is decided outside; threads may read together."""

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """images [N, P, P, 3] uint8 and labels [N, P, P] uint8 of N index rows with one patch size."""

    def read_at(self, slide: int, x: int, y: int, size: int, level: int) -> tuple[np.ndarray, np.ndarray]:
        """One square of a slide, a patch of the index or not: image [size, size, 3] and labels [size, size] uint8."""

    def downsample(self, slide: int, level: int) -> float:
        """Level-0 pixels per pixel of a slide's level."""
