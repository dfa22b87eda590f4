"""Predict a slide: read tiles, run the network on them, write the blocks that they become, all three at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
    """Predict what a map still lacks. Tiles that cannot be read become its holes.

    Args:
      threads: that read.
      progress: told (tiles done, all that were to do) after each batch.
    Raises:
      SlideError: no tile at all can be read.
    """
    tiles = unpredicted(view, plan, map_file)
    blender = Blender(plan, tiles, map_file.num_classes, map_file.finished())
    batch_size = max(1, _BATCH_PX // plan.tile**2)
    batches = [tiles[i : i + batch_size] for i in range(0, len(tiles), batch_size)]
    jobs = ([partial(_read, view, plan, tile) for tile in batch] for batch in batches)
    writing: deque[Future[None]] = deque()
    done = num_unread = 0
    with ThreadPoolExecutor(1, "write") as writer:
        for batch, images in zip(batches, read_ahead(jobs, threads, _READ_AHEAD), strict=True):
            probabilities = _predicted(network, images, (batch_size, plan.tile))
            writing.append(writer.submit(_write, batch, images, probabilities, blender, map_file))
            if len(writing) > _WRITE_BEHIND:
                writing.popleft().result()
            done += len(batch)
            num_unread += sum(isinstance(image, Hole) for image in images)
            progress(done, len(tiles))
        for future in writing:
            future.result()
    map_file.sync()
    if tiles and num_unread == len(tiles):
        raise SlideError(
            f"none of its {len(tiles)} tiles can be read; the first: {map_file.holes[0].why}",
            where=str(view.slide.path),
            fix="copy the file again from its source",
        )


def _read(view: SlideView, plan: TilePlan, tile: int) -> np.ndarray | Hole:
    x, y = plan.origin(tile)
    try:
        return view.read(x, y, plan.tile)
    except SlideError as error:
        return Hole(x, y, plan.tile, error.what)


def _predicted(network: Network, images: Sequence[np.ndarray | Hole], shape: tuple[int, int]) -> np.ndarray:
    """[B, P, P, C] float32 for (B, P): always the same, as a network is compiled for one shape. Holes are black."""
    batch_size, tile = shape
    batch = np.zeros((batch_size, tile, tile, 3), np.uint8)
    for target, image in zip(batch, images, strict=False):
        if not isinstance(image, Hole):
            target[:] = image
    return network(batch)


def _write(
    tiles: Sequence[int],
    images: Sequence[np.ndarray | Hole],
    probabilities: np.ndarray,
    blender: Blender,
    map_file: MapFile,
) -> None:
    for tile, image, values in zip(tiles, images, probabilities, strict=False):
        if isinstance(image, Hole):
            map_file.add_hole(image)
        for place, block in blender.add(tile, None if isinstance(image, Hole) else values):
            map_file.write(place, block)
