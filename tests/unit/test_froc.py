from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.errors import DataError
from trainer.evaluate.froc import FALSE_POSITIVES_PER_SLIDE, Detection, Lesions, SlideHits, froc, lesions_of, match

PROBABILITIES = st.integers(0, 8).map(lambda n: n / 8)
"""Few values, so that ties are common."""
MPP = 8.0


def disc(shape: tuple[int, int], mask_x: float, mask_y: float, um_diameter: float, mpp: float = MPP) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.hypot(x - mask_x, y - mask_y) * mpp <= um_diameter / 2


@st.composite
def slide_hits(draw: st.DrawFn) -> SlideHits:
    parts = [draw(st.lists(PROBABILITIES, max_size=6)) for _ in range(2)]
    return SlideHits(*(np.array(part, np.float64) for part in parts))


SLIDES = st.lists(slide_hits(), min_size=1, max_size=6).filter(lambda slides: sum(len(s.lesions) for s in slides) > 0)


def score(slides: list[SlideHits]) -> float:
    return froc(slides, seed=0, resamples=1).score


def test_a_hand_worked_example() -> None:
    labels = np.array(
        [
            [1, 1, 0, 0, 2, 2],
            [1, 1, 0, 0, 2, 2],
            [0, 0, 0, 0, 0, 0],
            [3, 0, 0, 0, 0, 0],
        ],
        np.int32,
    )
    first = match(
        Lesions(labels, is_itc=np.array([False, False, True])),
        [
            Detection(0.0, 0.0, 0.9),  # lesion 1
            Detection(1.9, 1.9, 0.3),  # lesion 1 again, where 0.9 stands
            Detection(4.0, 1.0, 0.4),  # lesion 2
            Detection(0.5, 3.5, 0.95),  # isolated tumour cells: ignored
            Detection(3.0, 2.0, 0.6),  # false positive
        ],
        "first",
    )
    np.testing.assert_array_equal(first.lesions, [0.9, 0.4])
    np.testing.assert_array_equal(first.false_positives, [0.6])
    missed = match(Lesions(labels == 1, np.array([False])), [Detection(5, 3, 0.5)], "second")
    normal = match(None, [Detection(2, 2, 0.7), Detection(2, 3, 0.2)], "third")
    silent = match(None, [], "fourth")

    result = froc([first, missed, normal, silent], seed=0)
    # 4 slides, 3 lesions. Threshold: false positives, lesions found
    #   0.9: 0, 1    0.7: 1, 1    0.6: 2, 1    0.5: 3, 1    0.4: 3, 2    0.2: 4, 2
    np.testing.assert_array_equal(result.thresholds, [np.inf, 0.9, 0.7, 0.6, 0.5, 0.4, 0.2])
    np.testing.assert_array_equal(result.false_positives, [0, 0, 0.25, 0.5, 0.75, 0.75, 1])
    np.testing.assert_allclose(result.sensitivity * 3, [0, 1, 1, 1, 1, 2, 2])
    # at 1/4 and 1/2 one third; at 1, and so beyond the last threshold, two thirds
    np.testing.assert_allclose(result.sensitivities * 3, [1, 1, 2, 2, 2, 2])
    assert result.score == pytest.approx((2 * 1 + 4 * 2) / 3 / 6)


@settings(max_examples=200, deadline=None)
@given(SLIDES)
def test_the_curve_is_that_of_the_published_script_wherever_a_lesion_was_missed(slides: list[SlideHits]) -> None:
    slides = [*slides, SlideHits(np.zeros(0), np.zeros(1))]
    false_positives = np.concatenate([s.false_positives for s in slides])
    lesions = np.concatenate([s.lesions for s in slides])
    thresholds = sorted({*false_positives, *lesions})[1:]  # all but the lowest, here 0
    found = [(np.sum(false_positives >= t), np.sum(lesions >= t)) for t in (np.inf, *reversed(thresholds))]
    x, y = np.array(found).T / [[len(slides)], [len(lesions)]]
    result = froc(slides, seed=0, resamples=1)
    np.testing.assert_array_equal(result.false_positives, x)
    np.testing.assert_array_equal(result.sensitivity, y)
    np.testing.assert_array_equal(result.sensitivities, np.interp(FALSE_POSITIVES_PER_SLIDE, x, y))


def test_the_lowest_score_counts_where_every_lesion_was_found() -> None:
    assert score([SlideHits(np.zeros(0), np.array([0.5]))]) == 1.0  # 0 in the published script


@settings(max_examples=200, deadline=None)
@given(SLIDES, st.data())
def test_raising_the_score_of_a_lesion_never_lowers_the_froc_score(
    slides: list[SlideHits], data: st.DataObject
) -> None:
    number = data.draw(st.sampled_from([i for i, s in enumerate(slides) if len(s.lesions)]))
    raised = slides[number].lesions.copy()
    lesion = data.draw(st.integers(0, len(raised) - 1))
    raised[lesion] = data.draw(PROBABILITIES.filter(lambda p: p >= raised[lesion]))
    better = [*slides[:number], SlideHits(slides[number].false_positives, raised), *slides[number + 1 :]]
    assert score(better) >= score(slides)


