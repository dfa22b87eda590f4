"""Points of an outline -> the area that it encloses, or a refusal that says what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely
from shapely.geometry import Polygon
from shapely.geometry.base import BaseGeometry

from trainer.errors import AnnotationError
from trainer.slides.geometry import polygons_of

REPAIR_TOLERANCE = 1e-3
"""Largest relative change of area by which an outline that crosses itself is repaired."""
MAX_COORDINATE_PX = 1e7
"""No slide is larger: 10 million pixels of 0.1 um are one metre."""
_MAX_CROSSINGS = 50_000
"""Outlines that cross themselves more often are refused at once: repairing takes time and memory for each crossing.
Hand-drawn outlines have a few; GEOS 3.14 repairs this many in about a second."""
_SAMPLED_EDGES = 2000


def enclosed_area(rings: Sequence[np.ndarray], where: str, program: str) -> BaseGeometry | None:
    """The area inside an outline and outside its holes.

    Hand-drawn outlines touch or cross themselves in tiny loops, often where the end meets the start. Such an outline is
    repaired when that changes its area by less than `REPAIR_TOLERANCE` of it. A larger change means that it is a
    bow-tie, of which nobody can say what it encloses, and is refused.

    Args:
      rings: [N, 2] float64 (x, y) level-0 pixels, closed or not; first the outline, then its holes.
      where: file and annotation, for messages.
      program: where the user can mend it, for messages.
    Returns:
      Valid Polygon or MultiPolygon; None where nothing is enclosed (fewer than three points, or all on one line).
    Raises:
      AnnotationError: coordinates that are not finite or beyond `MAX_COORDINATE_PX`, or a bow-tie.
    """
    for ring in rings:
        check_coordinates(ring, where)
    outline, *holes = [_open(ring) for ring in rings]
    if len(outline) < 3:
        return None
    polygon = Polygon(outline, [hole for hole in holes if len(hole) >= 3])
    area = polygon if polygon.is_valid else _repaired(polygon, where, program)
    return area if area.area > 0 else None


def check_coordinates(ring: np.ndarray, where: str) -> None:
    """Raises AnnotationError where a coordinate of [N, 2] is not finite or beyond `MAX_COORDINATE_PX`."""
    if not np.isfinite(ring).all():
        raise AnnotationError("a coordinate is not a finite number", where=where, fix="redraw or delete it")
    if np.abs(ring).max(initial=0) > MAX_COORDINATE_PX:
        raise AnnotationError(
            f"a coordinate of {np.abs(ring).max():.3g} px lies on no slide (largest: {MAX_COORDINATE_PX:.0g})",
            where=where,
            fix="coordinates are level-0 pixels, not micrometres or nanometres; export them again",
        )


def _open(ring: np.ndarray) -> np.ndarray:
    return ring[:-1] if len(ring) > 1 and (ring[0] == ring[-1]).all() else ring


def _repaired(polygon: Polygon, where: str, program: str) -> BaseGeometry:
    crossings = _num_crossings(polygon)
    if crossings > _MAX_CROSSINGS:
        raise _no_simple_polygon(f"it crosses itself about {crossings:.0e} times", where, program)
    # 'structure' and not 'linework', which needs a minute and gigabytes for a tangle of a few hundred points
    repaired = polygons_of(shapely.make_valid(polygon, method="structure", keep_collapsed=False))
    # A loop that runs backwards counts negative in polygon.area and positive once repaired; one that runs twice around
    # counts double and then once. Either way the difference is the area of which the sides are in doubt.
    if abs(repaired.area - polygon.area) <= REPAIR_TOLERANCE * repaired.area:
        return repaired
    raise _no_simple_polygon(f"{shapely.is_valid_reason(polygon)} (level-0 x y)", where, program)


def _no_simple_polygon(what: str, where: str, program: str) -> AnnotationError:
    return AnnotationError(
        f"the outline is no simple polygon: {what}", where=where, fix=f"redraw or delete it in {program}"
    )


def _num_crossings(polygon: Polygon) -> float:
    """How many pairs of edges cross; exact for small outlines, from a fixed sample of edges for others."""
    points, ring = shapely.get_coordinates(shapely.get_rings(polygon), return_index=True)
    edges = np.flatnonzero(ring[1:] == ring[:-1])
    share = min(1.0, _SAMPLED_EDGES / len(edges))
    if share < 1:
        edges = np.random.default_rng(0).choice(edges, _SAMPLED_EDGES, replace=False)
    start, end = points[edges], points[edges + 1]
    straddles = _side(start, end, start) * _side(start, end, end) < 0
    return float(np.count_nonzero(straddles & straddles.T)) / 2 / share**2


def _side(start: np.ndarray, end: np.ndarray, points: np.ndarray) -> np.ndarray:
    """[E, N] sign: on which side of each edge [E, 2]-[E, 2] each point [N, 2] lies."""
    (dx, dy), (x, y) = (end - start).T[:, :, None], start.T[:, :, None]
    return np.sign(dx * (points[:, 1] - y) - dy * (points[:, 0] - x)).astype(np.int8)
