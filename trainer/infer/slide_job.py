"""One slide from file to files: open it, predict its map where that is not done, write what people open."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from trainer.errors import PredictionError
from trainer.infer.map_file import Hole, MapFile, holes_of, remove_blocks
from trainer.infer.network import Network
from trainer.infer.outputs import SUMMARY, write_outputs
from trainer.infer.plan import TilePlan, plan_tiles
from trainer.infer.predict import predict_map, unpredicted
from trainer.infer.slide_view import SlideView, open_view
from trainer.infer.tiles import PredictTiles, predict_here
from trainer.slides.identity import slide_hash


def predict_slide(
    slide: Path,
    network: Network,
    folder: Path,
    *,
    tile: int | None = None,
    overlap: int | None = None,
    mpp: float | None = None,
    listed_mpp: float | None = None,
    threads: int,
    predict_tiles: PredictTiles | None = None,
    say: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Predict one slide into a folder of its own; what is there of it already is kept.

    Args:
      network: not called for a slide that is finished.
      tile, overlap: map pixels, see `plan_tiles`; None is the largest trained size.
      mpp: micrometres per level-0 pixel where the slide does not say it.
      listed_mpp: the same from a manifest, which wins over the slide.
      threads: that read the slide.
      predict_tiles: has tiles read and predicted elsewhere, by the same network; None: that is done here.
      say: told what people should know, a line each.
      progress: told (tiles done, tiles to do); what it raises ends the work, to be taken up again by another call.
    Returns:
      what `summary.json` holds.
    Raises:
      SlideError: it cannot be opened or read at all. ConfigError: tiles do not fit the overlap.
      PredictionError: the folder holds something else, or cannot be written.
    """
    recipe = replace(network.recipe, mpp=mpp or network.recipe.mpp)
    tile = tile or recipe.patch_sizes[-1]
    made_from = {"slide": slide.name, "slide_hash": slide_hash(slide), "tile": tile, "overlap": overlap}
    made_from |= {"listed_mpp": listed_mpp} | recipe.to_json()
    finished = folder / SUMMARY
    holes = holes_of(folder, made_from)
    if holes is not None and finished.exists():
        remove_blocks(folder)  # still there after a kill between the summary and their end
        say(f"was finished before: {finished}")
        _tell(holes, folder, say)
        return json.loads(finished.read_text(encoding="utf-8"))
    view = open_view(slide, recipe, listed_mpp)
    for note in view.notes:
        say(note)
    plan = plan_tiles(view.size, tile, overlap)
    predict_tiles = predict_tiles or partial(predict_here, network, threads)
    try:
        with closing(MapFile(folder, view.size, len(recipe.class_names), made_from)) as map_file:
            say(_what_there_is_to_do(view, plan, map_file))
            predict_map(view, predict_tiles, plan, map_file, progress=progress)
            _tell(map_file.holes, folder, say)
            say("writing the files")
            found = write_outputs(folder, map_file, view, recipe.class_names)
            remove_blocks(folder)
            return found
    except OSError as error:
        raise PredictionError(
            f"cannot be written: {error}",
            where=str(folder),
            fix="free some space or give another folder; run the same command again to go on",
        ) from None


def _tell(holes: Sequence[Hole], folder: Path, say: Callable[[str], None]) -> None:
    for why in dict.fromkeys(hole.why for hole in holes):
        say(f"warning: left out: {why}")
    if holes:
        say(f"what is left out stays so: once the slide is mended, rm -r {folder} and predict it again")


def _what_there_is_to_do(view: SlideView, plan: TilePlan, map_file: MapFile) -> str:
    with_tissue = len(view.tiles_with_tissue(plan))
    done = with_tissue - len(unpredicted(view, plan, map_file))
    width, height = view.size
    return f"{width} x {height} px, {with_tissue} of {len(plan)} tiles have tissue, {done} of them are predicted"
