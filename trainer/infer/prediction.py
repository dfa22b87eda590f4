"""A slide's finished prediction, read back from its folder and scored against the slide's annotation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.config.schema import DataConfig
from trainer.errors import PredictionError
from trainer.evaluate.whole_slides import PredictedSlide, SlideResult, score_slide
from trainer.infer.outputs import SUMMARY
from trainer.infer.pyramid import open_pyramid
from trainer.slides.dataset import SlideRecord
from trainer.slides.labels import open_labels
from trainer.slides.slide import open_slide


def score_prediction(record: SlideRecord, folder: Path, config: DataConfig, positives: Sequence[str]) -> SlideResult:
    """Score the prediction in a folder against the slide's annotation.

    Args:
      positives: names of the classes that are tumour.
    Raises:
      PredictionError: the folder's files are missing or damaged.
      SlideError, AnnotationError: slide or annotation cannot be read.
    """
    predicted = open_prediction(folder, config.class_names)
    slide = open_slide(record.slide)
    labels = open_labels(record, slide, config)
    return score_slide(record, folder, predicted, labels, slide.size, config.class_names, positives)


def open_prediction(folder: Path, class_names: Sequence[str]) -> PredictedSlide:
    """What `widefield predict` wrote into a folder.

    Raises:
      PredictionError: a file is missing or damaged; also when the maps are read.
    """
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        made_from = json.loads((folder / "map.json").read_text(encoding="utf-8"))["made_from"]
        size, classes = open_pyramid(folder / "classes.tif")
        return PredictedSlide(
            size=size,
            downsample=summary["downsample"],
            mpp=summary["mpp"],
            classes=classes,
            probabilities=tuple(open_pyramid(folder / f"probability-{name}.tif")[1] for name in class_names[1:]),
            lesions=summary["lesions"],
            slide_hash=made_from["slide_hash"],
            network=made_from["network"],
            notes=(*summary["notes"], *_holes(summary)),
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise PredictionError(
            f"does not hold a whole prediction ({type(error).__name__}: {error})",
            where=str(folder),
            fix=f"rm -r {folder}, then run the command again",
        ) from None


def _holes(summary: dict[str, Any]) -> list[str]:
    holes = summary["holes"]
    return [f"{len(holes)} parts of the slide could not be read and are not predicted"] if holes else []
