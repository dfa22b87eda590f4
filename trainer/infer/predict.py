"""Predict a slide: read tiles, run the network on them, write the blocks that they become, all three at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from trainer.batches.loader import read_ahead
from trainer.errors import SlideError
from trainer.infer.blend import Blender, blocks_of
from trainer.infer.map_file import Hole, MapFile
from trainer.infer.network import Network
from trainer.infer.plan import TilePlan
from trainer.infer.slide_view import SlideView

_BATCH_PX = 1 << 20
"""Pixels of a batch: one tile of 1024 px, or 16 of 256 px. Fewer leave cores idle, more only take memory."""
_PART = 256
"""Side of the squares that a tile is read in where it cannot be read whole: that of most slides' own tiles."""
_READ_AHEAD, _WRITE_BEHIND = 3, 2
"""Batches that are read before the network wants them, and that may wait to be written."""


def unpredicted(view: SlideView, plan: TilePlan, map_file: MapFile) -> list[int]:
    """Tiles with tissue that some block of the map still waits for, in the order they are predicted."""
    finished = map_file.finished()
    return [t for t in view.tiles_with_tissue(plan) if not finished.issuperset(blocks_of(plan, t))]


def predict_map(
    view: SlideView,
    network: Network,
    plan: TilePlan,
    map_file: MapFile,
    *,
    threads: int,
    progress: Callable[[int, int], None],
) -> None:
    """Predict what a map still lacks. What cannot be read of the slide becomes holes of the map.

    Args:
      threads: that read.
      progress: told (tiles done, all that were to do) after each batch.
    Raises:
      SlideError: nothing at all can be read.
    """
    tiles = unpredicted(view, plan, map_file)
    blender = Blender(plan, tiles, map_file.num_classes, map_file.finished())
    batch_size = max(1, _BATCH_PX // plan.tile**2)
    batches = [tiles[i : i + batch_size] for i in range(0, len(tiles), batch_size)]
    jobs = ([partial(_read, view, plan, tile) for tile in batch] for batch in batches)
    writing: deque[Future[None]] = deque()
    done = 0
    with ThreadPoolExecutor(1, "write") as writer:
        for batch, images in zip(batches, read_ahead(jobs, threads, _READ_AHEAD), strict=True):
            probabilities = _predicted(network, images, batch_size)
            writing.append(writer.submit(_write, batch, images, probabilities, blender, map_file))
            if len(writing) > _WRITE_BEHIND:
                writing.popleft().result()
            done += len(batch)
            progress(done, len(tiles))
        for future in writing:
            future.result()
    map_file.sync()
    if map_file.holes and not map_file.has_predictions():
        raise SlideError(
            f"nothing of its tissue can be read; the first part: {map_file.holes[0].why}",
            where=str(view.slide.path),
            fix=f"copy the file again from its source, then rm -r {map_file.folder}",
        )


@dataclass(frozen=True)
class _Image:
    """A tile as it was read.

    Args:
      pixels: [P, P, 3] uint8, white in the holes.
      counts: [P, P] bool, False in and near the holes; None where there are none.
    """

    pixels: np.ndarray
    holes: tuple[Hole, ...] = ()
    counts: np.ndarray | None = None


def _read(view: SlideView, plan: TilePlan, tile: int) -> _Image:
    x, y = plan.origin(tile)
    try:
        return _Image(view.read(x, y, plan.tile))
    except SlideError:
        return _read_around_holes(view, plan, x, y)


def _read_around_holes(view: SlideView, plan: TilePlan, x: int, y: int) -> _Image:
    """A tile in parts: squares of a grid on the map, so that tiles which share a hole agree on it.

    Pixels beside a hole count as little as those beside the cut edge of a tile.
    """
    pixels = np.full((plan.tile, plan.tile, 3), 255, np.uint8)
    counts, holes, margin = np.ones(pixels.shape[:2], bool), [], -(-plan.columns.overlap // 2)
    for top in range(y // _PART * _PART, y + plan.tile, _PART):
        for left in range(x // _PART * _PART, x + plan.tile, _PART):
            try:
                part = view.read(left, top, _PART)[max(0, y - top) :, max(0, x - left) :]
                target = pixels[max(0, top - y) : top - y + _PART, max(0, left - x) : left - x + _PART]
                target[:] = part[: target.shape[0], : target.shape[1]]
            except SlideError as error:
                holes.append(Hole(left, top, _PART, error.what))
                rows, columns = (slice(max(0, n - margin), n + _PART + margin) for n in (top - y, left - x))
                counts[rows, columns] = False
    return _Image(pixels, tuple(holes), counts)


def _predicted(network: Network, images: Sequence[_Image], batch_size: int) -> np.ndarray:
    """[B, P, P, C] float32, with always the same B: a network is compiled for one shape."""
    batch = np.zeros((batch_size, *images[0].pixels.shape), np.uint8)
    np.stack([image.pixels for image in images], out=batch[: len(images)])
    return network(batch)


def _write(
    tiles: Sequence[int], images: Sequence[_Image], probabilities: np.ndarray, blender: Blender, map_file: MapFile
) -> None:
    for tile, image, values in zip(tiles, images, probabilities, strict=False):
        for hole in image.holes:
            map_file.add_hole(hole)
        for place, block in blender.add(tile, values, image.counts):
            map_file.write(place, block)
