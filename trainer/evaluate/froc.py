"""Lesions found and missed on whole slides: the free-response ROC (FROC) of CAMELYON16.

`lesions_of` makes lesions from one slide's tumour mask, `match` keeps from it the few scores that count, `froc` sums
over slides. So masks are held one at a time, and ranks that share the slides gather a few numbers. How a heat map
becomes detections is not decided here.

Source: Ehteshami Bejnordi et al. 2017, doi 10.1001/jama.2017.14585, and the challenge's Evaluation_FROC.py,
https://github.com/computationalpathologygroup/Camelyon16. False positives count on all slides, also on those with
tumour. Different from the script:

- The script takes all scores as thresholds but the lowest. That is meant for the 0 of lesions that were missed or
  are isolated tumour cells; where there is none, a true score is lost (one lesion, found once: sensitivity 0). Here 0
  is never a threshold and every other score is: the same numbers wherever a lesion was missed or is too small.
- Scores of lesions are float64, not float32, which broke ties with false positives by chance.
- Each slide has its own mpp; the script takes 0.243 um/px at level 0 for all.
- A mask without tumour has no lesions, and a detection outside the mask is an error; see `match`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.measure import label, regionprops

from trainer.errors import DataError
from trainer.evaluate.bootstrap import RESAMPLES, percentile_interval

_MERGED_UM = 75.0
"""Tumour closer together than this is one lesion, "the equivalent size of 5 tumour cells" (the script)."""
_ITC_UM = 200.0 + _MERGED_UM
"""Isolated tumour cells span less than 200 um; merging has widened every lesion by 75 um."""
FALSE_POSITIVES_PER_SLIDE = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Where the challenge reads the sensitivity; its score is the mean of the six."""


@dataclass(frozen=True)
class Lesions:
    """The lesions of one slide.

    Fields:
      labels: [H, W] int32; 0 outside lesions, lesion k has k + 1.
      is_itc: [L] bool, lesion k is isolated tumour cells: it need not be found, and finding it is no mistake.
    """

    labels: np.ndarray
    is_itc: np.ndarray


@dataclass(frozen=True)
class Detection:
    """A point held for tumour, in mask pixels, with a probability (0-1). A probability of 0 is no detection."""

    mask_x: float
    mask_y: float
    score: float


@dataclass(frozen=True)
class SlideHits:
    """What one slide adds to the FROC.

    Fields:
      false_positives: [F] float64, scores of the detections outside lesions.
      lesions: [L] float64, the best score of each lesion that is not ITC; 0 where it was missed.
    """

    false_positives: np.ndarray
    lesions: np.ndarray


@dataclass(frozen=True)
class Froc:
    """The curve, one point per threshold, and the challenge's score. Without a lesion to find, sensitivity is NaN.

    Fields:
      thresholds: [T] falling from inf; detections at or above it count.
      false_positives: [T] rising from 0, the mean number per slide.
      sensitivity: [T] rising from 0, share of the lesions found.
      sensitivities: [6] at FALSE_POSITIVES_PER_SLIDE, by straight lines between points; the last one holds beyond.
      score: mean of the six.
      interval: 95 % bootstrap interval of the score over slides.
    """

    thresholds: np.ndarray
    false_positives: np.ndarray
    sensitivity: np.ndarray
    sensitivities: np.ndarray
    score: float
    interval: tuple[float, float]


def lesions_of(mask: np.ndarray, mpp: float) -> Lesions:
    """Lesions of a tumour mask: what lies closer than 75 um is joined, holes are filled, corners connect.

    Needs 35 bytes and 0.3 us per pixel: 0.7 GB and 7 s for a slide of CAMELYON16 at level 5, the challenge's.

    Args:
      mask: [H, W] bool, tumour.
      mpp: um per pixel of the mask.
    """
    if not mask.any():  # distances to the nearest tumour have no meaning
        return Lesions(np.zeros(mask.shape, np.int32), np.zeros(0, bool))
    is_near = ndimage.distance_transform_edt(np.logical_not(mask)) < _MERGED_UM / (2 * mpp)
    labels = label(ndimage.binary_fill_holes(is_near)).astype(np.int32, copy=False)
    lengths = np.array([region.axis_major_length for region in regionprops(labels)])
    return Lesions(labels, lengths * mpp < _ITC_UM)


