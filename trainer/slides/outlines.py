"""Outlines of labels for pictures: rings of points in level-0 pixels. Nothing is measured on them."""

from __future__ import annotations

import numpy as np
import shapely
from skimage.measure import approximate_polygon, find_contours


def polygon_rings(pieces: np.ndarray, tolerance_px: float) -> list[np.ndarray]:
    """Simplified borders of the area that polygons [N] cover together, without the cuts between them."""
    areas = shapely.get_parts(shapely.disjoint_subset_union_all(pieces))
    simple = shapely.simplify(areas, tolerance_px)  # one by one: GEOS takes minutes for 100,000 areas together
    rings = (shapely.get_coordinates(ring) for ring in shapely.get_rings(simple))
    return [ring for ring in rings if _is_visible(ring, tolerance_px)]


def traced_rings(labels: np.ndarray, downsample: float, tolerance_px: float) -> dict[int, list[np.ndarray]]:
    """Simplified borders of every label but 0 of a label image [h, w] that begins at the slide's corner."""
    found = {}
    for label in np.unique(labels[labels > 0]):
        # One pixel of padding closes contours at the image's border; contours run through pixel centres.
        contours = find_contours(np.pad(labels == label, 1), 0.5)
        rings = [(c[:, ::-1] - 0.5) * downsample for c in contours]
        simple = [approximate_polygon(ring, tolerance_px) for ring in rings]
        found[int(label)] = [ring for ring in simple if _is_visible(ring, tolerance_px)]
    return found


def _is_visible(ring: np.ndarray, tolerance_px: float) -> bool:
    return len(ring) >= 4 and bool((np.ptp(ring, axis=0) > tolerance_px).all())
