from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from trainer.errors import DataError
from trainer.evaluate.report import table
from trainer.evaluate.slide_scores import SlideScore, by_centre, roc


def slides_of(has_tumour: np.ndarray, scores: np.ndarray) -> list[SlideScore]:
    return [
        SlideScore(f"s{i}", "0", bool(t), float(s)) for i, (t, s) in enumerate(zip(has_tumour, scores, strict=True))
    ]


def drawn(num_normal: int, num_tumour: int, seed: int, decimals: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Rounded scores of slides, so that some are equal."""
    has_tumour = np.repeat([False, True], [num_normal, num_tumour])
    scores = np.random.default_rng(seed).normal(size=len(has_tumour)) + has_tumour
    return has_tumour, scores.round(decimals)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10_000), st.integers(0, 2))
def test_curve_and_area_agree_with_scikit_learn(num_normal: int, num_tumour: int, seed: int, decimals: int) -> None:
    has_tumour, scores = drawn(num_normal, num_tumour, seed, decimals)
    result = roc(slides_of(has_tumour, scores), seed=0, resamples=1)
    false_positive_rate, sensitivity, thresholds = roc_curve(has_tumour, scores, drop_intermediate=False)
    np.testing.assert_allclose(result.false_positive_rate, false_positive_rate)
    np.testing.assert_allclose(result.sensitivity, sensitivity)
    np.testing.assert_array_equal(result.thresholds, thresholds)
    assert result.auc == pytest.approx(roc_auc_score(has_tumour, scores))


def test_the_interval_is_that_of_slides_drawn_again_within_each_class() -> None:
    has_tumour, scores = drawn(30, 20, seed=1)
    rng = np.random.default_rng(0)
    again = []
    for _ in range(1000):
        rows = np.concatenate([rng.integers(0, 30, 30), 30 + rng.integers(0, 20, 20)])
        again.append(roc_auc_score(has_tumour[rows], scores[rows]))
    result = roc(slides_of(has_tumour, scores), seed=5)
    np.testing.assert_allclose(result.interval, np.percentile(again, (2.5, 97.5)), atol=0.02)
    assert result.interval == roc(slides_of(has_tumour, scores), seed=5).interval


def test_the_interval_exists_with_one_slide_of_a_class() -> None:
    has_tumour, scores = drawn(10, 1, seed=3)
    low, high = roc(slides_of(has_tumour, scores), seed=0).interval
    assert 0 <= low <= high <= 1


def test_slides_of_one_class_have_no_area() -> None:
    result = roc(slides_of(np.array([True, True]), np.array([0.1, 0.2])), seed=0)
    assert np.isnan([result.auc, *result.interval]).all()
    np.testing.assert_array_equal(result.sensitivity, [0, 0.5, 1])


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_cannot_be_ranked_is_an_error_naming_the_slide(score: float) -> None:
    with pytest.raises(DataError, match=f"patient_020_node_4: its score is {score}"):
        SlideScore("patient_020_node_4", "1", True, score)


def test_each_centre_has_a_row_with_means_over_its_slides() -> None:
    slides = [
        # accuracy 0.8; IoU 6/8 and 2/4; Dice 4/6
        SlideScore("a", "Utrecht", True, 0.9, np.array([[6, 1], [1, 2]])),
        # a large slide without tumour weighs as much: accuracy 1, IoU 1, no Dice
        SlideScore("b", "Utrecht", False, 0.2, np.array([[1000, 0], [0, 0]])),
        # no pixel has a label
        SlideScore("c", "Utrecht", False, 0.9, np.zeros((2, 2), np.int64)),
        # only the slide has a label
        SlideScore("d", "Nijmegen", True, 0.4),
    ]
    nijmegen, utrecht = by_centre(slides)
    assert utrecht == pytest.approx(
        {"centre": "Utrecht", "slides": 3, "tumour_slides": 1, "annotated_slides": 3}
        | {"auc": 0.75, "accuracy": (0.8 + 1) / 2, "miou": (0.625 + 1) / 2, "dice": 4 / 6}
    )
    assert nijmegen == {
        **{"centre": "Nijmegen", "slides": 1, "tumour_slides": 1, "annotated_slides": 0},
        **dict.fromkeys(("auc", "accuracy", "miou", "dice")),
    }


def test_the_rows_fit_the_reports_table() -> None:
    rows = by_centre([SlideScore("a", "0", True, 0.5), SlideScore("b", "0", False, 0.1)])
    text = table([("centre", lambda r: r["centre"]), ("AUC", lambda r: f"{r['auc']:.3f}")], rows)
    assert text.splitlines()[-1] == "| 0 | 1.000 |"
