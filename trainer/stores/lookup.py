"""Which stored patch is, or holds, a given square. Pure functions of the index.

The patches of one slide and size are ordered by y, then x: both searches are binary, with nothing to build or keep.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer.patches.index import PatchIndex


@dataclass(frozen=True)
class Crop:
    """Rows `top` to `top + size`, columns `left` to `left + size` of the patch in index row `row`."""

    row: int
    left: int
    top: int
    size: int


def patch_at(index: PatchIndex, slide: int, x: int, y: int, size: int) -> int | None:
    """The index row of the patch with this corner (level-0 pixels) and size, None where there is none."""
    rows = index.rows_of(slide, size)
    first, last = rows.start + np.searchsorted(index.y[rows], [y, y + 1])
    row = int(first + np.searchsorted(index.x[first:last], x))
    return row if row < last and index.x[row] == x else None


def patch_around(index: PatchIndex, slide: int, x: int, y: int, size: int) -> Crop | None:
    """A larger patch that holds the square on its own pixel grid; the largest, so that neighbours share one."""
    for larger in sorted((s for s in index.patch_sizes if s > size), reverse=True):
        crop = _crop(index, slide, x, y, size, larger)
        if crop:
            return crop
    return None


def _crop(index: PatchIndex, slide: int, x: int, y: int, size: int, larger: int) -> Crop | None:
    downsample, room = index.infos[slide].downsample, larger - size
    rows = index.rows_of(slide, larger)
    highest = y - round(room * downsample)
    first, last = rows.start + np.searchsorted(index.y[rows], [highest, y + 1])
    corners = np.stack([index.x[first:last], index.y[first:last]], axis=1)
    offsets = np.rint(((x, y) - corners) / downsample).astype(np.int64)
    inside = ((offsets >= 0) & (offsets <= room)).all(axis=1)
    on_grid = (corners + np.rint(offsets * downsample).astype(np.int64) == (x, y)).all(axis=1)
    found = np.flatnonzero(inside & on_grid)
    if len(found) == 0:
        return None
    left, top = offsets[found[0]]
    return Crop(int(first + found[0]), int(left), int(top), size)
