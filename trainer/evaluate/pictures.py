"""Validation regions beside their truth and prediction, kept as small PNGs that the report puts together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from trainer.config.schema import IGNORE_LABEL
from trainer.evaluate.score import Evaluator

PICTURE_PX = 512
"""Longest side of a region in the report."""


def save_stage_pictures(run: Path, evaluator: Evaluator, predictions: Sequence[np.ndarray], stage: int) -> None:
    """Write `figures/regions/N-{image,truth,stageS}.png` for the regions worth looking at; class numbers, not colours.

    Args:
      predictions: `evaluator.pictures`. Called on rank 0 alone: it takes part in no collective.
    """
    folder = run / "figures" / "regions"
    folder.mkdir(parents=True, exist_ok=True)
    for number, (region, predicted) in enumerate(zip(evaluator.figure_regions(), predictions, strict=True)):
        image, truth = evaluator.region_pixels(region)
        step = max(1, -(-region.size // PICTURE_PX))
        Image.fromarray(np.ascontiguousarray(image[::step, ::step])).save(folder / f"{number}-image.png")
        Image.fromarray(np.ascontiguousarray(truth[::step, ::step])).save(folder / f"{number}-truth.png")
        predicted[truth == IGNORE_LABEL] = IGNORE_LABEL
        Image.fromarray(np.ascontiguousarray(predicted[::step, ::step])).save(folder / f"{number}-stage{stage}.png")
