"""ASAP XML annotations -> one clean geometry per label.

What a group means comes from the configuration. Pixels and shares are made from these geometries in `labels.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import shapely
from defusedxml import DefusedXmlException, ElementTree
from shapely.geometry import Polygon
from shapely.geometry.base import BaseGeometry

from trainer.config.schema import IGNORE_LABEL, DataConfig
from trainer.errors import AnnotationError
from trainer.slides.geometry import polygons_of

OUTSIDE_TOLERANCE_PX = 16.0
"""Level-0 pixels by which a polygon may pass the slide's border; ASAP lets a hand slip past it. It is cut off there."""
REPAIR_TOLERANCE = 1e-3
"""Largest relative change of area by which a self-touching polygon is repaired."""
_AREA_TYPES = ("Polygon", "Spline", "Rectangle")


@dataclass(frozen=True)
class Annotation:
    """One drawn area: its name and group in ASAP, and a valid (Multi)Polygon in level-0 pixels."""

    name: str
    group: str
    area: BaseGeometry


def read_asap(path: Path) -> list[Annotation]:
    """All areas of an ASAP XML file, in file order. Dots, point sets and measurements are not areas and are skipped.

    A spline is taken as the polygon of its points. Hand-drawn outlines sometimes touch or cross themselves in a tiny
    loop, often where the end meets the start; such a polygon is repaired when that changes its area by less than
    `REPAIR_TOLERANCE` of it. A larger change means that the outline is a bow-tie, of which nobody can say what it
    encloses, and is refused.

    Raises:
      AnnotationError: unreadable, not ASAP XML, fewer than three points, or self-crossing; names file and annotation.
    """
    root = _parse(path)
    return [
        Annotation(a.get("Name", ""), a.get("PartOfGroup", "None"), _area(a, path))
        for a in root.iter("Annotation")
        if a.get("Type") in _AREA_TYPES
    ]


def label_geometries(
    annotations: Sequence[Annotation], config: DataConfig, slide_size: tuple[int, int], path: Path
) -> dict[int, BaseGeometry]:
    """The area of each label, so that no two overlap.

    Ignore groups win over everything; then exclusion groups are holes in every class; then a later class wins over an
    earlier one. The first class has no geometry: it takes what is left.

    Args:
      slide_size: (width, height) in level-0 pixels.
      path: the annotation file, for messages.
    Returns:
      Label (1 to the number of classes - 1, or IGNORE_LABEL) -> MultiPolygon; labels without area are left out.
    Raises:
      AnnotationError: a group that the configuration does not know, or an annotation outside the slide.
    """
    labels = {group: label for label, c in enumerate(config.classes) for group in c.groups}
    known = {*labels, *config.exclusion_groups, *config.ignore_groups}
    for annotation in annotations:
        _check_group(annotation, known, path)
        _check_inside(annotation, slide_size, path)
    slide = shapely.box(0, 0, *slide_size)
    taken = _union(annotations, config.ignore_groups, slide)
    areas = {IGNORE_LABEL: taken}
    taken = shapely.union(taken, _union(annotations, config.exclusion_groups, slide))
    for label in range(len(config.classes) - 1, 0, -1):
        area = _union(annotations, config.classes[label].groups, slide)
        areas[label] = polygons_of(shapely.difference(area, taken))
        taken = shapely.union(taken, area)
    return {label: area for label, area in areas.items() if not area.is_empty}


def _union(annotations: Sequence[Annotation], groups: Sequence[str], slide: BaseGeometry) -> BaseGeometry:
    areas = [a.area for a in annotations if a.group in groups]
    return polygons_of(shapely.intersection(shapely.union_all(areas), slide))


def _parse(path: Path) -> Element:
    try:
        root = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise AnnotationError("there is no such file", where=str(path), fix="correct the path") from None
    except (ParseError, DefusedXmlException, OSError, ValueError) as error:
        raise AnnotationError(
            f"is not readable XML: {error}", where=str(path), fix="copy it again, or save it anew from ASAP"
        ) from None
    if root is None or root.tag != "ASAP_Annotations":
        tag = "nothing" if root is None else f"<{root.tag}>"
        raise AnnotationError(
            f"is not ASAP XML: it begins with {tag}, not <ASAP_Annotations>",
            where=str(path),
            fix="save the annotations from ASAP, or give a mask image",
        )
    return root


def _area(element: Element, path: Path) -> BaseGeometry:
    where = f"{path}, annotation '{element.get('Name', '')}'"
    points = _points(element, where)
    if element.get("Type") == "Rectangle" and len(points) == 2:
        return shapely.box(*points[0], *points[1])
    if len(points) < 3:
        raise AnnotationError(
            f"an area needs at least 3 points, this one has {len(points)}", where=where, fix="delete it in ASAP"
        )
    return _valid(Polygon(points), where)


def _points(element: Element, where: str) -> list[tuple[float, float]]:
    """(x, y) in the order in which they were drawn."""
    try:
        found = [(int(c.get("Order", i)), float(c.attrib["X"]), float(c.attrib["Y"]))
                 for i, c in enumerate(element.iter("Coordinate"))]  # fmt: skip
    except (KeyError, ValueError) as error:
        raise AnnotationError(f"a coordinate is not a number ({error})", where=where) from None
    if not all(math.isfinite(x) and math.isfinite(y) for _, x, y in found):
        raise AnnotationError("a coordinate is not a finite number", where=where)
    return [(x, y) for _, x, y in sorted(found, key=lambda c: c[0])]


def _valid(polygon: Polygon, where: str) -> BaseGeometry:
    """The polygon, repaired where it only touches itself; see `read_asap`."""
    if polygon.is_valid and polygon.area > 0:
        return polygon
    repaired = polygons_of(shapely.make_valid(polygon))
    # A loop that runs backwards counts negative in polygon.area and positive once repaired; one that runs twice around
    # counts double and not at all. Either way the difference is the area of which the sides are in doubt.
    if repaired.area > 0 and abs(repaired.area - polygon.area) <= REPAIR_TOLERANCE * repaired.area:
        return repaired
    what = shapely.is_valid_reason(polygon) if not polygon.is_valid else "it encloses no area"
    raise AnnotationError(
        f"the outline is no simple polygon: {what} (level-0 x y)", where=where, fix="redraw or delete it in ASAP"
    )


def _check_group(annotation: Annotation, known: set[str], path: Path) -> None:
    if annotation.group not in known:
        raise AnnotationError(
            f"group '{annotation.group}' has no class; the configuration knows {', '.join(sorted(known)) or 'none'}",
            where=f"{path}, annotation '{annotation.name}'",
            fix=f"add '{annotation.group}' to data.classes[i].groups, data.exclusion_groups or data.ignore_groups",
        )


def _check_inside(annotation: Annotation, slide_size: tuple[int, int], path: Path) -> None:
    left, top, right, bottom = annotation.area.bounds
    width, height = slide_size
    beyond = max(-left, -top, right - width, bottom - height)
    if beyond > OUTSIDE_TOLERANCE_PX:
        raise AnnotationError(
            f"lies outside its slide: x {left:.0f} to {right:.0f}, y {top:.0f} to {bottom:.0f}, "
            f"but the slide has {width} x {height} level-0 px",
            where=f"{path}, annotation '{annotation.name}'",
            fix="check that the file belongs to this slide and was drawn at level 0",
        )
