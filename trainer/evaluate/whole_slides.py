"""One predicted slide against its annotation: pixels, lesions, and the slide's score.

The map of a slide is read in blocks, and its truth is drawn for the same blocks, so memory does not depend on the
slide's size but for the mask that lesions are made from (see MASK_MPP).

Which pixels count: those that are annotated and predicted, as for patches. Ignored areas never count. Where nothing
was predicted for lack of tissue, the first class is not counted: all the glass of a slide would hide every mistake. A
pixel of another class counts as one that was taken for the first class, with probability 0: it was missed.

A predicted region whose peak lies in an ignored area is neither right nor wrong: it is no detection, and the score of
the slide does not know of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.config.schema import IGNORE_LABEL
from trainer.evaluate.froc import Detection, SlideHits, lesions_of, match
from trainer.evaluate.metrics import Sums
from trainer.slides.dataset import SlideRecord
from trainer.slides.labels import Labels

MASK_MPP = 8.0
"""Lesions are made from a mask of this resolution, or the slide's own where that is coarser. The challenge's script
takes level 5 of CAMELYON16's slides, 7.8 um/px. 20 million pixels for a slide of 5 x 2.5 cm."""
_NOT_PREDICTED = 255
_BLOCK_PX = 1024
_BINS = 256
"""Every probability of a map, 0-255, has a bin of its own, so the AUC of the map is exact."""

Read = Callable[[int, int, int, int], np.ndarray]
"""read(x, y, width, height) in map pixels -> uint8 [height, width]."""


@dataclass(frozen=True)
class PredictedSlide:
    """The map of a slide and the lesions that were found on it.

    Fields:
      size: (width, height) of the map.
      downsample: level-0 pixels per map pixel.
      mpp: um per map pixel; None where nobody knows.
      classes: reads the most probable class, 255 where nothing was predicted.
      probabilities: of every class but the first, read of 255.
      lesions: with class (name), x, y (level-0 pixels) and peak_probability (0-1).
      slide_hash, network: hashes of the slide and of the weights that predicted it.
      notes: what was said of it while it was predicted, and what could not be read.
    """

    size: tuple[int, int]
    downsample: float
    mpp: float | None
    classes: Read
    probabilities: tuple[Read, ...]
    lesions: Sequence[Mapping[str, Any]]
    slide_hash: str
    network: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SlideResult:
    """A scored slide.

    Fields:
      folder: of its prediction.
      sums: of its pixels; `histogram[c]` in 256 bins of probability, empty for the first class.
      has_tumour: whether any pixel of the map is of a positive class.
      score: the highest peak of a detection, 0 without one: `slide_score` of the summary, where nothing is ignored.
      hits: lesions and false positives; None where the slide's um/px are not known.
      num_itc: lesions that are isolated tumour cells, which count for nothing.
    """

    record: SlideRecord
    folder: Path
    sums: Sums
    has_tumour: bool
    score: float
    hits: SlideHits | None
    num_itc: int
    slide_hash: str
    network: str
    notes: tuple[str, ...]


def score_slide(
    record: SlideRecord,
    folder: Path,
    predicted: PredictedSlide,
    labels: Labels,
    l0_size: tuple[int, int],
    class_names: Sequence[str],
    positives: Sequence[str],
) -> SlideResult:
    """Score one slide.

    Args:
      folder: of the prediction, kept in the result.
      labels: the truth. Without an annotation all of it is the first class, as in training.
      l0_size: (width, height) of the slide.
      positives: names of the classes that are tumour: they make lesions and slides with tumour.
    Raises:
      DataError: a lesion of the prediction lies outside the slide.
    """
    sums = pixel_sums(predicted, labels, len(class_names))
    numbers = [class_names.index(name) for name in positives]
    detections = [
        lesion
        for lesion in predicted.lesions
        if lesion["class"] in positives and not _is_ignored(labels, l0_size, lesion)
    ]
    hits, num_itc = None, 0
    if predicted.mpp is not None:
        l0_mpp = predicted.mpp / predicted.downsample
        hits, num_itc = lesion_hits(labels, l0_size, l0_mpp, numbers, detections, record.slide.name)
    return SlideResult(
        record=record,
        folder=folder,
        sums=sums,
        has_tumour=bool(sums.confusion[numbers].any()),
        score=max((lesion["peak_probability"] for lesion in detections), default=0.0),
        hits=hits,
        num_itc=num_itc,
        slide_hash=predicted.slide_hash,
        network=predicted.network,
        notes=predicted.notes,
    )


def pixel_sums(predicted: PredictedSlide, labels: Labels, num_classes: int) -> Sums:
    """Confusion and histograms of a whole map, by the rule above; block by block, in 30 MB."""
    total = Sums.zero(num_classes, _BINS)
    for x, y, width, height in _blocks(predicted.size):
        truth = labels.read(x * predicted.downsample, y * predicted.downsample, (width, height), predicted.downsample)
        classes = predicted.classes(x, y, width, height)
        counts = (truth != IGNORE_LABEL) & ((classes != _NOT_PREDICTED) | (truth > 0))
        if counts.any():  # most blocks of most slides are glass
            probabilities = [read(x, y, width, height)[counts] for read in predicted.probabilities]
            total += _sums_of(truth[counts], classes[counts], probabilities, num_classes)
    return total


def _blocks(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """(x, y, width, height) of squares that cover a map."""
    for y in range(0, size[1], _BLOCK_PX):
        for x in range(0, size[0], _BLOCK_PX):
            yield x, y, min(_BLOCK_PX, size[0] - x), min(_BLOCK_PX, size[1] - y)


def _sums_of(truth: np.ndarray, classes: np.ndarray, probabilities: Sequence[np.ndarray], num_classes: int) -> Sums:
    """Of pixels that count, [N] uint8 each."""
    predicted = np.where(classes == _NOT_PREDICTED, 0, classes)
    pairs = truth.astype(np.int64) * num_classes + predicted
    confusion = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    histogram = np.zeros((num_classes, 2, _BINS), np.int64)
    for number, probability in enumerate(probabilities, 1):
        binned = np.bincount((truth == number) * _BINS + probability, minlength=2 * _BINS)
        histogram[number] = binned.reshape(2, _BINS)
    return Sums(confusion, histogram, 0, len(truth))


def lesion_hits(
    labels: Labels,
    l0_size: tuple[int, int],
    l0_mpp: float,
    positives: Sequence[int],
    detections: Sequence[Mapping[str, Any]],
    slide: str,
) -> tuple[SlideHits, int]:
    """Which lesions of a slide were found, and how many are isolated tumour cells.

    Args:
      l0_mpp: um per level-0 pixel.
      positives: class numbers that are tumour.
      detections: with x, y (level-0 pixels) and peak_probability.
    """
    downsample = max(1.0, MASK_MPP / l0_mpp)
    width, height = (max(1, round(n / downsample)) for n in l0_size)
    truth = labels.read(0, 0, (width, height), downsample)
    lesions = lesions_of(np.isin(truth, positives), l0_mpp * downsample)
    found = [Detection(d["x"] / downsample, d["y"] / downsample, d["peak_probability"]) for d in detections]
    return match(lesions, found, slide), int(lesions.is_itc.sum())


def _is_ignored(labels: Labels, l0_size: tuple[int, int], lesion: Mapping[str, Any]) -> bool:
    """Whether nobody wants to know what is at a lesion's peak. The map may end up to half a pixel after the slide."""
    x, y = (min(int(lesion[axis]), length - 1) for axis, length in zip("xy", l0_size, strict=True))
    return bool(labels.read(x, y, 1)[0, 0] == IGNORE_LABEL)
