"""Connected areas of one class in one block of a map, measured and outlined. `regions.py` joins those of all blocks.

Everything is in pixels of the map, and probabilities are 0-255. Pure functions of arrays.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry
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
    outline: BaseGeometry


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
    """[num_labels] int64 each: the largest of the values [N] with each label, and the first place that has it."""
    peaks = np.zeros(num_labels, np.int64)
    np.maximum.at(peaks, labels, values)
    at_peak = np.flatnonzero(values == peaks[labels])[::-1]
    first = np.zeros(num_labels, np.int64)
    first[labels[at_peak]] = at_peak  # of several for one label the last is kept, the first in the block
    return peaks, first


def _outlines(numbers: np.ndarray, corner: tuple[int, int]) -> list[BaseGeometry]:
    """Of each piece of a block, in order of their numbers, along the edges of pixels."""
    edge = np.full((len(numbers), 1), NO_PIECE)
    changes = np.diff(numbers, axis=1, prepend=edge, append=edge) != 0
    is_piece = numbers != NO_PIECE
    rows, starts = np.nonzero(changes[:, :-1] & is_piece)
    ends = np.nonzero(changes[:, 1:] & is_piece)[1] + 1
    runs = np.stack([numbers[rows, starts], starts, ends, rows], 1)
    runs = runs[np.lexsort(runs.T[::-1])]
    # runs of the same columns in rows that follow one another are one box: fewer to join
    is_next = (np.diff(runs, axis=0) == (0, 0, 0, 1)).all(axis=1)
    tops, bottoms = runs[np.append(True, ~is_next)], runs[np.append(~is_next, True)]
    x, y = corner
    boxes = shapely.box(tops[:, 1] + x, tops[:, 3] + y, tops[:, 2] + x, bottoms[:, 3] + 1 + y)
    cuts = np.flatnonzero(np.diff(tops[:, 0])) + 1
    return [shapely.union_all(part) for part in np.split(boxes, cuts)]
