"""The label of every pixel of a slide, from whatever annotates it: drawn areas, a mask image, or nothing.

Labels are class numbers (positions in `data.classes`) or IGNORE_LABEL; pixels outside the slide are IGNORE_LABEL. No
full-resolution mask is ever made: reads touch the region, shares are areas of polygons or counts over the boxes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from trainer.config.schema import IGNORE_LABEL, DataConfig
from trainer.errors import AnnotationError
from trainer.slides.annotations import (
    ANNOTATION_SUFFIXES,
    AnnotationReport,
    Drawing,
    label_geometries,
    read_annotations,
)
from trainer.slides.annotations.report import report_of
from trainer.slides.dataset import SlideRecord
from trainer.slides.geometry import area_shares, l0_centres, rasterise, subdivide
from trainer.slides.images import IMAGE_SUFFIXES
from trainer.slides.mask_image import HeldMask, MaskImage, open_mask
from trainer.slides.outlines import polygon_rings, traced_rings
from trainer.slides.slide import Slide

_STRIP_ROWS = 1024
_BLOCK_PIXELS = 2048
"""Boxes are counted in blocks of so many mask pixels a side, whose tiles a tiled mask keeps decoded."""
_PIXELS_PER_SIDE = 128
"""Shares of a box may come from a coarser version of a mask while it has so many pixels along the box's side."""
_COUNTED_PIXELS = 1 << 24
"""A tiled mask's classes are counted on a level of at most so many pixels."""
_TRACED_SIDE = 4096
"""Outlines of masks are traced on at most so many pixels a side."""


class Labels(Protocol):
    """Safe to use from many threads."""

    def read(self, x: float, y: float, size: int | tuple[int, int], downsample: float = 1.0) -> np.ndarray:
        """[h, w] uint8 labels at the pixel centres of what a slide shows there.

        Args:
          x, y: top-left corner, level-0 pixels.
          size: width and height in label pixels, or both as (width, height).
          downsample: level-0 pixels per label pixel, at least 1.
        """

    def fractions(self, l0_points: np.ndarray, l0_size: int) -> np.ndarray:
        """Share of each class in boxes that lie inside the slide.

        Args:
          l0_points: [N, 2] int64 (x, y) top-left corners, level-0 pixels.
          l0_size: side of the boxes, level-0 pixels.
        Returns:
          [N, num_classes] float32; ignored pixels belong to no class, so rows may sum to less than 1. Exact, but for
          masks with a pyramid, where boxes of 256 px and more are counted on a coarser level.
        """

    @property
    def report(self) -> AnnotationReport:
        """Groups, areas, and what was passed over."""

    def outlines(self, tolerance_px: float) -> dict[int, list[np.ndarray]]:
        """Label (but 0) -> closed rings [N, 2] float64 (x, y) in level-0 pixels, off by about `tolerance_px`.

        For pictures: holes are rings like others, and what is smaller than the tolerance is left out.
        """


def open_labels(record: SlideRecord, slide: Slide, config: DataConfig) -> Labels:
    """The labels of one slide.

    Raises:
      AnnotationError: the annotation is missing, unreadable, of an unknown kind, or does not fit slide or config.
    """
    path = record.annotation
    if path is None:
        return PolygonLabels({}, slide, config)
    if path.suffix.lower() in ANNOTATION_SUFFIXES:
        drawing = read_annotations(path)
        return PolygonLabels(label_geometries(drawing, config, slide.size), slide, config, drawing)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return MaskLabels(open_mask(path, config), slide, config)
    raise AnnotationError(
        f"annotations of type '{path.suffix}' are not known",
        where=str(path),
        fix=f"give XML of ASAP or ImageScope (.xml), GeoJSON of QuPath (.geojson .json), or a mask image "
        f"({' '.join(IMAGE_SUFFIXES)})",
    )


