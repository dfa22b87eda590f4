"""Tiles of a slide: read, with what is damaged left out, and put through the network, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from trainer.batches.loader import read_ahead
from trainer.errors import SlideError
from trainer.infer.map_file import Hole
from trainer.infer.network import Network
from trainer.infer.plan import TilePlan
from trainer.infer.slide_view import SlidePixels

_BATCH_PX = 1 << 20
"""Pixels of a batch: one tile of 1024 px, or 16 of 256 px. Fewer leave cores idle, more only take memory."""
_PART = 256
"""Side of the squares that a tile is read in where it cannot be read whole: that of most slides' own tiles."""
_READ_AHEAD = 3
"""Batches that are read before the network wants them. Of tiles that are larger than a batch it is one: memory."""


@dataclass(frozen=True)
class TileBatch:
    """Tiles that go through the network together.

    Args:
      numbers: of the tiles in their plan.
      origins: (x, y) of their top-left corners, in map pixels.
      tile: their side.
      margin: pixels beside a hole that count as little as the hole, like those beside the cut edge of a tile.
    """

    numbers: tuple[int, ...]
    origins: tuple[tuple[int, int], ...]
    tile: int
    margin: int


@dataclass(frozen=True)
class Predicted:
    """What became of a tile.

    Args:
      probabilities: [P, P, C] float32.
      holes: squares of it that could not be read.
      counts: [P, P] bool, False in and near the holes; None where there are none.
    """

    probabilities: np.ndarray
    holes: tuple[Hole, ...]
    counts: np.ndarray | None


PredictTiles = Callable[[SlidePixels, Sequence[TileBatch]], Generator[list[Predicted]]]
"""Gives what became of the tiles of each batch, in order: here (`predict_here`), or by workers (`by_workers.py`)."""


def batches_of(plan: TilePlan, tiles: Sequence[int]) -> list[TileBatch]:
    """Some tiles of a plan in batches, in their order: the same whoever predicts them."""
    size, margin = _batch_size(plan.tile), -(-plan.columns.overlap // 2)
    parts = [tuple(tiles[i : i + size]) for i in range(0, len(tiles), size)]
    return [TileBatch(part, tuple(plan.origin(t) for t in part), plan.tile, margin) for part in parts]


def predict_here(
    network: Network, threads: int, pixels: SlidePixels, batches: Sequence[TileBatch]
) -> Generator[list[Predicted]]:
    """Read in threads and predict in this process; see `PredictTiles`."""
    jobs = ([partial(_read, pixels, batch, x, y) for x, y in batch.origins] for batch in batches)
    ahead = _READ_AHEAD if all(batch.tile**2 <= _BATCH_PX for batch in batches) else 1
    for images in read_ahead(jobs, threads, ahead):
        probabilities = network(_stacked([image.pixels for image in images]))
        yield [Predicted(p, i.holes, i.counts) for p, i in zip(probabilities, images, strict=False)]


def _batch_size(tile: int) -> int:
    return max(1, _BATCH_PX // tile**2)


def _stacked(images: Sequence[np.ndarray]) -> np.ndarray:
    """[B, P, P, 3] uint8, with always the same B: a network is compiled for one shape."""
    batch = np.zeros((_batch_size(len(images[0])), *images[0].shape), np.uint8)
    np.stack(images, out=batch[: len(images)])
    return batch


@dataclass(frozen=True)
class _Image:
    """A tile as it was read: [P, P, 3] uint8, white in the holes. The rest as in `Predicted`."""

    pixels: np.ndarray
    holes: tuple[Hole, ...] = ()
    counts: np.ndarray | None = None


def _read(pixels: SlidePixels, batch: TileBatch, x: int, y: int) -> _Image:
    try:
        return _Image(pixels.read(x, y, batch.tile))
    except SlideError:
        return _read_around_holes(pixels, batch, x, y)


def _read_around_holes(pixels: SlidePixels, batch: TileBatch, x: int, y: int) -> _Image:
    """A tile in parts: squares of a grid on the map, so that tiles which share a hole agree on it."""
    image = np.full((batch.tile, batch.tile, 3), 255, np.uint8)
    counts, holes, margin = np.ones(image.shape[:2], bool), [], batch.margin
    for top in range(y // _PART * _PART, y + batch.tile, _PART):
        for left in range(x // _PART * _PART, x + batch.tile, _PART):
            try:
                part = pixels.read(left, top, _PART)[max(0, y - top) :, max(0, x - left) :]
                target = image[max(0, top - y) : top - y + _PART, max(0, left - x) : left - x + _PART]
                target[:] = part[: target.shape[0], : target.shape[1]]
            except SlideError as error:
                holes.append(Hole(left, top, _PART, error.what))
                rows, columns = (slice(max(0, n - margin), n + _PART + margin) for n in (top - y, left - x))
                counts[rows, columns] = False
    return _Image(image, tuple(holes), counts)
