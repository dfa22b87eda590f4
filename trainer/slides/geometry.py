"""Arithmetic between frames, and polygons turned into pixels and area shares.

Frames: level-0 pixels (`l0`), pixels of a level (`lv`). Pixel (i, j) of a frame covers [i, i+1) x [j, j+1) of it; its
centre is (i + 0.5, j + 0.5). Annotations are continuous level-0 coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import shapely
from shapely.geometry import MultiPolygon
from shapely.geometry.base import BaseGeometry
from skimage.measure import find_contours


def l0_length(lv_length: int, downsample: float) -> int:
    """Level-0 pixels that a length at a level covers. Every module uses this one rounding."""
    return round(lv_length * downsample)


def l0_centres(l0_start: float, num: int, downsample: float) -> np.ndarray:
    """[num] float64: level-0 coordinates of the centres of consecutive pixels of a level."""
    return l0_start + (np.arange(num) + 0.5) * downsample


def l0_boxes(l0_points: np.ndarray, l0_size: int) -> np.ndarray:
    """[N] shapely boxes with top-left corners [N, 2] (x, y)."""
    x, y = l0_points[:, 0], l0_points[:, 1]
    return shapely.box(x, y, x + l0_size, y + l0_size)


def mask_rings(mask: np.ndarray, tolerance_px: float) -> list[np.ndarray]:
    """Simplified borders of a mask that begins at (0, 0): closed rings, [N, 2] float64 (x, y) pixels each.

    Holes run the other way round.

    Args:
      mask: [h, w] bool.
      tolerance_px: largest distance between a ring and the pixels' edges, the corners of which are cut before.
    """
    # one pixel of padding closes contours at the mask's border; contours run through pixel centres
    contours = find_contours(np.pad(mask, 1).astype(np.float32), 0.5)
    rings = shapely.simplify([shapely.linearrings(contour[:, ::-1] - 0.5) for contour in contours], tolerance_px)
    return [shapely.get_coordinates(ring) for ring in rings]


def rasterise(geometry: BaseGeometry, x: float, y: float, size: int | tuple[int, int], downsample: float) -> np.ndarray:
    """Which pixel centres lie inside a polygon.

    Even-odd scan conversion: every edge flips all pixels to the right of where it crosses a row of centres. Work grows
    with the rows that edges cross inside the region, not with the polygon's area or its extent.

    Args:
      geometry: Polygon or MultiPolygon, holes included, in level-0 pixels.
      x, y: level-0 pixels of the region's top-left corner.
      size: pixels of the level, one number or (width, height).
      downsample: level-0 pixels per pixel of the level.
    Returns:
      [h, w] bool. A centre exactly on a left or upper border is inside, on a right or lower one outside, so that
      polygons with a common border share no pixel.
    """
    width, height = (size, size) if isinstance(size, int | np.integer) else size
    starts, ends = _edges(geometry, (x, y), downsample)
    rows, columns = _crossings(starts, ends, width, height)
    flips = np.zeros((height, width + 1), np.uint8)
    np.bitwise_xor.at(flips, (rows, columns), 1)
    return np.bitwise_xor.accumulate(flips[:, :width], axis=1).astype(bool)


def _edges(geometry: BaseGeometry, corner: tuple[float, float], downsample: float) -> tuple[np.ndarray, np.ndarray]:
    """Edges of all rings as ([E, 2], [E, 2]) end points, in a frame where pixel centres are whole numbers."""
    rings = shapely.get_rings(shapely.get_parts(geometry))
    points, ring_of_point = shapely.get_coordinates(rings, return_index=True)
    points = (points - corner) / downsample - 0.5
    follows = ring_of_point[1:] == ring_of_point[:-1]
    return points[:-1][follows], points[1:][follows]


def _crossings(starts: np.ndarray, ends: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """For each edge and each row of centres it crosses: the row and the first column right of the crossing.

    Crossings left of the region count at column 0 (they flip the whole row); right of it, at column `width`.
    """
    upwards = starts[:, 1] > ends[:, 1]
    x0, y0 = np.where(upwards[:, None], ends, starts).T
    x1, y1 = np.where(upwards[:, None], starts, ends).T
    first = np.clip(np.ceil(y0), 0, height).astype(np.int64)
    counts = np.clip(np.ceil(y1), 0, height).astype(np.int64) - first
    counts[np.minimum(x0, x1) > width] = 0
    edge = np.repeat(np.arange(len(counts)), counts)
    offsets = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = first[edge] + offsets
    slope = (x1[edge] - x0[edge]) / (y1[edge] - y0[edge])  # edges with a row have y1 > y0
    columns = np.ceil(x0[edge] + (rows - y0[edge]) * slope)
    return rows, np.clip(columns, 0, width).astype(np.int64)


def subdivide(geometry: BaseGeometry, max_points: int = 256) -> Iterator[BaseGeometry]:
    """Cut a geometry into polygons of few points that together cover it without overlap.

    An annotation with a hundred thousand points is cut once; afterwards each patch meets only the pieces near it.
    """
    polygons = shapely.get_parts(polygons_of(geometry))
    # What lies within two pixels cannot become simpler.
    is_small = (shapely.get_num_coordinates(polygons) <= max_points) | (_extents(polygons).max(axis=1, initial=0) < 2)
    yield from polygons[is_small]
    for polygon in polygons[~is_small]:
        for half in _halves(polygon.bounds):
            yield from subdivide(shapely.intersection(polygon, half), max_points)


def _extents(geometries: np.ndarray) -> np.ndarray:
    """[N, 2] width and height."""
    bounds = shapely.bounds(geometries)
    return bounds[:, 2:] - bounds[:, :2]


def _halves(bounds: tuple[float, float, float, float]) -> tuple[BaseGeometry, BaseGeometry]:
    """The two boxes on either side of a cut through the middle of the longer side, at a whole pixel."""
    left, top, right, bottom = bounds
    if right - left > bottom - top:
        middle = round((left + right) / 2)
        return shapely.box(left, top, middle, bottom), shapely.box(middle, top, right, bottom)
    middle = round((top + bottom) / 2)
    return shapely.box(left, top, right, middle), shapely.box(left, middle, right, bottom)


def polygons_of(geometry: BaseGeometry) -> BaseGeometry:
    """The areas of a geometry as one MultiPolygon, without the points and lines that overlays leave behind."""
    parts = shapely.get_parts(shapely.get_parts(geometry))
    is_area = (shapely.get_type_id(parts) == shapely.GeometryType.POLYGON) & ~shapely.is_empty(parts)
    return MultiPolygon(list(parts[is_area]))


def area_shares(
    tree: shapely.STRtree, l0_points: np.ndarray, l0_size: int, groups: np.ndarray, num_groups: int
) -> np.ndarray:
    """How much of each box the polygons of each group cover, exactly.

    Args:
      tree: over polygons that do not overlap one another.
      l0_points: [N, 2] (x, y) top-left corners of boxes, level-0 pixels.
      l0_size: side of the boxes, level-0 pixels.
      groups: [number of polygons] group of each polygon, 0 to num_groups - 1.
    Returns:
      [N, num_groups] float64 in [0, 1].
    """
    boxes = l0_boxes(l0_points, l0_size)
    box, piece = tree.query(boxes)
    areas = shapely.area(shapely.intersection(tree.geometries[piece], boxes[box]))
    cell = box * num_groups + groups[piece]
    total = np.bincount(cell, weights=areas, minlength=len(boxes) * num_groups)
    return total.reshape(len(boxes), num_groups) / l0_size**2
