"""The files that people open, from a finished map."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageColor

from trainer.files import replace_content
from trainer.infer.blend import BLOCK
from trainer.infer.map_file import NOT_PREDICTED, Hole, MapFile
from trainer.infer.overview import write_overview
from trainer.infer.pyramid import write_pyramid
from trainer.infer.regions import regions_of, write_geojson
from trainer.infer.slide_view import SlideView
from trainer.infer.summary import summary
from trainer.inspect.colours import class_colour

SUMMARY = "summary.json"
"""Written last: where it is, a slide is finished."""
_FIRST_CLASS = (255, 255, 255)
Colour = tuple[int, int, int]
"""RGB."""


def write_outputs(folder: Path, map_file: MapFile, view: SlideView, class_names: tuple[str, ...]) -> dict[str, Any]:
    """Write pyramids, regions, overview and, last, the summary, which is returned.

    The summary also says level-0 pixels per map pixel (`downsample`) and what is to be told of the slide (`notes`).
    """
    colours = [_FIRST_CLASS, *(_rgb(class_colour(n)) for n in range(1, len(class_names)))]
    with ThreadPoolExecutor(1, "pyramids") as pool:  # meanwhile the regions are found: as much work
        pyramids = pool.submit(_write_pyramids, folder, map_file, view.mpp, class_names, colours)
        areas = pool.submit(class_areas, map_file, class_names)
        regions = regions_of(
            map_file.read_classes,
            map_file.read_probability,
            *map_file.size,
            class_names,
            view.downsample,
            view.mpp,
        )
        write_geojson(folder / "regions.geojson", regions, class_names, colours)
        thumbnail, downsample = view.thumbnail()
        write_overview(folder / "overview.png", thumbnail, regions, downsample, class_names, colours)
        pyramids.result()
    found = summary(
        slide=view.slide.path.name,
        regions=regions,
        class_px=areas.result(),
        mpp=view.mpp,
        holes=[_on_slide(hole, view.downsample) for hole in map_file.holes],
    )
    found |= {"downsample": view.downsample, "notes": list(view.notes)}
    replace_content(folder / SUMMARY, json.dumps(found, indent=1) + "\n")
    return found


def _write_pyramids(
    folder: Path, map_file: MapFile, mpp: float | None, class_names: Sequence[str], colours: Sequence[Colour]
) -> None:
    for number, name in list(enumerate(class_names))[1:]:
        read = partial(map_file.read_probability, number)
        write_pyramid(folder / f"probability-{name}.tif", read, *map_file.size, mpp=mpp)
    write_pyramid(folder / "classes.tif", map_file.read_classes, *map_file.size, mpp=mpp, colours=colours)


def class_areas(map_file: MapFile, class_names: tuple[str, ...]) -> dict[str, int]:
    """Map pixels of each class."""
    counts = np.zeros(NOT_PREDICTED + 1, np.int64)
    for column, row in map_file.finished():
        classes = map_file.read_classes(column * BLOCK, row * BLOCK, BLOCK, BLOCK)
        counts += np.bincount(classes.ravel(), minlength=len(counts))
    return dict(zip(class_names, counts.tolist(), strict=False))


def _on_slide(hole: Hole, downsample: float) -> dict[str, Any]:
    """A hole in level-0 pixels, for people and programs."""
    x, y, side = (round(n * downsample) for n in (hole.x, hole.y, hole.side))
    return {"x": x, "y": y, "width": side, "height": side, "why": hole.why}


def _rgb(colour: str) -> Colour:
    red, green, blue = ImageColor.getrgb(colour)[:3]
    return red, green, blue