class PolygonLabels:
    """Labels from areas that do not overlap; what no area covers is class 0.

    Args:
      areas: label -> (Multi)Polygon in level-0 pixels, inside the slide.
      drawing: where they come from; None where nobody drew.
    """

    def __init__(
        self, areas: Mapping[int, BaseGeometry], slide: Slide, config: DataConfig, drawing: Drawing | None = None
    ) -> None:
        self._slide, self._num_classes = slide, len(config.classes)
        self.report = report_of(
            drawing.program if drawing else "none",
            config,
            slide.size,
            {label: area.area for label, area in areas.items()},
            drawing,
        )
        pieces = [(label, piece) for label, area in areas.items() for piece in subdivide(area)]
        self._labels = np.array([label for label, _ in pieces], np.int64)
        self._tree = shapely.STRtree([piece for _, piece in pieces])

    def read(self, x: float, y: float, size: int | tuple[int, int], downsample: float = 1.0) -> np.ndarray:
        width, height = _both(size)
        labels = np.zeros((height, width), np.uint8)
        near = self._tree.query(shapely.box(x, y, x + width * downsample, y + height * downsample))
        for label in np.unique(self._labels[near]):
            pieces = self._tree.geometries[np.sort(near[self._labels[near] == label])]
            labels[rasterise(shapely.multipolygons(pieces), x, y, (width, height), downsample)] = label
        return _ignore_outside(labels, x, y, downsample, self._slide)

    def fractions(self, l0_points: np.ndarray, l0_size: int) -> np.ndarray:
        # Ignored areas take the column after the classes here; the first class is what is left of 1.
        column = np.where(self._labels == IGNORE_LABEL, self._num_classes, self._labels)
        shares = area_shares(self._tree, l0_points, l0_size, column, self._num_classes + 1)
        shares[:, 0] = np.maximum(1 - shares[:, 1:].sum(axis=1), 0)
        return shares[:, : self._num_classes].astype(np.float32)

    def outlines(self, tolerance_px: float) -> dict[int, list[np.ndarray]]:
        return {
            int(label): polygon_rings(self._tree.geometries[self._labels == label], tolerance_px)
            for label in np.unique(self._labels)
        }


