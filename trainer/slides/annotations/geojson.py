"""QuPath GeoJSON: a FeatureCollection whose features carry a geometry and properties.classification.

Versions differ in how they write a class: {"name": ...}, {"names": [...]} for derived classes since 0.4, and
{"parentClass": {...}, "name": ...} before. Exported hierarchies hold children in properties.childObjects. QuPath writes
NaN measurements as NaN, so that this is read too; in coordinates it is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from shapely.geometry import MultiPolygon
from shapely.geometry.base import BaseGeometry

from trainer.errors import AnnotationError
from trainer.slides.annotations.drawing import NO_AREA, Drawing, DrawingBuilder, printable
from trainer.slides.geometry import polygons_of

MAX_BYTES = 1 << 28
"""Larger files are refused: the text is held in memory, and one feature as Python objects (ten times its text)."""
UNCLASSIFIED = "Unclassified"
"""Group of objects to which nobody gave a class, as QuPath shows them."""
_NO_AREA_TYPES = {"Point": "point", "MultiPoint": "point", "LineString": "line", "MultiLineString": "line"}
_EXPORT = "in QuPath: File > Export objects as GeoJSON, with 'Export as FeatureCollection'"
_KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "a text"}
_SPACE = re.compile(r"[ \t\r\n]*")


def read_geojson(path: Path) -> Drawing:
    """All areas of a FeatureCollection, in file order; annotations, detections and cells (their outer border) alike.

    Raises:
      AnnotationError: not JSON, not a FeatureCollection, a part of the wrong kind, or an outline that cannot be used.
    """
    builder = DrawingBuilder(path, "QuPath")
    for number, feature in enumerate(_with_children(_features(_text(path), path), path), 1):
        _add(feature, number, builder)
    return builder.drawing()


def _text(path: Path) -> str:
    if (num_bytes := path.stat().st_size) > MAX_BYTES:
        raise AnnotationError(
            f"has {num_bytes / 2**20:.0f} MiB; up to {MAX_BYTES >> 20} MiB can be read",
            where=str(path),
            fix="export annotations without detections and measurements, or simplify the outlines",
        )
    data = path.read_bytes()
    try:
        return data.decode(json.detect_encoding(data)).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise AnnotationError(f"is not UTF-8 text: {error}", where=str(path), fix="save it as UTF-8") from None


class _Scanner:
    """Walks through JSON text; what it is not asked to decode is never held as objects."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0
        self._decode = json.JSONDecoder().raw_decode

    def value(self) -> Any:
        self._skip_space()
        value, self._at = self._decode(self._text, self._at)
        return value

    def takes(self, token: str) -> bool:
        """Whether the token comes next; steps over it."""
        self._skip_space()
        is_there = self._text.startswith(token, self._at)
        self._at += is_there
        return is_there

    def expect(self, token: str) -> None:
        if not self.takes(token):
            raise json.JSONDecodeError(f"expecting '{token}'", self._text, self._at)

    def end(self) -> None:
        self._skip_space()
        if self._at != len(self._text):
            raise json.JSONDecodeError("extra data", self._text, self._at)

    def items(self, close: str) -> Iterator[None]:
        """Yields once for each comma-separated item, for the caller to take, up to the closing bracket."""
        if self.takes(close):
            return
        yield
        while not self.takes(close):
            self.expect(",")
            yield

    def _skip_space(self) -> None:
        self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]  # matches always


def _features(text: str, path: Path) -> Iterator[Any]:
    """The features of a FeatureCollection, decoded one by one."""
    scanner, found, has_features = _Scanner(text), None, False
    try:
        if not scanner.takes("{"):
            raise _no_collection(f"it holds {_shown(scanner.value())}", path)
        for _ in scanner.items("}"):
            key = scanner.value()
            scanner.expect(":")
            if key == "features" and scanner.takes("["):
                if has_features:
                    raise AnnotationError("has two lists of features", where=str(path), fix=_EXPORT)
                has_features = True
                for _ in scanner.items("]"):
                    yield scanner.value()
            else:
                value = scanner.value()
                found = value if key == "type" else found
        scanner.end()
    except (ValueError, RecursionError) as error:
        raise AnnotationError(
            f"is not readable JSON: {printable(str(error))}", where=str(path), fix="copy it again, or export it anew"
        ) from None
    if found != "FeatureCollection" or not has_features:
        raise _no_collection(f"its type is {_shown(found)}{'' if has_features else ', it has no features'}", path)


