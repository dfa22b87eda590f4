"""Patches as pixels: one interface, one file per store, one line per store in the registry below."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from trainer.config.schema import Config
from trainer.patches.index import PatchIndex

if TYPE_CHECKING:
    from trainer.stores.patch_files import PatchFormat


class Part(NamedTuple):
    """A rectangle of a square, in its pixels."""

    left: int
    top: int
    width: int
    height: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Of an array whose first two axes are the square's rows and columns."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


class PatchStore(Protocol):
    """What batches and evaluation read from. The order of patches is decided outside; threads may read together."""

    def read(self, rows: np.ndarray, part: Part | None = None) -> tuple[np.ndarray, np.ndarray]:
        """images [N, P, P, 3] uint8 and labels [N, P, P] uint8 of N index rows with one patch size.

        With a part: of each patch only that. Slides are read only there; an extracted patch is decoded whole.
        """

    def read_at(self, slide: int, x: int, y: int, size: int, part: Part | None = None) -> tuple[np.ndarray, np.ndarray]:
        """One square of a slide, or part of it: image [size, size, 3] and labels [size, size] uint8.

        It need not be a patch of the index. Stores of extracted patches hold only squares that lie inside one.
        """


_STORES = {
    "slide": "trainer.stores.slide_store:SlideStore",
    "hdf5": "trainer.stores.hdf5_store:Hdf5Store",
    "tfrecord": "trainer.stores.tfrecord_store:TfrecordStore",
}
"""`stores.kind` -> the class; imported when asked for, so that h5py and TensorFlow cost nothing to others."""


def open_store(index: PatchIndex, config: Config, rows: np.ndarray | None = None, *, checks: bool = True) -> PatchStore:
    """The store that the configuration names, staged and stain-normalised as it says.

    Args:
      rows: index rows that this rank will train on: copied to `stores.stage_to` where that is set.
      checks: `check_store` first.
    Raises:
      StoreError: as `check_store`, or the staging folder cannot take the patches.
    """
    if checks:
        check_store(index, config)
    store: Any = _store_class(config.stores.kind)(index, config)
    if config.stores.stage_to and rows is not None:
        from trainer.stores.stage import stage

        store = stage(store, rows, config.stores.stage_to)
    if config.stain.normalise == "none":
        return store
    from trainer.stores.stained import StainedStore

    return StainedStore(store, index)


def check_store(index: PatchIndex, config: Config) -> None:
    """Compare extracted files with the index, the slides and the settings. One rank does it for all: it opens each.

    Raises:
      StoreError: files are missing, not whole, or were made from another index, slide or configuration.
    """
    if config.stores.kind != "slide":
        _store_class(config.stores.kind)(index, config).source.check()


def store_format(kind: str) -> PatchFormat:
    """How a store of extracted patches (`hdf5`, `tfrecord`) writes and reads its files."""
    return _store_class(kind).format


def _store_class(kind: str) -> Any:
    module, name = _STORES[kind].split(":")
    return getattr(import_module(module), name)