class MaskLabels:
    """Labels from a mask image of the slide's size or a whole factor smaller (the same both ways).

    Raises:
      AnnotationError: the mask has another size.
    """

    def __init__(self, mask: MaskImage, slide: Slide, config: DataConfig) -> None:
        self._mask, self._slide, self._config = mask, slide, config
        self._factor = _factor(mask.size, slide.size, str(mask.path), slide.path.name)

    def read(self, x: float, y: float, size: int | tuple[int, int], downsample: float = 1.0) -> np.ndarray:
        level = self._coarsest(downsample) if downsample >= 2 else 0
        factor, bounds = self._level(level)
        columns, rows = (
            np.clip(l0_centres(start, num, downsample) // factor, 0, bound - 1).astype(np.int64)
            for start, num, bound in zip((x, y), _both(size), bounds, strict=True)
        )
        return _ignore_outside(self._mask.sample(rows, columns, level), x, y, downsample, self._slide)

    def fractions(self, l0_points: np.ndarray, l0_size: int) -> np.ndarray:
        level = self._coarsest(l0_size / _PIXELS_PER_SIDE) if l0_size >= 2 * _PIXELS_PER_SIDE else 0
        block = _BLOCK_PIXELS * self._level(level)[0]
        x, y = l0_points.T
        counts = np.zeros((len(l0_points), len(self._config.classes)))
        for i in np.lexsort((x, y, x // block, y // block)):
            counts[i] = self._counts((int(x[i]), int(y[i])), (l0_size, l0_size), level)[: counts.shape[1]]
        return (counts / l0_size**2).astype(np.float32)

    @property
    def report(self) -> AnnotationReport:
        small = [i for i, level in enumerate(self._mask.levels) if level.size[0] * level.size[1] <= _COUNTED_PIXELS]
        areas = None
        if small or isinstance(self._mask, HeldMask):
            counts = self._counts((0, 0), self._slide.size, min(small, default=0))
            areas = {int(label): counts[label] for label in np.flatnonzero(counts)}
        return report_of("mask image", self._config, self._slide.size, areas, passed_over=self._mask.faults)

    def outlines(self, tolerance_px: float) -> dict[int, list[np.ndarray]]:
        width, height = self._slide.size
        downsample = max(1.0, tolerance_px, width / _TRACED_SIDE, height / _TRACED_SIDE)
        size = max(1, int(width / downsample)), max(1, int(height / downsample))
        return traced_rings(self.read(0, 0, size, downsample), downsample, tolerance_px)

    def _level(self, level: int) -> tuple[int, tuple[int, int]]:
        """Level-0 pixels of the slide per pixel of a level of the mask, and the level's (width, height)."""
        if level == 0:
            return self._factor, self._mask.size
        found = self._mask.levels[level]
        return self._factor * found.factor, found.size

    def _coarsest(self, downsample: float) -> int:
        """The coarsest level of the mask that is not coarser than wanted; slides round their downsamples."""
        fits = [i for i, level in enumerate(self._mask.levels) if self._factor * level.factor <= downsample * 1.01]
        return max(fits, default=0)

    def _counts(self, corner: tuple[int, int], size: tuple[int, int], level: int) -> np.ndarray:
        """[256] level-0 pixels of each label in a box, counted in strips to bound memory for huge boxes."""
        factor, bounds = self._level(level)
        (columns, widths), (rows, heights) = (
            _spans(start, length, factor, bound) for start, length, bound in zip(corner, size, bounds, strict=True)
        )
        is_whole = (widths == factor).all() and (heights == factor).all()
        counts = np.zeros(256)
        for start in range(0, len(rows), _STRIP_ROWS):
            strip = slice(start, start + _STRIP_ROWS)
            labels = self._mask.sample(rows[strip], columns, level).ravel()
            weights = None if is_whole else np.outer(heights[strip], widths).ravel()
            counts += np.bincount(labels, weights, minlength=256) * (factor**2 if is_whole else 1)
        return counts


def _spans(start: int, length: int, factor: int, bound: int) -> tuple[np.ndarray, np.ndarray]:
    """Mask pixels along level-0 pixels [start, start + length), and how many of these lie in each.

    Beyond the mask's last pixel that one stands in: a mask may have been cut off by less than a pixel.
    """
    pixels = np.arange(start // factor, (start + length - 1) // factor + 1)
    edges = np.clip(np.arange(pixels[0], pixels[-1] + 2) * factor, start, start + length)
    return np.minimum(pixels, bound - 1), np.diff(edges)


def _factor(mask_size: tuple[int, int], slide_size: tuple[int, int], path: str, slide_name: str) -> int:
    """Level-0 pixels per mask pixel. The last mask row and column may be cut off or padded (less than one pixel)."""
    factor = max(1, round(slide_size[0] / mask_size[0]))
    if all(abs(full - small * factor) < factor for full, small in zip(slide_size, mask_size, strict=True)):
        return factor
    raise AnnotationError(
        f"the mask has {mask_size[0]} x {mask_size[1]} px, its slide {slide_name} {slide_size[0]} x "
        f"{slide_size[1]}: that is no whole factor, the same both ways",
        where=path,
        fix="save the mask at the slide's size or at 1/2, 1/4, ... of it",
    )


def _both(size: int | tuple[int, int]) -> tuple[int, int]:
    """(width, height)."""
    return (size, size) if isinstance(size, int | np.integer) else size


def _ignore_outside(labels: np.ndarray, x: float, y: float, downsample: float, slide: Slide) -> np.ndarray:
    """Pixels whose centre is not on the slide take IGNORE_LABEL: they show white, which nobody annotated."""
    (width, height), (num_rows, num_columns) = slide.size, labels.shape
    if x < 0 or y < 0 or x + num_columns * downsample > width or y + num_rows * downsample > height:
        columns, rows = l0_centres(x, num_columns, downsample), l0_centres(y, num_rows, downsample)
        labels[:, (columns < 0) | (columns >= width)] = IGNORE_LABEL
        labels[(rows < 0) | (rows >= height), :] = IGNORE_LABEL
    return labels
