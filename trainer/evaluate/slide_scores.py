"""Whole slides told apart by one score each: ROC curve and AUC, and a table by centre.

How a heat map becomes a slide's score is not decided here. `by_centre` gives rows for `report.table`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.errors import DataError
from trainer.evaluate.bootstrap import RESAMPLES, percentile_interval
from trainer.evaluate.metrics import mean_of_known, pixel_scores, roc_auc


@dataclass(frozen=True)
class SlideScore:
    """One slide as predicted and as it is.

    Fields:
      score: any finite number that is larger the likelier the slide holds tumour; only the order counts.
      confusion: [C, C] int64 pixels, [truth, prediction]; None where only the slide has a label, not its pixels.
    Raises:
      DataError: the score is not finite.
    """

    slide: str
    centre: str
    has_tumour: bool
    score: float
    confusion: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not np.isfinite(self.score):
            raise DataError(f"its score is {self.score}", where=self.slide, fix="score it again, or leave it out")


@dataclass(frozen=True)
class Roc:
    """The ROC curve, one point per distinct score, and its area. Shares of a class without slides are NaN.

    Fields:
      thresholds: [T] falling from inf; slides at or above it are called tumour.
      false_positive_rate, sensitivity: [T] rising from 0 to 1.
      auc: exact; pairs of equal score count one half.
      interval: 95 % bootstrap interval of the AUC over slides.
    """

    thresholds: np.ndarray
    false_positive_rate: np.ndarray
    sensitivity: np.ndarray
    auc: float
    interval: tuple[float, float]


def roc(slides: Sequence[SlideScore], seed: int, resamples: int = RESAMPLES) -> Roc:
    """How well the scores tell slides with tumour from those without.

    The interval draws both classes separately, so every resample has as many slides of each.

    Args:
      seed: of the bootstrap.
    """
    ranked = _Ranked(slides)
    negative, positive = ranked.histograms(np.ones(len(slides), np.int64))
    return Roc(
        np.concatenate([[np.inf], ranked.scores[::-1]]),
        _share_at_or_above(negative),
        _share_at_or_above(positive),
        roc_auc(negative, positive)[0],
        percentile_interval(lambda times: roc_auc(*ranked.histograms(times))[0], ranked.has_tumour, seed, resamples),
    )


def by_centre(slides: Sequence[SlideScore]) -> list[dict[str, Any]]:
    """A row for each centre, by name: its numbers of slides, slide AUC, and pixel scores as means over slides.

    Every slide weighs the same in a mean, whatever its area. AUC is None without slides of both classes. A pixel
    score is None where no slide has it; a slide without tumour, in truth and in prediction, has no Dice.
    """
    centres = sorted({s.centre for s in slides})
    return [_centre_row(centre, [s for s in slides if s.centre == centre]) for centre in centres]


def _centre_row(centre: str, slides: Sequence[SlideScore]) -> dict[str, Any]:
    scores = [pixel_scores(s.confusion) for s in slides if s.confusion is not None]
    auc, _ = roc_auc(*_Ranked(slides).histograms(np.ones(len(slides), np.int64)))
    return {
        "centre": centre,
        "slides": len(slides),
        "tumour_slides": sum(s.has_tumour for s in slides),
        "annotated_slides": len(scores),
        "auc": None if np.isnan(auc) else auc,
        **{key: mean_of_known(np.array([s[key] for s in scores], np.float64)) for key in ("accuracy", "miou", "dice")},
    }


class _Ranked:
    """Slides by rank of their score: a bin of `roc_auc` for each distinct score makes the area exact."""

    def __init__(self, slides: Sequence[SlideScore]) -> None:
        self.has_tumour = np.array([s.has_tumour for s in slides], bool)
        self.scores, self._rank = np.unique(np.array([s.score for s in slides], np.float64), return_inverse=True)

    def histograms(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Slides without and with tumour at each distinct score, when each slide counts `times` [S]."""
        negative, positive = (
            np.bincount(self._rank, times * of_class, len(self.scores))
            for of_class in (~self.has_tumour, self.has_tumour)
        )
        return negative, positive


def _share_at_or_above(histogram: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.concatenate([[0], np.cumsum(histogram[::-1])]) / histogram.sum()
