"""Aperio ImageScope XML: <Annotation Id Name> layers of <Region Type NegativeROA> with <Vertex X Y>.

A layer's regions with NegativeROA="1" are holes in all of its other regions.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from trainer.errors import AnnotationError
from trainer.slides.annotations.asap import corners
from trainer.slides.annotations.drawing import NO_AREA, Drawing, DrawingBuilder
from trainer.slides.annotations.outline import check_coordinates
from trainer.slides.annotations.xml_file import vertex
from trainer.slides.geometry import polygons_of

_RECTANGLE, _ELLIPSE = "1", "2"
_AREA_TYPES = ("0", _RECTANGLE, _ELLIPSE)
_ELLIPSE_POINTS = 256
"""The polygon's area is 0.01 % below the ellipse's."""


class ImageScopeReader:
    """Areas in file order. A layer without a name is the group 'Layer <Id>'."""

    def __init__(self, path: Path) -> None:
        self._builder = DrawingBuilder(path, "ImageScope")
        self._layer: str | None = None
        self._region: Mapping[str, str] | None = None
        self._vertices = array("d")
        self._drawn: list[tuple[str, BaseGeometry]] = []
        self._negative: list[BaseGeometry] = []

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        if tag == "Vertex" and self._region is not None:
            self._vertices.extend(vertex(attributes, self._where))
        elif tag == "Region" and self._layer is not None:
            if self._region is not None:
                raise self._nested()
            self._region, self._vertices = attributes, array("d")
        elif tag == "Annotation":
            if self._layer is not None:
                raise self._nested()
            self._layer = attributes.get("Name", "").strip() or f"Layer {attributes.get('Id', '')}"
            self._drawn, self._negative = [], []

    def end(self, tag: str) -> None:
        if tag == "Region" and self._region is not None:
            self._close_region(self._region)
            self._region = None
        elif tag == "Annotation" and self._layer is not None:
            self._close_layer(self._layer)
            self._layer = None

    def drawing(self) -> Drawing:
        return self._builder.drawing()

    def _close_region(self, attributes: Mapping[str, str]) -> None:
        kind = attributes.get("Type", "0")
        if kind not in _AREA_TYPES:
            self._builder.pass_over("arrow, ruler, line or text: not an area")
            return
        points = np.array(self._vertices).reshape(-1, 2)
        check_coordinates(points, self._where())
        if kind == _ELLIPSE and len(points) >= 2:
            points = ellipse(points)
        elif kind == _RECTANGLE and len(points) == 2:
            points = corners(points)
        if (area := self._builder.area(self._name(), [points])) is None:
            return
        if attributes.get("NegativeROA", "0") in ("1", "true"):
            self._negative.append(area)
        else:
            self._drawn.append((self._name(), area))

    def _close_layer(self, layer: str) -> None:
        tree = shapely.STRtree(self._negative)
        is_used = np.zeros(len(self._negative), bool)
        for name, area in self._drawn:
            holes = tree.query(area, predicate="intersects") if self._negative else np.zeros(0, np.int64)
            is_used[holes] = True
            if len(holes):
                area = polygons_of(shapely.difference(area, shapely.union_all(tree.geometries[holes])))
            if area.is_empty:
                self._builder.pass_over(NO_AREA)
            else:
                self._builder.add(name, layer, area)
        for _ in range(np.count_nonzero(~is_used)):
            self._builder.pass_over("negative region that cuts no other region of its layer")

    def _name(self) -> str:
        return f"{self._layer}, region {(self._region or {}).get('Id', '')}".strip()

    def _where(self) -> str:
        return self._builder.where(self._name())

    def _nested(self) -> AnnotationError:
        return AnnotationError("holds another annotation", where=self._where(), fix="save it anew from ImageScope")


def ellipse(points: np.ndarray) -> np.ndarray:
    """[256, 2] points of the upright ellipse that fills the box around points [N, 2]."""
    low, high = points.min(axis=0), points.max(axis=0)
    angles = np.linspace(0, 2 * np.pi, _ELLIPSE_POINTS, endpoint=False)
    return (low + high) / 2 + np.stack([np.cos(angles), np.sin(angles)], 1) * (high - low) / 2
