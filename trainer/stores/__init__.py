"""Patches as pixels: one interface, one file per store, one line in `STORES` to add one."""

from typing import Protocol

import numpy as np

from trainer.stores.slide_store import SlideStore


class PatchStore(Protocol):
    """What batches and evaluation read from. The order of patches is decided outside; threads may read together."""

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """images [N, P, P, 3] uint8 and labels [N, P, P] uint8 of N index rows with one patch size."""


STORES: dict[str, type[PatchStore]] = {
    "slide": SlideStore,
}
