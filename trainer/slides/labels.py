"""The label of every pixel of a slide, from whatever annotates it: ASAP polygons, a mask image, or nothing.

Labels are class numbers (positions in `data.classes`) or IGNORE_LABEL; pixels outside the slide are IGNORE_LABEL. No
full-resolution mask is ever made: reads touch the region, shares are areas of polygons or counts over the boxes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from trainer.config.schema import IGNORE_LABEL, DataConfig
from trainer.errors import AnnotationError
from trainer.slides.annotations import label_geometries, read_asap
from trainer.slides.dataset import SlideRecord
from trainer.slides.geometry import area_shares, l0_centres, rasterise, subdivide
from trainer.slides.images import IMAGE_SUFFIXES
from trainer.slides.mask_image import MaskImage, open_mask
from trainer.slides.slide import Slide

_STRIP_ROWS = 1024


class Labels(Protocol):
    """Safe to use from many threads."""

    def read(self, x: int, y: int, size: int, level: int = 0) -> np.ndarray:
        """[size, size] uint8 labels at the pixel centres of what `Slide.read` gives for the same arguments."""

    def fractions(self, l0_points: np.ndarray, l0_size: int) -> np.ndarray:
        """Share of each class in boxes that lie inside the slide.

        Args:
          l0_points: [N, 2] int64 (x, y) top-left corners, level-0 pixels.
          l0_size: side of the boxes, level-0 pixels.
        Returns:
          [N, num_classes] float32; ignored pixels belong to no class, so rows may sum to less than 1.
        """


def open_labels(record: SlideRecord, slide: Slide, config: DataConfig) -> Labels:
    """The labels of one slide.

    Raises:
      AnnotationError: the annotation is missing, unreadable, of an unknown kind, or does not fit slide or config.
    """
    path = record.annotation
    if path is None:
        return PolygonLabels({}, slide, len(config.classes))
    if path.suffix.lower() == ".xml":
        areas = label_geometries(read_asap(path), config, slide.size, path)
        return PolygonLabels(areas, slide, len(config.classes))
    if path.suffix.lower() in IMAGE_SUFFIXES:
        mask = open_mask(path, config)
        return MaskLabels(mask, slide, len(config.classes))
    raise AnnotationError(
        f"annotations of type '{path.suffix}' are not known",
        where=str(path),
        fix=f"give ASAP .xml or a mask image ({' '.join(IMAGE_SUFFIXES)})",
    )


class PolygonLabels:
    """Labels from areas that do not overlap; what no area covers is class 0.

    Args:
      areas: label -> (Multi)Polygon in level-0 pixels, inside the slide.
    """

    def __init__(self, areas: Mapping[int, BaseGeometry], slide: Slide, num_classes: int) -> None:
        self._slide, self._num_classes = slide, num_classes
        pieces = [(label, piece) for label, area in areas.items() for piece in subdivide(area)]
        self._labels = np.array([label for label, _ in pieces], np.int64)
        self._tree = shapely.STRtree([piece for _, piece in pieces])

    def read(self, x: int, y: int, size: int, level: int = 0) -> np.ndarray:
        downsample = self._slide.downsample(level)
        labels = np.zeros((size, size), np.uint8)
        l0_side = size * downsample
        near = self._tree.query(shapely.box(x, y, x + l0_side, y + l0_side))
        for label in np.unique(self._labels[near]):
            pieces = self._tree.geometries[np.sort(near[self._labels[near] == label])]
            labels[rasterise(shapely.multipolygons(pieces), x, y, size, downsample)] = label
        return _ignore_outside(labels, x, y, downsample, self._slide)

    def fractions(self, l0_points: np.ndarray, l0_size: int) -> np.ndarray:
        # Ignored areas take the column after the classes here; the first class is what is left of 1.
        column = np.where(self._labels == IGNORE_LABEL, self._num_classes, self._labels)
        shares = area_shares(self._tree, l0_points, l0_size, column, self._num_classes + 1)
        shares[:, 0] = np.maximum(1 - shares[:, 1:].sum(axis=1), 0)
        return shares[:, : self._num_classes].astype(np.float32)


class MaskLabels:
    """Labels from a mask image of the slide's size or a whole factor smaller (the same both ways).

    Raises:
      AnnotationError: the mask has another size.
    """

    def __init__(self, mask: MaskImage, slide: Slide, num_classes: int) -> None:
        self._mask, self._slide, self._num_classes = mask, slide, num_classes
        self._factor = _factor(mask.size, slide.size, mask.path, slide.path)

    def read(self, x: int, y: int, size: int, level: int = 0) -> np.ndarray:
        downsample = self._slide.downsample(level)
        rows = self._mask_positions(l0_centres(y, size, downsample), 1)
        columns = self._mask_positions(l0_centres(x, size, downsample), 0)
        return _ignore_outside(self._mask.sample(rows, columns), x, y, downsample, self._slide)

    def fractions(self, l0_points: np.ndarray, l0_size: int) -> np.ndarray:
        counts = np.stack([self._counts(int(x), int(y), l0_size) for x, y in l0_points]) if len(l0_points) else (
            np.zeros((0, 256)))  # fmt: skip
        return (counts[:, : self._num_classes] / l0_size**2).astype(np.float32)

    def _counts(self, x: int, y: int, l0_size: int) -> np.ndarray:
        """[256] level-0 pixels of each label in a box, counted in strips to bound memory for huge boxes."""
        columns, widths = np.unique(self._mask_positions(l0_centres(x, l0_size, 1), 0), return_counts=True)
        rows, heights = np.unique(self._mask_positions(l0_centres(y, l0_size, 1), 1), return_counts=True)
        counts = np.zeros(256)
        for start in range(0, len(rows), _STRIP_ROWS):
            strip = slice(start, start + _STRIP_ROWS)
            labels = self._mask.sample(rows[strip], columns).ravel()
            weights = None if self._factor == 1 else np.outer(heights[strip], widths).ravel()
            counts += np.bincount(labels, weights, minlength=256)
        return counts

    def _mask_positions(self, l0_centres: np.ndarray, axis: int) -> np.ndarray:
        """Mask pixels under level-0 coordinates, the nearest one beyond its border; axis 0 is x, 1 is y."""
        return np.clip(l0_centres // self._factor, 0, self._mask.size[axis] - 1).astype(np.int64)


def _factor(mask_size: tuple[int, int], slide_size: tuple[int, int], path: Path, slide_path: Path) -> int:
    """Level-0 pixels per mask pixel. The last mask row and column may be cut off or padded (less than one pixel)."""
    factor = max(1, round(slide_size[0] / mask_size[0]))
    if all(abs(full - small * factor) < factor for full, small in zip(slide_size, mask_size, strict=True)):
        return factor
    raise AnnotationError(
        f"the mask has {mask_size[0]} x {mask_size[1]} px, its slide {slide_path.name} {slide_size[0]} x "
        f"{slide_size[1]}: that is no whole factor, the same both ways",
        where=str(path),
        fix="save the mask at the slide's size or at 1/2, 1/4, ... of it",
    )


def _ignore_outside(labels: np.ndarray, x: int, y: int, downsample: float, slide: Slide) -> np.ndarray:
    """Pixels whose centre is not on the slide take IGNORE_LABEL: they show white, which nobody annotated."""
    (width, height), (num_rows, num_columns) = slide.size, labels.shape
    if x < 0 or y < 0 or x + num_columns * downsample > width or y + num_rows * downsample > height:
        columns, rows = l0_centres(x, num_columns, downsample), l0_centres(y, num_rows, downsample)
        labels[:, (columns < 0) | (columns >= width)] = IGNORE_LABEL
        labels[(rows < 0) | (rows >= height), :] = IGNORE_LABEL
    return labels
