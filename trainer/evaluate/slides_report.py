"""All scores of a set of whole slides as one value: `slides.json` is it, and `slides_page.py` shows it.

Shares that nobody can know (0 of 0) are None, and so is a threshold above all scores.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.evaluate.bootstrap import RESAMPLES, percentile_interval
from trainer.evaluate.froc import FALSE_POSITIVES_PER_SLIDE, froc
from trainer.evaluate.metrics import Sums, mean_of_known, metrics_of, pixel_scores
from trainer.evaluate.slide_scores import SlideScore, by_centre, roc
from trainer.evaluate.whole_slides import SlideResult

PIXEL_SCORES = ("accuracy", "miou", "dice", "auc")


def worst_first(results: Sequence[SlideResult]) -> list[SlideResult]:
    """By mean IoU, the lowest first; slides without a pixel that counts last."""

    def badness(result: SlideResult) -> tuple[float, str]:
        miou = pixel_scores(result.sums.confusion)["miou"]
        return (np.inf if miou is None else miou), str(result.record.slide)

    return sorted(results, key=badness)


def report_of(
    results: Sequence[SlideResult],
    class_names: Sequence[str],
    positives: Sequence[str],
    run: Path,
    trained_on: Collection[str],
    seed: int,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Scores of the set and of each slide. JSON can hold it.

    Intervals are 95 % by drawing slides again. Pixel scores are of all pixels together (`pooled`, with an interval)
    and means over slides, where every slide weighs the same.

    Args:
      results: at least one. Slides keep their order.
      positives: names of the classes that are tumour.
      run: folders are given relative to it.
      trained_on: hashes of the slides that the network was trained on.
      seed: of the bootstrap.
    """
    rows = [{**_row(r, class_names, run), "trained_on": r.slide_hash in trained_on} for r in results]
    scores = [
        SlideScore(r.record.slide.name, r.record.centre, r.has_tumour, r.score, r.sums.confusion) for r in results
    ]
    return {
        "network": results[0].network,
        "classes": list(class_names),
        "positive_classes": list(positives),
        "pixels": _pixels(results, rows, class_names, seed, resamples),
        "slide_auc": _slide_auc(scores, seed, resamples),
        "froc": _froc(results, seed, resamples),
        "centres": by_centre(scores),
        "slides": rows,
    }


def _row(result: SlideResult, class_names: Sequence[str], run: Path) -> dict[str, Any]:
    record, hits = result.record, result.hits
    lesions = {
        "lesions": len(hits.lesions) if hits else None,
        "lesions_found": int(np.count_nonzero(hits.lesions)) if hits else None,
        "false_positives": len(hits.false_positives) if hits else None,
        "isolated_tumour_cells": result.num_itc if hits else None,
    }
    return {
        "slide": record.slide.name,
        "split": record.split,
        "centre": record.centre,
        "patient": record.patient,
        "folder": os.path.relpath(result.folder, run),
        "has_tumour": result.has_tumour,
        "score": result.score,
        **lesions,
        **_scores_of(result.sums, class_names),
        "notes": list(result.notes),
    }


def _scores_of(sums: Sums, class_names: Sequence[str]) -> dict[str, Any]:
    """`metrics_of` less what only patches have: of a map's 256 probabilities AUC is exact."""
    found = metrics_of(sums, tuple(class_names))
    return {key: value for key, value in found.items() if key not in ("auc_error_bound", "patches")}


def _pixels(
    results: Sequence[SlideResult],
    rows: Sequence[dict[str, Any]],
    class_names: Sequence[str],
    seed: int,
    resamples: int,
) -> dict[str, Any]:
    vectors = np.stack([r.sums.to_vector() for r in results]).astype(np.float64)  # fast, and exact below 2**53

    def pooled(times: np.ndarray) -> dict[str, Any]:
        drawn = (times @ vectors).astype(np.int64)
        return _scores_of(results[0].sums.from_vector(drawn), class_names)

    def score(key: str) -> Callable[[np.ndarray], float]:
        return lambda times: float("nan") if (value := pooled(times)[key]) is None else value

    has_tumour = np.array([r.has_tumour for r in results])
    return {
        "pooled": pooled(np.ones(len(results), np.int64)),
        "pooled_interval": {
            key: _interval(percentile_interval(score(key), has_tumour, seed, resamples), len(results))
            for key in PIXEL_SCORES
        },
        "mean_over_slides": {
            key: mean_of_known(np.array([row[key] for row in rows], np.float64)) for key in PIXEL_SCORES
        },
    }


def _slide_auc(scores: Sequence[SlideScore], seed: int, resamples: int) -> dict[str, Any]:
    found, num_tumour = roc(scores, seed, resamples), sum(s.has_tumour for s in scores)
    return {
        "auc": _number(found.auc),
        "interval": _interval(found.interval, len(scores)),
        "with_tumour": num_tumour,
        "without_tumour": len(scores) - num_tumour,
        "curve": {
            "thresholds": _numbers(found.thresholds),
            "false_positive_rate": _numbers(found.false_positive_rate),
            "sensitivity": _numbers(found.sensitivity),
        },
    }


def _froc(results: Sequence[SlideResult], seed: int, resamples: int) -> dict[str, Any]:
    hits = [r.hits for r in results if r.hits]
    num_lesions = sum(len(h.lesions) for h in hits)
    report = {
        "slides": len(hits),
        "lesions": num_lesions,
        "isolated_tumour_cells": sum(r.num_itc for r in results),
        "without_mpp": [r.record.slide.name for r in results if r.hits is None],
        "false_positives_per_slide": list(FALSE_POSITIVES_PER_SLIDE),
    }
    if not num_lesions:
        return {**report, "score": None, "interval": None, "sensitivities": None, "curve": None}
    found = froc(hits, seed, resamples)
    return {
        **report,
        "score": found.score,
        "interval": _interval(found.interval, len(hits)),
        "sensitivities": _numbers(found.sensitivities),
        "curve": {
            "thresholds": _numbers(found.thresholds),
            "false_positives": _numbers(found.false_positives),
            "sensitivity": _numbers(found.sensitivity),
        },
    }


def _interval(ends: tuple[float, float], num_slides: int) -> list[float] | None:
    """One slide, drawn again and again, says nothing of others."""
    return None if num_slides < 2 or np.isnan(ends).any() else list(ends)


def _numbers(values: np.ndarray) -> list[float | None]:
    return [_number(value) for value in values.tolist()]


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
