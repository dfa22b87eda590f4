from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from small_slides import data_config, pyramid

from trainer.slides import labels as labels_module
from trainer.slides import mask_image, mask_tiled
from trainer.slides.dataset import SlideRecord
from trainer.slides.labels import MaskLabels, open_labels
from trainer.slides.slide import open_slide

WIDTH, HEIGHT = 1500, 1111
"""Odd on purpose: levels end in half pixels."""


@pytest.fixture(autouse=True)
def _small_masks_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_image, "HOLD_PIXELS", 1000)


@pytest.fixture(scope="module")
def slide_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pyramid(tmp_path_factory.mktemp("slide") / "slide.tif", np.zeros((HEIGHT, WIDTH, 3), np.uint8))


@pytest.fixture(scope="module")
def disc() -> np.ndarray:
    """Tumour (2) in a disc, stroma (1) left of it."""
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    mask = np.where(columns < 300, 1, 0).astype(np.uint8) * np.ones((HEIGHT, 1), np.uint8)
    mask[(columns - 800) ** 2 + (rows - 500) ** 2 < 400**2] = 2
    return mask


def nearest(mask: np.ndarray, factor: int) -> np.ndarray:
    """As ASAP does for ids: the top left of each block, sizes rounded down."""
    return mask[::factor, ::factor][: mask.shape[0] // factor, : mask.shape[1] // factor]


def averaged(mask: np.ndarray, factor: int) -> np.ndarray:
    """As ASAP does by default, and libvips."""
    height, width = mask.shape[0] // factor, mask.shape[1] // factor
    blocks = mask[: height * factor, : width * factor].reshape(height, factor, width, factor)
    return blocks.mean(axis=(1, 3)).astype(np.uint8)


def write(
    path: Path,
    mask: np.ndarray,
    factors: tuple[int, ...] = (2, 4, 8),
    reduce: Callable[[np.ndarray, int], np.ndarray] = nearest,
    as_subifds: bool = False,
    subfiletype: int = 1,
) -> Path:
    options = {"tile": (64, 64), "compression": "lzw", "metadata": None}
    with tifffile.TiffWriter(path) as file:
        file.write(mask, subifds=len(factors) if as_subifds else None, **options)
        for factor in factors:
            file.write(reduce(mask, factor), subfiletype=subfiletype, **options)
    return path


def opened(path: Path, slide_path: Path) -> MaskLabels:
    slide = open_slide(slide_path)
    labels = open_labels(SlideRecord(slide.path, path), slide, data_config())
    assert isinstance(labels, MaskLabels) and isinstance(labels._mask, mask_tiled.TiledMask)
    return labels


def factors_of(labels: MaskLabels) -> list[int]:
    return [level.factor for level in labels._mask.levels]


@pytest.mark.parametrize("as_subifds", [False, True])
def test_coarse_reads_agree_with_level_0_but_along_borders(
    tmp_path: Path, slide_path: Path, disc: np.ndarray, as_subifds: bool
) -> None:
    labels = opened(write(tmp_path / "m.tif", disc, as_subifds=as_subifds), slide_path)
    plain = opened(write(tmp_path / "p.tif", disc, factors=()), slide_path)
    assert factors_of(labels) == [1, 2, 4, 8] and factors_of(plain) == [1]
    for downsample in (1.0, 2.0, 3.9998, 5.3, 8.0, 20.0):
        size = int(WIDTH / downsample) + 3
        coarse, fine = labels.read(-9, 5, size, downsample), plain.read(-9, 5, size, downsample)
        edges = np.zeros(fine.shape, bool)
        for axis in (0, 1):
            changes = np.diff(fine.astype(int), axis=axis, append=0) != 0
            edges |= changes | np.roll(changes, 1, axis=axis)
        np.testing.assert_array_equal(coarse[~edges], fine[~edges])
        assert downsample < 2 or (coarse != fine).mean() < 0.02


def test_coarse_reads_decode_the_coarse_level_only(tmp_path: Path, slide_path: Path, disc: np.ndarray) -> None:
    labels = opened(write(tmp_path / "m.tif", disc), slide_path)
    assert isinstance(labels._mask, mask_tiled.TiledMask)
    assert factors_of(labels) == [1, 2, 4, 8]
    before = labels._mask._tile.cache_info().misses
    labels.read(0, 0, 180, 8.0)
    assert labels._mask._tile.cache_info().misses - before <= 3 * 3


def test_shares_of_large_boxes_are_close_and_of_small_ones_exact(
    tmp_path: Path, slide_path: Path, disc: np.ndarray
) -> None:
    labels = opened(write(tmp_path / "m.tif", disc), slide_path)
    rng = np.random.default_rng(0)
    for size, tolerance in ((100, 0), (255, 0), (256, 0.012), (600, 0.012), (1100, 0.012)):
        points = np.stack([rng.integers(0, bound - size, 40) for bound in (WIDTH, HEIGHT)], 1)
        boxes = (disc[y : y + size, x : x + size] for x, y in points)
        exact = np.array([[np.mean(box == label) for label in range(3)] for box in boxes])
        np.testing.assert_allclose(labels.fractions(points, size), exact, atol=tolerance + 1e-6)


def test_share_of_a_disc_is_its_closed_form(tmp_path: Path, slide_path: Path, disc: np.ndarray) -> None:
    labels = opened(write(tmp_path / "m.tif", disc), slide_path)
    share = labels.fractions(np.array([(380, 80)]), 900)[0]
    assert share[2] == pytest.approx(np.pi * 400**2 / 900**2, abs=0.003) and share.sum() == pytest.approx(1)


def test_shares_do_not_depend_on_the_order_of_boxes(
    tmp_path: Path, slide_path: Path, disc: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = opened(write(tmp_path / "m.tif", disc), slide_path)
    points = np.random.default_rng(1).integers(0, 800, (60, 2))
    whole = labels.fractions(points, 300)
    monkeypatch.setattr(labels_module, "_BLOCK_PIXELS", 128)
    np.testing.assert_array_equal(labels.fractions(points[::-1], 300)[::-1], whole)


@pytest.mark.parametrize("reduce", [averaged, lambda mask, factor: nearest(mask, factor) + 100])
def test_pyramid_that_invents_values_is_not_used_and_reported(
    tmp_path: Path, slide_path: Path, disc: np.ndarray, reduce: Callable[[np.ndarray, int], np.ndarray]
) -> None:
    labels = opened(write(tmp_path / "m.tif", disc, reduce=reduce), slide_path)
    assert factors_of(labels) == [1]
    assert labels.report.passed_over == {"mask pyramid that mixes values of neighbours: level 0 is read": 1}
    np.testing.assert_array_equal(labels.read(0, 0, 130, 8.0), disc[4:1044:8, 4:1044:8])


def test_levels_that_are_no_whole_factor_or_no_version_of_the_mask_are_not_used(
    tmp_path: Path, slide_path: Path, disc: np.ndarray
) -> None:
    broken = write(tmp_path / "m.tif", disc, reduce=lambda mask, factor: mask[:: factor + 1, ::factor])
    assert factors_of(opened(broken, slide_path)) == [1]
    other_images = write(tmp_path / "n.tif", disc, subfiletype=0)
    assert factors_of(opened(other_images, slide_path)) == [1]


def test_report_counts_a_large_mask_on_a_level_or_not_at_all(
    tmp_path: Path, slide_path: Path, disc: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labels_module, "_COUNTED_PIXELS", 200_000)
    areas = opened(write(tmp_path / "m.tif", disc), slide_path).report.class_areas_px
    assert areas is not None
    assert areas["tumour"] == pytest.approx(np.pi * 400**2, rel=0.01) and sum(areas.values()) == WIDTH * HEIGHT
    assert opened(write(tmp_path / "p.tif", disc, factors=()), slide_path).report.class_areas_px is None


def test_mask_and_pyramid_factors_multiply(tmp_path: Path, slide_path: Path, disc: np.ndarray) -> None:
    quarter = opened(write(tmp_path / "m.tif", nearest(disc, 4), factors=(2,)), slide_path)
    np.testing.assert_array_equal(quarter.read(0, 0, 130, 8.0), nearest(disc, 8)[:130, :130])
    np.testing.assert_array_equal(quarter.read(0, 0, 250, 4.0), nearest(disc, 4)[:250, :250])
