"""Dice of a network as `widefield evaluate` finds it, whoever runs the network."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from trainer.batches.loader import Patch
from trainer.config.schema import IGNORE_LABEL
from trainer.evaluate.metrics import pixel_scores

Run = Callable[[np.ndarray], np.ndarray]
"""uint8 RGB [B, P, P, 3] -> probabilities float32 [B, P, P, C]."""


def confusions(run: Run, patches: Iterable[Patch], num_classes: int) -> np.ndarray:
    """[N, C, C] int64 counts of pixels of each patch, [truth, prediction]."""
    return np.stack([_confusion(run(image[np.newaxis])[0], labels, num_classes) for image, labels in patches])


def dice_of(confusions: np.ndarray) -> float:
    """Dice over all patches together; 1 where there is nothing to find and nothing is found."""
    dice = pixel_scores(confusions.sum(axis=0))["dice"]
    return 1.0 if dice is None else dice


def accuracy_of(confusion: np.ndarray) -> float:
    """Share of a patch's pixels that are right; 1 without labelled pixels."""
    accuracy = pixel_scores(confusion)["accuracy"]
    return 1.0 if accuracy is None else accuracy


def _confusion(probabilities_HWC: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    valid = labels != IGNORE_LABEL
    pairs = labels[valid].astype(np.int64) * num_classes + probabilities_HWC.argmax(axis=-1)[valid]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
