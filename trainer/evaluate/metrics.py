"""Sums and counts over pixels, and the metrics that follow from them. Divide once, after the all-reduce."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LOG_ODDS_LIMIT = 16.0
"""ROC bins cover log-odds of -16..16 (probabilities 1e-7..1-1e-7), beyond which float32 scores saturate."""


@dataclass(frozen=True)
class Sums:
    """What evaluation adds up, over pixels with a label.

    Fields:
      confusion: [C, C] int64, [truth, prediction].
      histogram: [C, 2, bins] int64, pixels by binned log-odds of class c; [:, 1] where the truth is c.
      patches, pixels: int64 counts; pixels are those with a label.
    """

    confusion: np.ndarray
    histogram: np.ndarray
    patches: int
    pixels: int

    @classmethod
    def zero(cls, num_classes: int, bins: int) -> Sums:
        shape = (num_classes, 2, bins)
        return cls(np.zeros((num_classes, num_classes), np.int64), np.zeros(shape, np.int64), 0, 0)

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.confusion + other.confusion,
            self.histogram + other.histogram,
            self.patches + other.patches,
            self.pixels + other.pixels,
        )

    def to_vector(self) -> np.ndarray:
        """All sums as one int64 vector, for one all-reduce."""
        return np.concatenate([self.confusion.ravel(), self.histogram.ravel(), [self.patches, self.pixels]])

    def from_vector(self, vector: np.ndarray) -> Sums:
        """The sums in `vector`, shaped as in self."""
        c, h = self.confusion.size, self.histogram.size
        confusion = vector[:c].reshape(self.confusion.shape)
        histogram = vector[c : c + h].reshape(self.histogram.shape)
        return Sums(confusion, histogram, int(vector[-2]), int(vector[-1]))


def sums_of(labels: np.ndarray, predicted: np.ndarray, log_odds: np.ndarray, valid: np.ndarray, bins: int) -> Sums:
    """The sums of one patch.

    Args:
      labels, predicted: [H, W] uint8 class numbers.
      log_odds: [H, W, C] float32, log p_c / (1 - p_c).
      valid: [H, W] bool, pixels that count.
    """
    num_classes = log_odds.shape[-1]
    truth = labels[valid].astype(np.int64)
    pairs = truth * num_classes + predicted[valid]
    confusion = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    scale = bins / (2 * LOG_ODDS_LIMIT)
    binned = np.clip((log_odds[valid] + LOG_ODDS_LIMIT) * scale, 0, bins - 1).astype(np.int64)
    histogram = np.stack(
        [np.bincount((truth == c) * bins + binned[:, c], minlength=2 * bins) for c in range(num_classes)]
    ).reshape(num_classes, 2, bins)
    return Sums(confusion, histogram, 1, int(truth.size))


def roc_auc(negative: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """Area under the ROC curve from two histograms of scores over the same bins.

    Pairs within one bin count one half (the Mann-Whitney statistic with ties), so the true area lies within the
    second number of the first: half the share of pairs that fall in one bin.

    Returns:
      (area, error bound); (nan, nan) where one side is empty.
    Source: Hanley and McNeil 1982, doi 10.1148/radiology.143.1.7063747.
    """
    n, p = negative.astype(np.float64), positive.astype(np.float64)
    pairs = n.sum() * p.sum()
    if pairs == 0:
        return float("nan"), float("nan")
    below = np.concatenate([[0.0], np.cumsum(n)[:-1]])
    tied = float((n * p).sum() / pairs)
    return float((p * below).sum() / pairs) + tied / 2, tied / 2


def metrics_of(sums: Sums, class_names: tuple[str, ...]) -> dict[str, object]:
    """Accuracy, IoU, Dice and AUC from the sums of a whole evaluation.

    `auc` is that of the second of two classes, as Dice in `pixel_scores`; for more, the mean over classes.
    """
    iou, dice = _overlap(sums.confusion)
    auc, bound = np.array([roc_auc(*h) for h in sums.histogram]).T
    return {
        **pixel_scores(sums.confusion),
        "auc": _second_or_mean(auc),
        "auc_error_bound": _second_or_mean(bound),
        "class_iou": {n: _number(v) for n, v in zip(class_names, iou, strict=True)},
        "class_dice": {n: _number(v) for n, v in zip(class_names, dice, strict=True)},
        "confusion": sums.confusion.tolist(),
        "patches": sums.patches,
        "megapixels": sums.pixels / 1e6,
    }


def pixel_scores(confusion: np.ndarray) -> dict[str, float | None]:
    """Accuracy, mean IoU and Dice of [C, C] counts of pixels, [truth, prediction]; None where there are no pixels.

    Classes that occur neither in truth nor in prediction have no IoU or Dice (None) and do not enter the means. For
    two classes, `dice` is that of the second; for more, the mean over classes.
    """
    iou, dice = _overlap(confusion)
    pixels = confusion.sum()
    accuracy = float(np.trace(confusion) / pixels) if pixels else None
    return {"accuracy": accuracy, "miou": mean_of_known(iou), "dice": _second_or_mean(dice)}


def mean_of_known(values: np.ndarray) -> float | None:
    """The mean of what is not NaN; None where nothing is left."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None


def _overlap(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """IoU and Dice of each class, NaN where it never occurs."""
    cm = confusion.astype(np.float64)
    hit, truth, predicted = np.diag(cm), cm.sum(axis=1), cm.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return hit / (truth + predicted - hit), 2 * hit / (truth + predicted)


def _second_or_mean(values: np.ndarray) -> float | None:
    return mean_of_known(values[1:] if len(values) == 2 else values)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
