"""What was predicted on a slide and what was annotated, in one small picture for a page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from trainer.config.schema import IGNORE_LABEL, DataConfig
from trainer.errors import WidefieldError
from trainer.inspect.drawing import jpeg_uri, largest, rings_path
from trainer.inspect.markup import Html, tag
from trainer.inspect.viewer import MAX_RINGS, outline
from trainer.slides.dataset import SlideRecord
from trainer.slides.labels import open_labels
from trainer.slides.slide import open_slide

_LONGER_SIDE_PX = 1000
"""100 to 200 kB as JPEG. Outlines of `overview.png`, 2 px wide at 2048 px, are still to be seen."""


def slide_picture(record: SlideRecord, folder: Path, config: DataConfig, name: str) -> Html:
    """The overview of a prediction with the annotated areas outlined in black, ignored ones in grey.

    Where slide, annotation or overview cannot be read any more, the reason stands in the picture's place.

    Args:
      folder: of the prediction.
      name: of the picture on its page; unique there.
    """
    try:
        slide = open_slide(record.slide)
        width, height = slide.size
        image = _overview(folder / "overview.png", width / height)
        rings = open_labels(record, slide, config).outlines(max(1.0, width / image.shape[1]))
    except (WidefieldError, OSError) as error:
        return tag("p", f"no picture: {error}", class_="note")
    shapes = (
        outline(
            rings_path(largest(found, MAX_RINGS)),
            f"{name}-{label}",
            *(("line label-255", "") if label == IGNORE_LABEL else ("tissue-line", "pale")),
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
