"""Which tiles a slide's map is predicted in, and how much each of them counts at each pixel. Arithmetic only.

All coordinates are map pixels: those at the network's resolution, from the slide's top-left corner. Along each axis
neighbouring tiles meet at a seam, the middle of the pixels they share. Over `overlap` pixels around it the one fades
out as the other fades in. From there to its edge, half an overlap or more, a tile does not count: it has not seen what
lies beyond.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trainer.errors import ConfigError


@dataclass(frozen=True)
class Axis:
    """Tiles along one axis of a map.

    Args:
      length: of the map, at least 1.
      tile: side of a tile; longer than the map where that is short.
      overlap: pixels over which neighbours blend; they share twice as many, or more where the last tile is shifted
        inwards to end with the map.
    """

    length: int
    tile: int
    overlap: int

    @cached_property
    def origins(self) -> tuple[int, ...]:
        """First pixel of each tile, ascending."""
        last = max(0, self.length - self.tile)
        return (*range(0, last, self.tile - 2 * self.overlap), last)

    def weights(self, number: int) -> np.ndarray:
        """[tile] float32, how much one tile counts at each of its pixels; 0 beyond the map.

        Over all tiles they add up to 1 at every pixel of the map: each is the difference of two neighbouring ramps,
        the first of which is 1 and the last 0 everywhere.
        """
        pixels = self.origins[number] + np.arange(self.tile)
        weights = self._ramp(number, pixels) - self._ramp(number + 1, pixels)
        return np.where(pixels < self.length, weights, 0).astype(np.float32)

    def kept(self, number: int) -> tuple[int, int]:
        """First and one past the last pixel of the map at which a tile counts."""
        inside = np.flatnonzero(self.weights(number)) + self.origins[number]
        return int(inside[0]), int(inside[-1]) + 1

    def _ramp(self, seam: int, pixels: np.ndarray) -> np.ndarray:
        """From 0 to 1 around the seam before tile `seam`."""
        if seam in (0, len(self.origins)):
            return np.full(len(pixels), float(seam == 0))
        middle = (self.origins[seam - 1] + self.tile + self.origins[seam]) / 2
        return np.clip((pixels + 0.5 - middle) / max(self.overlap, 1) + 0.5, 0, 1)


@dataclass(frozen=True)
class TilePlan:
    """All tiles of a map, numbered row by row.

    Args:
      columns, rows: along x and y, with the same side of tiles.
    """

    columns: Axis
    rows: Axis

    @property
    def tile(self) -> int:
        """Side of a tile."""
        return self.columns.tile

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the map."""
        return self.columns.length, self.rows.length

    def __len__(self) -> int:
        return len(self.columns.origins) * len(self.rows.origins)

    def origin(self, number: int) -> tuple[int, int]:
        """(x, y) of a tile's top-left corner."""
        row, column = divmod(number, len(self.columns.origins))
        return self.columns.origins[column], self.rows.origins[row]

    def weights(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """A tile's weights along x and along y, [tile] float32 each: a pixel counts by their product."""
        row, column = divmod(number, len(self.columns.origins))
        return self._column_weights[column], self._row_weights[row]

    @cached_property
    def kept_boxes(self) -> np.ndarray:
        """[N, 4] int64 (left, top, right, bottom): where each tile counts. Together they cover the map."""
        x = np.array([self.columns.kept(n) for n in range(len(self.columns.origins))], np.int64)
        y = np.array([self.rows.kept(n) for n in range(len(self.rows.origins))], np.int64)
        columns, rows = np.tile(x, (len(y), 1)), np.repeat(y, len(x), axis=0)
        return np.stack([columns[:, 0], rows[:, 0], columns[:, 1], rows[:, 1]], axis=1)

    @cached_property
    def _column_weights(self) -> list[np.ndarray]:
        return [self.columns.weights(n) for n in range(len(self.columns.origins))]

    @cached_property
    def _row_weights(self) -> list[np.ndarray]:
        return [self.rows.weights(n) for n in range(len(self.rows.origins))]


def plan_tiles(size: tuple[int, int], tile: int, overlap: int | None = None) -> TilePlan:
    """The tiles of a map of `size` (width, height).

    A network whose receptive field is not wider than `overlap` predicts every pixel as it would in one image.

    Args:
      overlap: see `Axis`; None is an eighth of a tile, so that a quarter is shared with each neighbour.
    Raises:
      ConfigError: tiles do not advance.
    """
    overlap = tile // 8 if overlap is None else overlap
    if not 0 <= 2 * overlap < tile:
        raise ConfigError(
            f"tiles of {tile} px share twice the overlap with each neighbour: it cannot be {overlap} px",
            where="--overlap",
            fix=f"0 to {math.ceil(tile / 2) - 1}; {tile // 8} is the default",
        )
    return TilePlan(Axis(size[0], tile, overlap), Axis(size[1], tile, overlap))