def _no_collection(what: str, path: Path) -> AnnotationError:
    return AnnotationError(f"is not a GeoJSON FeatureCollection: {what}", where=str(path), fix=f"export it {_EXPORT}")


def _with_children(features: Iterable[Any], path: Path) -> Iterator[dict[str, Any]]:
    """Each feature, and after it the features that it holds."""
    for feature in features:
        waiting = [feature]
        while waiting:
            current = _typed(waiting.pop(), dict, "a feature", str(path))
            yield current
            properties = current.get("properties")
            children = properties.get("childObjects") if isinstance(properties, dict) else None
            waiting += reversed(_typed(children or [], list, "childObjects", str(path)))


def _add(feature: dict[str, Any], number: int, builder: DrawingBuilder) -> None:
    where = builder.where(f"feature {number}")
    properties = _typed(feature.get("properties") or {}, dict, "properties", where)
    name = properties.get("name")
    name = name if isinstance(name, str) and name else f"feature {number}"
    where = builder.where(name)
    group = _group(properties.get("classification"), where)
    geometry = feature.get("geometry")
    if geometry is None:
        builder.pass_over("object without a geometry")
        return
    parts = [builder.area(name, rings) for rings in _polygons(geometry, where, builder)]
    areas = [part for part in parts if part is not None]
    if areas:
        builder.add(name, group, areas[0] if len(areas) == 1 else _joined(areas))


def _joined(areas: list[BaseGeometry]) -> BaseGeometry:
    together = MultiPolygon(list(shapely.get_parts(areas)))
    return together if together.is_valid else polygons_of(shapely.union_all(areas))


def _group(classification: Any, where: str) -> str:
    """The class as QuPath shows it: names joined by ': ' where one is derived from another."""
    names: list[Any] = []
    while classification:
        _typed(classification, dict, "a classification", where)
        names = classification.get("names") or [classification.get("name")]
        _typed(names, list, "names", where)
        parent = classification.get("parentClass")
        if not parent:
            break
        classification = {**parent, "names": [parent.get("name"), *names]} if isinstance(parent, dict) else parent
    names = [name for name in names if name is not None]
    for name in names:
        _typed(name, str, "a class name", where)
    return ": ".join(names) or UNCLASSIFIED


def _polygons(geometry: Any, where: str, builder: DrawingBuilder) -> Iterator[list[np.ndarray]]:
    """Rings of every polygon in a geometry, outline first; what is no area is counted."""
    waiting = [geometry]
    while waiting:
        part = _typed(waiting.pop(), dict, "a geometry", where)
        kind = part.get("type")
        if kind == "GeometryCollection":
            waiting += reversed(_typed(part.get("geometries"), list, "geometries", where))
        elif isinstance(kind, str) and kind in _NO_AREA_TYPES:
            builder.pass_over(f"{_NO_AREA_TYPES[kind]}: not an area")
        elif kind in ("Polygon", "MultiPolygon"):
            coordinates = _typed(part.get("coordinates"), list, "coordinates", where)
            for polygon in [coordinates] if kind == "Polygon" else coordinates:
                if rings := [_ring(ring, where) for ring in _typed(polygon, list, "a polygon", where)]:
                    yield rings
                else:
                    builder.pass_over(NO_AREA)
        else:
            raise AnnotationError(f"geometry type {_shown(kind)} is not known", where=where, fix=_EXPORT)


def _ring(points: Any, where: str) -> np.ndarray:
    """[N, 2] float64 of a list of [x, y] or [x, y, z]."""
    _typed(points, list, "a ring", where)
    if not (set(map(type, points)) <= {list} and set(map(len, points)) <= {2, 3, 4}):
        raise AnnotationError("a ring is not a list of [x, y] points", where=where, fix=_EXPORT)
    if not set(map(type, chain.from_iterable(points))) <= {int, float}:
        raise AnnotationError("a coordinate is not a number", where=where, fix=_EXPORT)
    try:
        return np.array([point[:2] for point in points], np.float64).reshape(-1, 2)
    except OverflowError:
        raise AnnotationError("a coordinate is not a finite number", where=where, fix="redraw or delete it") from None


def _typed(value: Any, kind: type, what: str, where: str) -> Any:
    if not isinstance(value, kind):
        raise AnnotationError(f"{what} is {_shown(value)}, not {_KINDS[kind]}", where=where, fix=_EXPORT)
    return value


def _shown(value: Any) -> str:
    """A value of a stranger's file in a few characters."""
    if type(value) in _KINDS and not isinstance(value, str):
        return _KINDS[type(value)]
    return printable(f"'{value[:50]}'" if isinstance(value, str) else str(value)[:50])