@settings(max_examples=100, deadline=None)
@given(SLIDES, st.randoms())
def test_the_order_of_slides_does_not_matter(slides: list[SlideHits], random) -> None:
    shuffled = random.sample(slides, len(slides))
    one, other = froc(slides, seed=0, resamples=1), froc(shuffled, seed=0, resamples=1)
    np.testing.assert_array_equal(one.false_positives, other.false_positives)
    np.testing.assert_array_equal(one.sensitivity, other.sensitivity)
    assert one.score == other.score


def test_without_detections_the_score_is_zero_and_without_lesions_there_is_none() -> None:
    assert score([SlideHits(np.zeros(0), np.zeros(2)), SlideHits(np.zeros(0), np.zeros(0))]) == 0.0
    result = froc([SlideHits(np.array([0.5, 0.6]), np.zeros(0))], seed=0)
    np.testing.assert_array_equal(result.false_positives, [0, 1, 2])
    assert np.isnan([result.score, *result.sensitivity, *result.interval]).all()


def test_a_slide_of_isolated_tumour_cells_alone_has_nothing_to_find() -> None:
    lesions = lesions_of(disc((60, 60), 30, 30, 100), MPP)
    assert lesions.is_itc.tolist() == [True]
    hits = match(lesions, [Detection(30, 30, 0.9), Detection(1, 1, 0.8)], "slide")
    assert hits.lesions.size == 0
    assert hits.false_positives.tolist() == [0.8]


@pytest.mark.parametrize("mpp", [3.9, 7.8, 15.6])
def test_isolated_tumour_cells_are_smaller_than_200_um_at_every_resolution(mpp: float) -> None:
    side, pixel_um = round(500 / mpp), 1.5 * mpp  # discs of pixels are about as wide as round ones
    smaller, larger = (disc((side, side), side / 2, side / 2, um, mpp) for um in (200 - pixel_um, 200 + pixel_um))
    assert lesions_of(smaller, mpp).is_itc.tolist() == [True]
    assert lesions_of(larger, mpp).is_itc.tolist() == [False]


def test_tumour_within_75_um_is_one_lesion_with_its_holes_filled() -> None:
    mask = np.zeros((100, 200), bool)
    mask[20:60, 20:60] = True
    mask[35:45, 35:45] = False  # a hole
    mask[20:60, 68:90] = True  # 8 pixels: 64 um from the first
    mask[20:60, 102:130] = True  # 12 pixels: 96 um
    labels = lesions_of(mask, MPP).labels
    assert labels.dtype == np.int32
    assert [labels[40, x] for x in (40, 64, 80, 96, 110)] == [1, 1, 1, 0, 2]


def test_lesions_that_touch_at_a_corner_are_one() -> None:
    mask = np.zeros((20, 20), bool)
    mask[2:10, 2:10] = mask[10:18, 10:18] = True
    assert len(lesions_of(mask, mpp=80.0).is_itc) == 1  # too coarse for anything to be merged


def test_a_mask_without_tumour_has_no_lesion() -> None:
    lesions = lesions_of(np.zeros((30, 40), bool), MPP)
    assert not lesions.labels.any()
    assert match(lesions, [Detection(0, 0, 0.5)], "slide").false_positives.tolist() == [0.5]


@pytest.mark.parametrize(("mask_x", "mask_y"), [(-1, 0), (0, -0.1), (41, 0), (0, 3000), (float("nan"), 0)])
def test_a_detection_outside_the_mask_is_an_error(mask_x: float, mask_y: float) -> None:
    lesions = lesions_of(disc((30, 40), 20, 15, 80), MPP)
    with pytest.raises(DataError, match=r"tumor_001: a detection at .* lies outside the mask of 40 x 30 pixels"):
        match(lesions, [Detection(mask_x, mask_y, 0.5)], "tumor_001")


def test_a_detection_in_the_part_of_a_pixel_that_the_mask_rounds_away_is_in_the_last() -> None:
    lesions = Lesions(np.array([[0, 1]], np.int32), np.array([False]))
    assert match(lesions, [Detection(2.9, 1.5, 0.5)], "slide").lesions.tolist() == [0.5]


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
@pytest.mark.parametrize("lesions", [None, Lesions(np.zeros((4, 4), np.int32), np.zeros(0, bool))])
def test_a_score_that_is_no_probability_is_an_error(value: float, lesions: Lesions | None) -> None:
    with pytest.raises(DataError, match=r"normal_007: a detection has score .*\n  fix: give probabilities"):
        match(lesions, [Detection(1, 1, value)], "normal_007")


def test_the_interval_is_that_of_scoring_slides_drawn_again() -> None:
    rng = np.random.default_rng(0)
    tumour = [SlideHits(rng.random(2), rng.random(rng.integers(1, 4))) for _ in range(15)]
    normal = [SlideHits(rng.random(rng.integers(0, 5)), np.zeros(0)) for _ in range(10)]
    again = [
        score([tumour[i] for i in rng.integers(0, 15, 15)] + [normal[i] for i in rng.integers(0, 10, 10)])
        for _ in range(1000)
    ]
    result = froc(tumour + normal, seed=1)
    np.testing.assert_allclose(result.interval, np.percentile(again, (2.5, 97.5)), atol=0.02)
    assert result.interval == froc(tumour + normal, seed=1).interval
