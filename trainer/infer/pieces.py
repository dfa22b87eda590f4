"""Connected areas of one class in one block of a map, measured and outlined. `regions.py` joins those of all blocks.

Everything is in pixels of the map, and probabilities are 0-255. Pure functions of arrays.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import shapely
from shapely.geometry import Polygon
from skimage.measure import label

NO_PIECE = -1


class Piece(NamedTuple):
    """What lies of a region in one block.

    Fields:
      peak: (-probability, y, x) of its most probable pixel: the smallest of several is the peak of all.
      outline: a polygon along the edges of pixels.
    """

    class_id: int
    area: int
    probability_sum: int
    peak: tuple[int, int, int]
    outline: Polygon


def pieces_of(
    classes: np.ndarray, probability: np.ndarray, corner: tuple[int, int], min_area: int
) -> tuple[list[Piece], np.ndarray]:
    """The pieces of a block, pixels of a class that touch by their sides.

    Those that are too small, and cannot be part of a larger region beyond the block, are left out. Takes 40 bytes per
    pixel.

    Args:
      classes: [h, w] uint8; 0 belongs to no piece.
      probability: [h, w] uint8, of each pixel's own class.
      corner: (x, y) of the block's top left pixel.
      min_area: pixels.
    Returns:
      The pieces, and for each pixel the place of its piece in them, [h, w] int64; NO_PIECE where it is in none.
    """
    if not classes.any():  # most of a slide: fifty times as fast
        return [], np.full(classes.shape, NO_PIECE)
    labels = label(classes, background=0, connectivity=1)
    areas = np.bincount(labels.ravel())
    is_kept = areas >= min_area
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        is_kept[edge] = True
    is_kept[0] = False
    kept = np.flatnonzero(is_kept)
    number_of = np.full(len(areas), NO_PIECE)
    number_of[kept] = np.arange(len(kept))
    numbers = number_of[labels]
    if not len(kept):
        return [], numbers

    sums = np.bincount(labels.ravel(), weights=probability.ravel())[kept]  # float64 holds whole numbers exactly
    peaks, at = (of_label[kept] for of_label in _peaks(labels.ravel(), probability.ravel(), len(areas)))
    rows, columns = np.divmod(at, labels.shape[1])
    found = zip(
        classes.ravel()[at].tolist(),
        areas[kept].tolist(),
        sums.astype(np.int64).tolist(),
        zip((-peaks).tolist(), (rows + corner[1]).tolist(), (columns + corner[0]).tolist(), strict=True),
        _outlines(numbers, corner),
        strict=True,
    )
    return [Piece(*fields) for fields in found], numbers


def _peaks(labels: np.ndarray, values: np.ndarray, num_labels: int) -> tuple[np.ndarray, np.ndarray]:
    """[num_labels] int64 each: the largest of the values [N] with each label but 0, and the first place that has it."""
    places = np.flatnonzero(labels)
    labels, values = labels[places], values[places].astype(np.int64)  # of another type, `at` takes ten times as long
    peaks = np.zeros(num_labels, np.int64)
    np.maximum.at(peaks, labels, values)
    at_peak = np.flatnonzero(values == peaks[labels])[::-1]
    first = np.zeros(num_labels, np.int64)
    first[labels[at_peak]] = places[at_peak]  # of several for one label the last is kept, the first in the block
    return peaks, first


def _outlines(numbers: np.ndarray, corner: tuple[int, int]) -> list[Polygon]:
    """Of each piece of a block, in order of their numbers, along the edges of pixels.

    A piece's corners on a row, from left to right, are its horizontal edges' ends in pairs, and those on a column its
    vertical edges': going from one to the other and on gives the rings. (A union of pixels takes five times as long.)
    """
    numbers = np.pad(numbers, 1, constant_values=NO_PIECE)
    y, x = np.nonzero(
        (numbers[:-1, :-1] != numbers[1:, 1:])
        | (numbers[:-1, 1:] != numbers[1:, :-1])
        | (numbers[:-1, :-1] != numbers[:-1, 1:])
    )
    corners = [_corners(numbers, y, x, down, right) for down, right in ((0, 0), (0, 1), (1, 0), (1, 1))]
    # where a piece touches itself at a corner it has two there, of two pixels. Taken in the order of these quadrants
    # along the row, and in this one along the column, neither ring crosses or touches itself: all polygons are valid
    order_in_column = np.concatenate([np.full(len(c), n) for c, n in zip(corners, (1, 2, 3, 0), strict=True)])
    corners_N3 = np.concatenate(corners)
    in_rows = np.lexsort(corners_N3.T[::-1])  # stable: the order of quadrants where all else is equal
    corners_N3, order_in_column = corners_N3[in_rows], order_in_column[in_rows]
    in_columns = np.lexsort((order_in_column, *corners_N3.T[[1, 2, 0]]))
    across = np.empty(len(corners_N3), np.int64)  # the other end of each corner's vertical edge
    across[in_columns] = in_columns.reshape(-1, 2)[:, ::-1].ravel()
    order, ends = _followed(across.tolist())
    ring_of_corner = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
    rings = shapely.linearrings(corners_N3[order][:, [2, 1]] + corner, indices=ring_of_corner)
    # a piece's first corner is on its shell, so of its rings that one is first
    return shapely.polygons(rings, indices=corners_N3[order][ends - 1, 0]).tolist()


def _corners(padded: np.ndarray, y: np.ndarray, x: np.ndarray, down: int, right: int) -> np.ndarray:
    """[N, 3] int64 (piece, y, x): the vertices at which the pixel on one side, up or down and left or right, has one.

    Args:
      padded: numbers of pieces with a border of one pixel; vertex (y, x) is between its pixels y, x and y + 1, x + 1.
    """
    own, diagonal = padded[y + down, x + right], padded[y + 1 - down, x + 1 - right]
    beside, above = own == padded[y + down, x + 1 - right], own == padded[y + 1 - down, x + right]
    is_corner = (own != NO_PIECE) & (beside == above) & ~(beside & (own == diagonal))
    return np.stack([own[is_corner], y[is_corner], x[is_corner]], axis=1)


def _followed(across: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Corners in the order of the rings that they are on, and where each ring ends, both [N] int64.

    Args:
      across: the other end of each corner's vertical edge; that of its horizontal one is its neighbour, 0 of 1, 2 of 3.
    """
    order: list[int] = []
    ends: list[int] = []
    is_passed = bytearray(len(across))
    for start in range(len(across)):
        if is_passed[start]:
            continue
        corner = start
        while not is_passed[corner]:
            is_passed[corner] = is_passed[corner ^ 1] = True
            order += (corner, corner ^ 1)
            corner = across[corner ^ 1]
        ends.append(len(order))
    return np.array(order), np.array(ends)
