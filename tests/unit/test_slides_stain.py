from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from skimage.color import hed2rgb, hed_from_rgb, rgb2hed
from skimage.data import immunohistochemistry

from trainer.slides.slide import open_slide
from trainer.slides.stain import REFERENCE, Stains, estimate_stains, hed_jitter, normalise_stains
from trainer.slides.tissue import find_tissue

STILL = (np.ones(3), np.zeros(3))
PURPLE_RED = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11))
BLUE_PINK = ((0.70, 0.62, 0.35), (0.25, 0.85, 0.46))
BLUE_BROWN = ((0.65, 0.70, 0.29), (0.27, 0.57, 0.78))


def unit(vectors: np.ndarray | tuple) -> np.ndarray:
    return np.array(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)


def painted(vectors: tuple, scale: tuple[float, float] = (1.0, 1.0), num: int = 20_000, noise: float = 0) -> np.ndarray:
    """[1, num, 3] uint8: Beer-Lambert over glass of 240 from two stains, some pixels with one stain only."""
    rng = np.random.default_rng(0)
    amounts = rng.gamma(2.0, 0.35, (num, 2)).clip(0, 2)
    amounts[: num // 10, 1], amounts[num // 10 : num // 5, 0] = 0, 0
    pixels = 240 * np.exp(-(amounts * scale) @ unit(vectors)) + rng.normal(0, noise, (num, 3))
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)[None]


def degrees_between(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip((a * b).sum(axis=1), -1, 1))).max())


def of(image: np.ndarray) -> Stains:
    stains = estimate_stains(image.reshape(-1, 3))
    assert stains is not None
    return stains


def real_tissue(fixtures: Path, name: str) -> np.ndarray:
    """[1, N, 3]: pixels of the tissue, every third of each axis."""
    slide = open_slide(fixtures / "wsi" / name)
    tissue = find_tissue(slide, 256)
    pixels = slide.read(0, 0, slide.size)[::3, ::3]
    mask = Image.fromarray(tissue.mask).resize(pixels.shape[1::-1], Image.Resampling.NEAREST)
    return pixels[np.asarray(mask)][None]


@given(image=arrays(np.uint8, (6, 5, 3)))
def test_hed_jitter_by_nothing_keeps_every_image(image: np.ndarray) -> None:
    assert np.abs(hed_jitter(image, *STILL).astype(int) - image).max() <= 1


def change(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return 1 + rng.uniform(-0.2, 0.2, 3), rng.uniform(-0.2, 0.2, 3)


@pytest.mark.parametrize("seed", range(4))
def test_hed_jitter_is_what_scikit_image_gives_without_its_clipping(seed: int) -> None:
    image, (alpha, beta) = immunohistochemistry(), change(seed)
    hed = np.log(np.maximum(image / 255, 1e-6)) / np.log(1e-6) @ hed_from_rgb
    np.testing.assert_allclose(np.maximum(hed, 0), rgb2hed(image), atol=1e-9)
    is_lit = (image > 0).all(axis=2)
    difference = hed_jitter(image, alpha, beta) - 255 * hed2rgb(hed * alpha + beta / 6)
    assert np.abs(difference[is_lit]).max() <= 1


@pytest.mark.parametrize("seed", range(4))
def test_hed_jitter_is_what_scikit_image_gives_where_it_clips_nothing_on_a_real_slide(
    fixtures: Path, seed: int
) -> None:
    image = open_slide(fixtures / "wsi" / "CMU-1-Small-Region.svs").read(500, 1200, 512)
    alpha, beta = change(seed) if seed else STILL
    hed = rgb2hed(image)
    compared = (hed > 0).all(axis=2) & (image > 0).all(axis=2)
    assert compared.mean() > 0.1
    difference = hed_jitter(image, alpha, beta) - 255 * hed2rgb(hed * alpha + beta / 6)
    assert np.abs(difference[compared]).max() <= 1


def test_more_haematoxylin_darkens_red_most_beside_green_and_eosin_only_green() -> None:
    pink = np.full((2, 2, 3), (220, 150, 200), np.uint8)
    more_haematoxylin = hed_jitter(pink, np.ones(3), np.array([0.2, 0, 0]))[0, 0] / pink[0, 0]
    np.testing.assert_allclose(more_haematoxylin, 10 ** (-0.2 * np.array([0.65, 0.70, 0.29])), atol=0.004)
    more_eosin = hed_jitter(pink, np.ones(3), np.array([0, 0.2, 0]))[0, 0] / pink[0, 0]
    np.testing.assert_allclose(more_eosin, 10 ** (-0.2 * np.array([0.07, 0.99, 0.11])), atol=0.004)


def test_hed_jitter_reads_views_such_as_turned_patches() -> None:
    image = np.random.default_rng(0).integers(0, 256, (300, 301, 3), np.uint8)
    expected = hed_jitter(image, *change(0))
    np.testing.assert_array_equal(hed_jitter(np.rot90(image)[:, ::-1], *change(0)), np.rot90(expected)[:, ::-1])


@pytest.mark.parametrize("vectors", [PURPLE_RED, BLUE_PINK, BLUE_BROWN])
@pytest.mark.parametrize("noise", [0, 2])
def test_known_stain_vectors_are_recovered_haematoxylin_first(vectors: tuple, noise: float) -> None:
    stains = of(painted(vectors, noise=noise))
    # pure eosin takes too little of red to count as stained (density < 0.15): that is the method's own bias
    assert degrees_between(np.array(stains.matrix), unit(vectors)) < 4
    np.testing.assert_allclose(np.linalg.norm(stains.matrix, axis=1), 1)
    np.testing.assert_allclose(stains.max_concentrations, (2, 2), rtol=0.1)


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(3)), swap=st.booleans(), glass=st.integers(0, 40_000))
def test_neither_order_of_pixels_and_stains_nor_glass_changes_the_estimate(
    order: list[int], swap: bool, glass: int
) -> None:
    pixels = painted(BLUE_PINK)[0]
    expected = of(pixels)
    parts = np.array_split(pixels[::-1] if swap else pixels, 3)
    shuffled = np.concatenate([*(parts[i] for i in order), np.full((glass, 3), 236, np.uint8)])
    np.testing.assert_allclose(of(shuffled).matrix, expected.matrix, atol=1e-4)
    np.testing.assert_allclose(of(shuffled).max_concentrations, expected.max_concentrations, rtol=1e-4)


