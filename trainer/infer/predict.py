"""Predict a slide's map: tiles are read, predicted, and written as the blocks that they become, all three at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

from trainer.errors import SlideError
from trainer.infer.blend import Blender, blocks_of
from trainer.infer.map_file import MapFile
from trainer.infer.plan import TilePlan
from trainer.infer.slide_view import SlideView
from trainer.infer.tiles import Predicted, PredictTiles, batches_of

_WRITE_BEHIND = 1
"""Batches that may wait to be written, beside the one that is being written."""


def unpredicted(view: SlideView, plan: TilePlan, map_file: MapFile) -> list[int]:
    """Tiles with tissue that some block of the map still waits for, in the order they are predicted."""
    finished = map_file.finished()
    return [t for t in view.tiles_with_tissue(plan) if not finished.issuperset(blocks_of(plan, t))]


def predict_map(
    view: SlideView,
    predict_tiles: PredictTiles,
    plan: TilePlan,
    map_file: MapFile,
    *,
    progress: Callable[[int, int], None],
) -> None:
    """Predict what a map still lacks. What cannot be read of the slide becomes holes of the map.

    Args:
      progress: told (tiles done, all that were to do) after each batch. What it raises ends the work; all that was
        predicted until then is written.
    Raises:
      SlideError: nothing at all can be read.
    """
    tiles = unpredicted(view, plan, map_file)
    blender = Blender(plan, tiles, map_file.num_classes, map_file.finished())
    batches = batches_of(plan, tiles)
    writing: deque[Future[None]] = deque()
    done = 0
    with ThreadPoolExecutor(1, "write") as writer, closing(predict_tiles(view, batches)) as results:
        for batch, predicted in zip(batches, results, strict=True):
            writing.append(writer.submit(_write, batch.numbers, predicted, blender, map_file))
            if len(writing) > _WRITE_BEHIND:
                writing.popleft().result()
            done += len(batch.numbers)
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


def _write(tiles: Sequence[int], predicted: Sequence[Predicted], blender: Blender, map_file: MapFile) -> None:
    for number, tile in zip(tiles, predicted, strict=True):
        for hole in tile.holes:
            map_file.add_hole(hole)
        for place, block in blender.add(number, tile.probabilities, tile.counts):
            map_file.write(place, block)