def match(lesions: Lesions | None, detections: Sequence[Detection], slide: str) -> SlideHits:
    """Which lesions the detections hit. In a lesion the best counts, in isolated tumour cells none, elsewhere each.

    Args:
      lesions: None for a slide without tumour.
      slide: its name, for errors.
    Raises:
      DataError: a score is not in 0-1, or a detection lies outside the mask. Counted as a false positive, the latter
        would hide that all positions are of another level. Levels are rounded down in size, so less than a pixel
        beyond the last is in it.
    """
    for d in detections:
        if not 0 <= d.score <= 1:
            raise DataError(f"a detection has score {d.score:g}", where=slide, fix="give probabilities, 0 to 1")
    if lesions is None:
        return SlideHits(np.array([d.score for d in detections], np.float64), np.zeros(0))
    best, false_positives = np.zeros(len(lesions.is_itc)), []
    for d in detections:
        hit = _label_at(lesions.labels, d, slide)
        if hit:
            best[hit - 1] = max(best[hit - 1], d.score)
        else:
            false_positives.append(d.score)
    return SlideHits(np.array(false_positives, np.float64), best[~lesions.is_itc])


def _label_at(labels: np.ndarray, d: Detection, slide: str) -> int:
    height, width = labels.shape
    if not (0 <= d.mask_x < width + 1 and 0 <= d.mask_y < height + 1):
        raise DataError(
            f"a detection at ({d.mask_x:g}, {d.mask_y:g}) lies outside the mask of {width} x {height} pixels",
            where=slide,
            fix="give positions in mask pixels: level-0 pixels divided by the mask's downsample",
        )
    return int(labels[min(int(d.mask_y), height - 1), min(int(d.mask_x), width - 1)])


def froc(slides: Sequence[SlideHits], seed: int, resamples: int = RESAMPLES) -> Froc:
    """Sensitivity over all lesions against the mean number of false positives per slide.

    The interval draws slides with lesions to find and slides without separately, so every resample has lesions.

    Args:
      seed: of the bootstrap.
    """
    pooled = _Pooled(slides)
    false_positives, sensitivity = pooled.curve(np.ones(len(slides), np.int64))
    sensitivities = _sensitivities(false_positives, sensitivity)
    interval = percentile_interval(
        lambda times: float(_sensitivities(*pooled.curve(times)).mean()), pooled.num_lesions > 0, seed, resamples
    )
    return Froc(pooled.thresholds, false_positives, sensitivity, sensitivities, float(sensitivities.mean()), interval)


def _sensitivities(false_positives: np.ndarray, sensitivity: np.ndarray) -> np.ndarray:
    """Of points with as many false positives, np.interp takes the last: the most sensitive."""
    return np.interp(FALSE_POSITIVES_PER_SLIDE, false_positives, sensitivity)


class _Pooled:
    """Scores of all slides, sorted once, so that a resample costs two cumulative sums."""

    def __init__(self, slides: Sequence[SlideHits]) -> None:
        parts = [part for s in slides for part in (s.false_positives, s.lesions)]
        scores = np.concatenate([np.zeros(0), *parts])
        part = np.repeat(np.arange(len(parts)), [len(p) for p in parts])
        falling = np.argsort(-scores)[: np.count_nonzero(scores)]
        self._slide, self._is_lesion = part[falling] // 2, part[falling] % 2 == 1
        self._last = np.flatnonzero(np.diff(scores[falling], append=0))  # of each run of equal scores
        self.thresholds = np.concatenate([[np.inf], scores[falling][self._last]])
        self.num_lesions = np.array([len(s.lesions) for s in slides], np.int64)

    def curve(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(false positives per slide, sensitivity) when each slide counts `times` [S]."""
        weights = times[self._slide]
        with np.errstate(invalid="ignore"):
            false_positives = self._at_thresholds(weights * ~self._is_lesion) / times.sum()
            return false_positives, self._at_thresholds(weights * self._is_lesion) / (times @ self.num_lesions)

    def _at_thresholds(self, weights: np.ndarray) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(weights)[self._last]])
