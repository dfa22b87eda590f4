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
"""Cells of the mesh along a side. Pillow moves each in C without the interpreter lock: 1024 px in 39 ms on one thread;
scipy.ndimage.map_coordinates took 86 ms and numpy indexing 97 ms, not counting the coordinates of each pixel."""
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
    edges = _edges(size) - size / 2
    zoom = (1 + scale) ** rng.uniform(-1, 1)
    corners = size / 2 + np.stack(np.meshgrid(edges, edges), axis=-1) / zoom
    if not elastic:
        return corners
    longest = elastic * size * rng.uniform()
    noise = rng.uniform(-1, 1, corners.shape)
    shifts = gaussian_filter(noise, (_SIGMA_CELLS, _SIGMA_CELLS, 0))
    return corners + shifts * (longest / np.hypot(shifts[..., 0], shifts[..., 1]).max())


def rows_under(corners: np.ndarray, size: int, rows: tuple[int, int]) -> tuple[int, int]:
    """(first, last + 1) of the rows that `warp` makes some rows of the result from."""
    lines = _mirrored(*_extent(corners[_cells(size, rows)], 1), size)
    return int(lines.min()), int(lines.max()) + 1


def warp(
    image: np.ndarray, label: np.ndarray, corners: np.ndarray, rows: tuple[int, int] | None = None, top: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Move pixels (bilinear) and labels (nearest) by one map. Pillow rounds blended pixels down: on average 0.5 grey.

    Args:
      image: [h, P, 3] uint8, at least the rows `rows_under` of the patch.
      label: [h, P] uint8.
      corners: the map of the whole patch.
      rows: (first, last + 1) of the result that are wanted; None: all.
      top: row of the patch that the image begins with.
    Returns:
      [n, P, 3] and [n, P] uint8.
    """
    size = label.shape[1]
    first, last = rows or (0, size)
    cells, edges = _cells(size, (first, last)), _edges(size).astype(int)
    part, tops = corners[cells], edges[cells]
    spans = [_extent(part, axis) for axis in (0, 1)]
    columns, lines = (_mirrored(*span, size) for span in spans)
    boxes = _mesh(edges, tops - tops[0], part - [span[0] for span in spans])
    inside = slice(first - tops[0], last - tops[0])

    def moved(pixels: np.ndarray, resample: Image.Resampling) -> np.ndarray:
        source = Image.fromarray(pixels.take(lines - top, 0).take(columns, 1))
        size_of_cells = (size, int(tops[-1] - tops[0]))
        return np.asarray(source.transform(size_of_cells, Image.Transform.MESH, boxes, resample))[inside]

    return moved(image, Image.Resampling.BILINEAR), moved(label, Image.Resampling.NEAREST)


def _edges(size: int) -> np.ndarray:
    """[N + 1] where the cells of the mesh begin and end: whole pixels."""
    return np.rint(np.linspace(0, size, _CELLS + 1))


def _cells(size: int, rows: tuple[int, int]) -> slice:
    """The lines of the mesh from above the first of some rows to below the last."""
    edges = _edges(size)
    return slice(np.searchsorted(edges, rows[0], "right") - 1, np.searchsorted(edges, rows[1], "left") + 1)


def _extent(corners: np.ndarray, axis: int) -> tuple[int, int]:
    """(first, last + 1) of the pixels along an axis (0: x) that lie between corners, and one more on each side."""
    return math.floor(corners[..., axis].min()) - 1, math.ceil(corners[..., axis].max()) + 1


def _mirrored(first: int, last: int, size: int) -> np.ndarray:
    """[last - first] the pixels of a patch that stand for consecutive ones, some of them outside it."""
    at = np.arange(first, last)
    return np.where(at < 0, -1 - at, np.where(at >= size, 2 * size - 1 - at, at))


def _mesh(lefts: np.ndarray, tops: np.ndarray, corners: np.ndarray) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """Pillow's mesh: the box of each cell, and where its corners NW, SW, SE, NE come from."""
    quads = np.concatenate([corners[:-1, :-1], corners[1:, :-1], corners[1:, 1:], corners[:-1, 1:]], axis=-1)
    x, y = lefts.tolist(), tops.tolist()
    return [
        ((x[column], y[row], x[column + 1], y[row + 1]), tuple(quads[row, column]))
        for row in range(len(tops) - 1)
        for column in range(len(lefts) - 1)
    ]
