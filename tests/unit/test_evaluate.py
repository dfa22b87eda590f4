from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score, roc_auc_score

from trainer.evaluate.metrics import Sums, metrics_of, roc_auc, sums_of
from trainer.evaluate.tiles import Tile, footprint_tiles, tile_offsets


def random_case(num_classes: int, seed: int, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Labels and class probabilities that know something of them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, (size, size)).astype(np.uint8)
    logits = rng.normal(size=(size, size, num_classes)) + 1.5 * np.eye(num_classes)[labels]
    return labels, np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def sums_from(labels: np.ndarray, p: np.ndarray, valid: np.ndarray, bins: int = 4096) -> Sums:
    return sums_of(labels, p.argmax(-1).astype(np.uint8), np.log(p / (1 - p)).astype(np.float32), valid, bins)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_metrics_agree_with_scikit_learn_and_ignored_pixels_do_not_count(num_classes: int) -> None:
    labels, p = random_case(num_classes, seed=3)
    valid = np.random.default_rng(1).random(labels.shape) < 0.8
    names = tuple("abcd"[:num_classes])
    result = metrics_of(sums_from(labels, p, valid), names)
    truth, predicted, scores = labels[valid], p.argmax(-1)[valid], p[valid]
    assert result["confusion"] == confusion_matrix(truth, predicted).tolist()
    assert result["miou"] == pytest.approx(jaccard_score(truth, predicted, average="macro"))
    average = "binary" if num_classes == 2 else "macro"
    assert result["dice"] == pytest.approx(f1_score(truth, predicted, average=average))
    expected = (
        roc_auc_score(truth, scores[:, 1])
        if num_classes == 2
        else roc_auc_score(truth, scores, multi_class="ovr", average="macro")
    )
    assert abs(result["auc"] - expected) <= result["auc_error_bound"] < 1e-3
    assert result["megapixels"] == valid.sum() / 1e6


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), bins=st.sampled_from([16, 64, 256]))
def test_the_stated_auc_error_bound_holds(seed: int, bins: int) -> None:
    labels, p = random_case(2, seed, size=16)
    result = metrics_of(sums_from(labels, p, np.ones_like(labels, bool), bins), ("a", "b"))
    exact = roc_auc_score(labels.ravel(), p[..., 1].ravel())
    assert abs(result["auc"] - exact) <= result["auc_error_bound"] + 1e-12


def test_auc_comes_from_probabilities_not_from_the_winning_class() -> None:
    labels = np.array([[0, 0, 1, 1]], np.uint8)
    p1 = np.array([[0.1, 0.2, 0.3, 0.4]])
    result = metrics_of(sums_from(labels, np.stack([1 - p1, p1], -1), np.ones((1, 4), bool)), ("a", "b"))
    assert result["auc"] == 1.0
    assert result["accuracy"] == 0.5


def test_sums_of_parts_are_the_sums_of_the_whole() -> None:
    labels, p = random_case(3, seed=5)
    everything = sums_from(labels, p, np.ones_like(labels, bool))
    halves = [sums_from(labels, p, np.arange(64)[:, None] % 2 + np.zeros((64, 64)) == k) for k in (0, 1)]
    total = halves[0] + halves[1]
    np.testing.assert_array_equal(total.confusion, everything.confusion)
    np.testing.assert_array_equal(total.histogram, everything.histogram)
    back = everything.from_vector(everything.to_vector())
    np.testing.assert_array_equal(back.histogram, everything.histogram)
    assert (back.patches, back.pixels) == (1, 64 * 64)


def test_a_class_that_never_occurs_has_no_score() -> None:
    labels, p = np.zeros((4, 4), np.uint8), np.full((4, 4, 3), 0.2)
    p[..., 0] = 0.6
    result = metrics_of(sums_from(labels, p, np.ones((4, 4), bool)), ("a", "b", "c"))
    assert result["class_iou"] == {"a": 1.0, "b": None, "c": None}
    assert result["miou"] == 1.0
    assert result["auc"] is None
    assert np.isnan(roc_auc(np.zeros(4), np.ones(4))[0])


@given(size=st.integers(1, 40), region=st.integers(1, 200))
def test_tiles_of_any_size_cover_each_pixel_of_a_region_once(size: int, region: int) -> None:
    size = min(size, region)
    counts = np.zeros(region, int)
    for offset, skip in tile_offsets(region, size):
        assert 0 <= offset <= region - size
        counts[offset + skip : offset + size] += 1
    assert (counts == 1).all()


@pytest.mark.parametrize("downsample", [1.0, 4.0])
def test_every_size_is_scored_on_the_same_pixels(downsample: float) -> None:
    regions = [Tile(0, 100, 40, 2048, 0), Tile(1, 0, 0, 2048, 0)]
    for size in (256, 704, 1024, 2048):
        tiles = footprint_tiles(regions, size, downsample)
        assert sum((t.size - t.skip_x) * (t.size - t.skip_y) for t in tiles) == 2 * 2048**2
        assert all(0 <= t.x - regions[t.slide].x <= (2048 - size) * downsample for t in tiles)
