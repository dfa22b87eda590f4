"""Zoom and elastic deformation of a patch and its labels in one resampling.

A map is where the corners of a mesh come from: [N + 1, N + 1, 2] float64, (x, y) in pixels of the patch, (0, 0) its top
left corner. Between corners it is bilinear. Positions outside the patch are its mirror image, in pixels and labels
alike.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

_CELLS = 16
"""Cells of the mesh along a side where it is deformed; a zoom alone needs one. Pillow moves each in C without the
interpreter lock: 1024 px in 39 ms on one thread; scipy.ndimage.map_coordinates took 86 ms and numpy indexing 97 ms, not
counting the coordinates of each pixel."""
_SIGMA_CELLS = _CELLS / 7
"""Smoothness of the deformation: a seventh of the patch, as in Simard et al. 2003 (4 of 28 px)."""


def draw_map(size: int, scale: float, elastic: float, rng: np.random.Generator) -> np.ndarray:
    """A random zoom about the centre, then random shifts of its corners.

    The zoom's logarithm is uniform between those of 1 / (1 + scale) and 1 + scale. The shifts are noise smoothed by a
    Gaussian (Simard, Steinkraus and Platt 2003, doi 10.1109/ICDAR.2003.1227801); the longest of them is drawn between 0
    and elastic * size.

    Args:
      size: pixels along a side of the patch.
    """
    edges = _edges(size, _CELLS if elastic else 1) - size / 2
    zoom = (1 + scale) ** rng.uniform(-1, 1)
    corners = size / 2 + np.stack(np.meshgrid(edges, edges), axis=-1) / zoom
    if not elastic:
        return corners
    longest = elastic * size * rng.uniform()
    noise = rng.uniform(-1, 1, corners.shape)
    shifts = gaussian_filter(noise, (_SIGMA_CELLS, _SIGMA_CELLS, 0))
    return corners + shifts * (longest / np.hypot(shifts[..., 0], shifts[..., 1]).max())


def warp(image: np.ndarray, label: np.ndarray, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Move pixels (bilinear) and labels (nearest) by one map. Pillow rounds blended pixels down: on average 0.5 grey.

    Args:
      image: [P, P, 3] uint8.
      label: [P, P] uint8.
      corners: the map.
    Returns:
      The same shapes and dtypes.
    """
    size = len(label)
    margin = 1 + max(0, math.ceil(-corners.min()), math.ceil(corners.max() - size))
    boxes = _mesh(_edges(size, len(corners) - 1).astype(int), corners + margin)
    sides = (margin, margin)
    moved = [
        Image.fromarray(np.pad(pixels, padding, mode="symmetric")).transform(
            (size, size), Image.Transform.MESH, boxes, resample
        )
        for pixels, padding, resample in (
            (image, (sides, sides, (0, 0)), Image.Resampling.BILINEAR),
            (label, (sides, sides), Image.Resampling.NEAREST),
        )
    ]
    return np.asarray(moved[0]), np.asarray(moved[1])


def _edges(size: int, cells: int) -> np.ndarray:
    """[N + 1] where the cells of the mesh begin and end: whole pixels."""
    return np.rint(np.linspace(0, size, cells + 1))


def _mesh(edges: np.ndarray, corners: np.ndarray) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """Pillow's mesh: the box of each cell, and where its corners NW, SW, SE, NE come from."""
    quads = np.concatenate([corners[:-1, :-1], corners[1:, :-1], corners[1:, 1:], corners[:-1, 1:]], axis=-1)
    at, cells = edges.tolist(), range(len(quads))
    return [((at[x], at[y], at[x + 1], at[y + 1]), tuple(quads[y, x])) for y in cells for x in cells]
