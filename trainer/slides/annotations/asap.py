"""ASAP XML: <Annotation Name Type PartOfGroup><Coordinates><Coordinate Order X Y>, as CAMELYON publishes it."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from trainer.errors import AnnotationError
from trainer.slides.annotations.drawing import Drawing, DrawingBuilder
from trainer.slides.annotations.xml_file import vertex

_AREA_TYPES = ("Polygon", "Spline", "Rectangle")
_OTHER_TYPES = ("Dot", "PointSet", "Measurement")


class AsapReader:
    """Areas in file order; a spline is taken as the polygon of its points."""

    def __init__(self, path: Path) -> None:
        self._builder = DrawingBuilder(path, "ASAP")
        self._open: Mapping[str, str] | None = None
        self._points = array("d")  # order, x, y; 24 bytes a point

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        if tag == "Coordinate" and self._open is not None:
            self._points.append(self._order(attributes))
            self._points.extend(vertex(attributes, self._where))
        elif tag == "Annotation":
            if self._open is not None:
                raise AnnotationError("holds another annotation", where=self._where(), fix="save it anew from ASAP")
            self._open, self._points = attributes, array("d")

    def end(self, tag: str) -> None:
        if tag == "Annotation" and self._open is not None:
            self._close(self._open)
            self._open = None

    def drawing(self) -> Drawing:
        return self._builder.drawing()

    def _close(self, attributes: Mapping[str, str]) -> None:
        kind, name = attributes.get("Type", ""), attributes.get("Name", "")
        if kind not in _AREA_TYPES:
            self._builder.pass_over(f"{kind if kind in _OTHER_TYPES else 'annotation of unknown type'}: not an area")
            return
        points = np.array(self._points).reshape(-1, 3)
        outline = points[np.argsort(points[:, 0], kind="stable"), 1:]
        if kind == "Rectangle" and len(outline) == 2:
            outline = corners(outline)
        if (area := self._builder.area(name, [outline])) is not None:
            self._builder.add(name, attributes.get("PartOfGroup", "None"), area)

    def _order(self, attributes: Mapping[str, str]) -> float:
        try:
            return float(attributes.get("Order", len(self._points)))
        except ValueError:
            raise AnnotationError(
                "a point's Order is not a number", where=self._where(), fix="save it anew from ASAP"
            ) from None

    def _where(self) -> str:
        return self._builder.where((self._open or {}).get("Name", ""))


def corners(points: np.ndarray) -> np.ndarray:
    """[4, 2] corners of the box around points [N, 2], N at least 1."""
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
