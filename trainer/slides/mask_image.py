"""Mask images as labels: held whole when small, read tile by tile when not.

A mask has its own frame, mask pixels; `labels.py` crosses from level-0 pixels to it. Values are looked up, never
interpolated.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import tifffile

from trainer.config.schema import DataConfig
from trainer.errors import AnnotationError
from trainer.slides.images import TIFF_SUFFIXES, ImageFault, read_image
from trainer.slides.mask_tiled import MaskLevel, TiledMask, picked
from trainer.slides.mask_values import LabelTable, label_table, to_labels

HOLD_PIXELS = 1 << 24
"""Tiled TIFF masks above this are read region by region; held as labels, a mask of this size takes 16 MiB."""


class MaskImage(Protocol):
    """Labels of one mask image; safe to sample from many threads. Level 0 is the mask itself.

    Args:
      path: for messages.
      size: (width, height) in mask pixels.
      levels: finest first; more than one where the mask has a pyramid that can be used.
      faults: why a pyramid that is there is not used -> 1.
    """

    @property
    def path(self) -> Path: ...

    @property
    def size(self) -> tuple[int, int]: ...

    @property
    def levels(self) -> tuple[MaskLevel, ...]: ...

    @property
    def faults(self) -> dict[str, int]: ...

    def sample(self, rows: np.ndarray, columns: np.ndarray, level: int = 0) -> np.ndarray:
        """[len(rows), len(columns)] uint8 labels at ascending rows and columns of a level, all inside it."""


@dataclass(frozen=True)
class HeldMask:
    """A mask held in memory as labels; all of its values are checked when it is opened."""

    path: Path
    labels: np.ndarray

    @classmethod
    def open(cls, path: Path, table: LabelTable) -> HeldMask:
        try:
            return cls(path, to_labels(read_image(path), table, path))
        except ImageFault as fault:
            raise AnnotationError(
                f"mask {fault}", where=str(path), fix="save the mask as PNG, or as a tiled TIFF if it is large"
            ) from None

    @property
    def size(self) -> tuple[int, int]:
        return self.labels.shape[1], self.labels.shape[0]

    @property
    def levels(self) -> tuple[MaskLevel, ...]:
        return (MaskLevel(1, self.size),)

    @property
    def faults(self) -> dict[str, int]:
        return {}

    def sample(self, rows: np.ndarray, columns: np.ndarray, level: int = 0) -> np.ndarray:
        return picked(self.labels, rows, columns).copy()


def open_mask(path: Path, config: DataConfig) -> MaskImage:
    """A mask image with the configuration's meaning of its values.

    Raises:
      AnnotationError: missing, unreadable, too large to hold and not tiled, or (held masks) a value without a class.
    """
    if not path.exists():
        raise AnnotationError("there is no such file", where=str(path), fix="correct the path in the manifest")
    is_tiled = path.suffix.lower() in TIFF_SUFFIXES and _is_large_and_tiled(path)
    return TiledMask(path, label_table(config)) if is_tiled else HeldMask.open(path, label_table(config))


def _is_large_and_tiled(path: Path) -> bool:
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            is_plain = page.planarconfig == tifffile.PLANARCONFIG.CONTIG or page.samplesperpixel == 1
            has_tiles = page.is_tiled and min(page.tilewidth, page.tilelength) > 0
            return has_tiles and is_plain and page.imagewidth * page.imagelength > HOLD_PIXELS
    except Exception as error:  # tifffile raises nearly everything on damaged files
        raise AnnotationError(f"mask cannot be opened: {error}", where=str(path), fix="save it again") from error
