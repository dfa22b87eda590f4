"""What was predicted on a slide and what was annotated, in one small picture for a page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from trainer.config.schema import IGNORE_LABEL, DataConfig
from trainer.errors import WidefieldError
from trainer.inspect.drawing import jpeg_uri, largest, rings_path
from trainer.inspect.markup import Html, tag
from trainer.inspect.viewer import MAX_RINGS
from trainer.slides.dataset import SlideRecord
from trainer.slides.labels import open_labels
from trainer.slides.slide import open_slide

_LONGER_SIDE_PX = 1000
"""100 to 200 kB as JPEG. Outlines of `overview.png`, 2 px wide at 2048 px, are still to be seen."""


def slide_picture(record: SlideRecord, folder: Path, config: DataConfig) -> Html:
    """The overview of a prediction with the annotated areas in broken black lines, ignored ones in grey.

    The lines are broken so that those of the prediction are to be seen beneath. Where slide, annotation or overview
    cannot be read any more, the reason stands in the picture's place. It needs the style sheet of `inspect`.

    Args:
      folder: of the prediction.
    """
    try:
        slide = open_slide(record.slide)
        width, height = slide.size
        image = _overview(folder / "overview.png", width / height)
        rings = open_labels(record, slide, config).outlines(max(1.0, width / image.shape[1]))
    except (WidefieldError, OSError) as error:
        return tag("p", f"no picture: {error}", class_="note")
    shapes = (
        tag(
            "path",
            d=rings_path(largest(found, MAX_RINGS)),
            class_="line label-255" if label == IGNORE_LABEL else "mark",
        )
        for label, found in sorted(rings.items())
    )
    limit = f"max-width: min(100%, calc(85vh * {width / height:.4f}))"
    return tag(
        "div",
        tag("img", src=jpeg_uri(image), alt=f"{record.slide.name}: prediction and annotation"),
        tag("svg", *shapes, viewBox=f"0 0 {width} {height}", preserveAspectRatio="none", aria_hidden="true"),
        class_="stack",
        style=limit,
    )


def _overview(path: Path, aspect: float) -> np.ndarray:
    """[h, w, 3] uint8: the slide on an overview, without the legend below it, made smaller.

    Args:
      aspect: width of the slide divided by its height.
    """
    with Image.open(path) as overview:
        slide = overview.convert("RGB").crop((0, 0, overview.width, max(1, round(overview.width / aspect))))
    slide.thumbnail((_LONGER_SIDE_PX, _LONGER_SIDE_PX))
    return np.asarray(slide)
