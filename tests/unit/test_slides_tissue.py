from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_slides import GLASS, PINK, pyramid, tissue_slide

from trainer.slides.slide import open_slide
from trainer.slides.tissue import TissueMask, _overview, find_tissue, tissue_pixels


def test_share_of_tissue_is_exact_where_boxes_cut_mask_pixels() -> None:
    mask = np.random.default_rng(0).random((20, 30)) < 0.5
    tissue = TissueMask(mask, 4.0, 4.0)
    full = mask.repeat(4, 0).repeat(4, 1)
    points = np.array([(0, 0), (5, 3), (67, 41), (13, 22)])
    expected = [full[y : y + 37, x : x + 37].mean() for x, y in points]
    np.testing.assert_allclose(tissue.fraction(points, 37), expected, atol=1e-6)
    assert tissue.fraction(np.array([(500, 500)]), 10)[0] == 0


def test_tissue_is_found_where_it_lies(tmp_path: Path) -> None:
    tissue = find_tissue(open_slide(tissue_slide(tmp_path / "a.png", 512, 512, 128, 384)), 64)
    points = np.array([(0, 0), (64, 0), (96, 64), (192, 192), (400, 0)])
    np.testing.assert_allclose(tissue.fraction(points, 64), [0, 0, 0.5, 1, 0], atol=0.02)


def test_dust_is_dropped_and_small_holes_are_filled() -> None:
    image = np.full((100, 100, 3), GLASS, np.uint8)
    image[20:80, 20:80], image[40:45, 40:45], image[5:8, 5:8], image[60:75, 60:75] = PINK, GLASS, PINK, GLASS
    mask = tissue_pixels(image)
    assert mask[42, 42] and not mask[6, 6] and not mask[65, 65] and mask.sum() == 3600 - 225


@pytest.mark.parametrize("value", [0, 3, 128, 244, 255])
def test_uniform_slides_do_not_crash(value: int) -> None:
    mask = tissue_pixels(np.full((40, 40, 3), value, np.uint8))
    assert mask.all() if value == 128 else not mask.any()


def test_all_tissue_stays_whole_and_noisy_glass_stays_empty() -> None:
    rng = np.random.default_rng(0)
    glass = np.clip(rng.normal(244, 2, (80, 80, 3)), 0, 255).astype(np.uint8)
    assert not tissue_pixels(glass).any()
    purple = np.where(rng.random((80, 80, 1)) < 0.3, (110, 60, 140), (215, 150, 190)).astype(np.uint8)
    assert tissue_pixels(purple).all()


def test_grey_slide_is_judged_by_darkness_and_unscanned_black_is_no_tissue() -> None:
    image = np.full((60, 60, 3), 240, np.uint8)
    image[10:40, 10:40], image[45:] = 120, 0
    mask = tissue_pixels(image)
    assert mask[10:40, 10:40].all() and mask.sum() == 900


def test_small_patches_get_a_finer_mask(tmp_path: Path) -> None:
    slide = open_slide(tissue_slide(tmp_path / "a.png", 300, 210))
    assert find_tissue(slide, 256).mask.shape == (7, 10)
    assert find_tissue(slide, 32).mask.shape == (53, 75)


def test_overview_of_a_pyramid_starts_from_its_low_level_and_of_one_level_is_read_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.arange(256, dtype=np.uint8).repeat(4)[None, :, None].repeat(512, 0).repeat(3, 2)
    slides = [open_slide(pyramid(tmp_path / f"{len(d)}.tif", pixels, d)) for d in ((1,), (1, 4, 8))]
    monkeypatch.setattr("trainer.slides.tissue._BLOCK_PX", 64)
    for slide in slides:
        image, downsample_x, downsample_y = _overview(slide, 16)
        assert (image.shape, downsample_x, downsample_y) == ((32, 64, 3), 16, 16)
        assert np.abs(image[:, :, 0] - (np.arange(64) * 4 + 1.5)).max() <= 2


def test_real_slides_show_a_plausible_share_of_tissue(fixtures: Path) -> None:
    for name, low, high in [
        ("CMU-1-Small-Region.svs", 0.25, 0.4),
        ("tcga-cr-7395-01a-01-ts1.svs", 0.55, 0.7),
        ("hamamatsu_test3-DAPI.ndpi", 0.2, 0.6),  # fluorescence: blue on black
    ]:
        assert low < find_tissue(open_slide(fixtures / "wsi" / name), 256).mask.mean() < high, name


def test_grey_image_file_gives_a_mask(tmp_path: Path) -> None:
    Image.fromarray(np.full((64, 64), 90, np.uint8)).save(tmp_path / "a.png")
    assert find_tissue(open_slide(tmp_path / "a.png"), 32).fraction(np.array([(0, 0)]), 64)[0] == 1
