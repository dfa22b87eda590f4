"""Which pixels are scored: validation patches of one size, and the footprint that all sizes share.

The common footprint is the validation patches of the largest size ("regions"). A smaller size tiles each region from
its top-left corner; where the size does not divide the region, the last row and column of tiles are shifted inwards
and only their not yet covered pixels count. So every size is scored on exactly the same pixels, each once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer.patches.index import PatchIndex


@dataclass(frozen=True)
class Tile:
    """One patch to score. The first `skip_x` columns and `skip_y` rows belong to the tile before it."""

    slide: int
    x: int
    y: int
    size: int
    skip_x: int = 0
    skip_y: int = 0


def validation_tiles(index: PatchIndex, size: int, seed: int, limit: int | None = None) -> list[Tile]:
    """The validation patches of one size, as `drawn_tiles`."""
    return drawn_tiles(index, "val", size, seed, limit)


def drawn_tiles(index: PatchIndex, split: str, size: int, seed: int, limit: int | None = None) -> list[Tile]:
    """The patches of one side of the split and one size; with a limit, a seeded draw of them, in index order."""
    rows = index.select(size, split)
    if limit is not None and len(rows) > limit:
        rows = np.sort(np.random.default_rng([seed, size]).choice(rows, limit, replace=False))
    columns = (index.slide, index.x, index.y, index.size)
    return [Tile(*(int(c[r]) for c in columns)) for r in rows]


def tile_offsets(region_size: int, size: int) -> list[tuple[int, int]]:
    """(offset, skip) of the tiles along one side of a region: together they cover each pixel once."""
    offsets = [(o, 0) for o in range(0, region_size - size + 1, size)]
    rest = region_size - len(offsets) * size
    return [*offsets, (region_size - size, size - rest)] if rest else offsets


def footprint_tiles(regions: list[Tile], size: int, downsample: float) -> list[Tile]:
    """The regions tiled by a smaller size; `downsample` is level-0 pixels per patch pixel."""
    return [
        Tile(r.slide, r.x + round(ox * downsample), r.y + round(oy * downsample), size, sx, sy)
        for r in regions
        for oy, sy in tile_offsets(r.size, size)
        for ox, sx in tile_offsets(r.size, size)
    ]