def test_an_image_mapped_to_its_own_stains_stays_as_it_is() -> None:
    image = painted(BLUE_PINK)
    difference = normalise_stains(image, of(image), target=of(image)).astype(int) - image
    assert np.abs(difference).mean() < 0.5 and np.abs(difference).max() <= 3


def test_two_stainings_of_one_tissue_look_alike_after_normalising() -> None:
    one, two = painted(BLUE_PINK), painted(PURPLE_RED, scale=(0.7, 1.2))
    assert np.abs(one.astype(int) - two).mean() > 15
    difference = normalise_stains(one, of(one)).astype(int) - normalise_stains(two, of(two))
    assert np.abs(difference).mean() < 3


@pytest.mark.parametrize("stains", [REFERENCE, Stains(((0.72, 0.62, 0.31), (0.18, 0.92, 0.35)), (4.0, 3.5))])
def test_glass_stays_white(stains: Stains) -> None:
    glass = np.full((2, 2, 3), 240, np.uint8)
    np.testing.assert_array_equal(normalise_stains(glass, stains), glass)
    white = normalise_stains(np.full((2, 2, 3), 255, np.uint8), stains)
    assert white.min() >= 240


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "tcga-cr-7395-01a-01-ts1.svs"])
def test_real_tissue_has_the_target_stains_after_normalising(fixtures: Path, name: str) -> None:
    tissue = real_tissue(fixtures, name)
    normalised = normalise_stains(tissue, of(tissue))
    assert degrees_between(np.array(of(normalised).matrix), unit(REFERENCE.matrix)) < 5
    has_stain = (240 * np.exp(-0.15) >= tissue).any(axis=2)
    amounts = np.log(240 / np.maximum(normalised[has_stain], 1)) @ np.linalg.pinv(REFERENCE.matrix)
    np.testing.assert_allclose(np.percentile(amounts, 99, axis=0), REFERENCE.max_concentrations, rtol=0.03)


def test_slides_without_two_stains_give_none() -> None:
    rng = np.random.default_rng(0)
    assert estimate_stains(np.zeros((0, 3), np.uint8)) is None
    assert estimate_stains(np.full((50_000, 3), 250, np.uint8)) is None
    assert estimate_stains(np.full((50_000, 3), (120, 80, 150), np.uint8)) is None
    assert estimate_stains(painted(BLUE_PINK)[0, :900]) is None
    grey = np.repeat(rng.integers(20, 255, (50_000, 1), np.uint8), 3, axis=1)
    assert estimate_stains(grey) is None
    one_stain = 240 * np.exp(-rng.uniform(0.5, 2, (50_000, 1)) * unit(PURPLE_RED)[0])
    assert estimate_stains(np.rint(one_stain).astype(np.uint8)) is None


def test_estimates_of_any_noise_are_none_or_finite_unit_vectors() -> None:
    for seed, (low, high) in enumerate(itertools.product((0, 60), (61, 200, 256))):
        stains = estimate_stains(np.random.default_rng(seed).integers(low, high, (5000, 3), np.uint8))
        if stains is not None:
            assert np.isfinite(stains.matrix).all() and min(stains.max_concentrations) > 0
            normalise_stains(np.zeros((1, 1, 3), np.uint8), stains)


def test_stains_come_back_from_json_as_they_were() -> None:
    stains = of(painted(BLUE_PINK))
    assert Stains.from_json(stains.to_json()) == stains
    assert hash(Stains.from_json(REFERENCE.to_json())) == hash(REFERENCE)
