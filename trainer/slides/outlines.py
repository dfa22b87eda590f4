"""Outlines of labels for pictures: rings of points in level-0 pixels. Nothing is measured on them."""

from __future__ import annotations

import numpy as np
import shapely

from trainer.slides.geometry import mask_rings


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
        rings = [ring * downsample for ring in mask_rings(labels == label, tolerance_px / downsample)]
        found[int(label)] = [ring for ring in rings if _is_visible(ring, tolerance_px)]
    return found


def _is_visible(ring: np.ndarray, tolerance_px: float) -> bool:
    return len(ring) >= 4 and bool((np.ptp(ring, axis=0) > tolerance_px).all())
