"""From tiles, which overlap, to blocks of the map, which do not.

Tiles come row by row, and a block is finished when the last tile that counts in it has come. So the open blocks are a
strip across the map: memory grows with its width and not with its height.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np

from trainer.infer.plan import TilePlan

BLOCK = 512
"""Side of a block in map pixels: that of the tiles in the files that are made of the map."""
Place = tuple[int, int]
"""(column, row) of a block."""


@dataclass
class _Open:
    """A block that tiles are still to come for."""

    total: np.ndarray
    """[C, BLOCK, BLOCK] float32, weighted sum."""
    weight: np.ndarray = field(default_factory=lambda: np.zeros((BLOCK, BLOCK), np.float32))


class Blender:
    """Adds up tiles and gives out finished blocks.

    Args:
      tiles: numbers of the tiles that will be added, ascending.
      done: blocks that are not wanted.
    """

    def __init__(self, plan: TilePlan, tiles: Collection[int], num_classes: int, done: Collection[Place] = ()) -> None:
        self._plan, self._num_classes = plan, num_classes
        self._missing = Counter(p for t in tiles for p in blocks_of(plan, t) if p not in done)
        self._open: dict[Place, _Open] = {}

    def add(self, tile: int, probabilities: np.ndarray | None) -> Iterator[tuple[Place, np.ndarray]]:
        """Add one tile; gives the blocks that it was the last for.

        Args:
          probabilities: [P, P, C] float32; None where the tile could not be read: its neighbours then count alone.
        Returns:
          places and [C, BLOCK, BLOCK] float32 probabilities, NaN where no tile counts.
        """
        for place in blocks_of(self._plan, tile):
            if place not in self._missing:
                continue
            if probabilities is not None:
                self._add_to(place, tile, probabilities)
            self._missing[place] -= 1
            if self._missing[place] == 0:
                del self._missing[place]
                yield place, self._finished(place)

    def _add_to(self, place: Place, tile: int, probabilities: np.ndarray) -> None:
        if place not in self._open:
            self._open[place] = _Open(np.zeros((self._num_classes, BLOCK, BLOCK), np.float32))
        block = self._open[place]
        x, y = self._plan.origin(tile)
        columns, rows = (_overlap(n * BLOCK, start, self._plan.tile) for n, start in zip(place, (x, y), strict=True))
        along_x, along_y = self._plan.weights(tile)
        weight = along_y[rows[1], None] * along_x[columns[1]]
        block.weight[rows[0], columns[0]] += weight
        block.total[:, rows[0], columns[0]] += np.moveaxis(probabilities[rows[1], columns[1]], 2, 0) * weight

    def _finished(self, place: Place) -> np.ndarray:
        block = self._open.pop(place, None)
        if block is None:
            return np.full((self._num_classes, BLOCK, BLOCK), np.nan, np.float32)
        # where all tiles count their weights add up to 1; where one was left out, those of the others must
        return np.divide(block.total, block.weight, out=np.full_like(block.total, np.nan), where=block.weight > 0)


def blocks_of(plan: TilePlan, tile: int) -> list[Place]:
    """The blocks that a tile counts in."""
    left, top, right, bottom = plan.kept_boxes[tile].tolist()
    columns, rows = range(left // BLOCK, -(-right // BLOCK)), range(top // BLOCK, -(-bottom // BLOCK))
    return [(column, row) for row in rows for column in columns]


def _overlap(block: int, tile: int, size: int) -> tuple[slice, slice]:
    """What a block and a tile share along an axis, in the block's pixels and in the tile's."""
    first, last = max(block, tile), min(block + BLOCK, tile + size)
    return slice(first - block, last - block), slice(first - tile, last - tile)
