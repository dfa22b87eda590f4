from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw
from scipy import ndimage
from skimage.color import rgb_from_hed
from skimage.data import immunohistochemistry
from small_slides import GLASS, PINK, pyramid, tissue_slide

from trainer.config.schema import TissueConfig
from trainer.slides.slide import open_slide
from trainer.slides.tissue import TissueMask, _overview, find_tissue, pen_marks, tissue_pixels

INKS = {
    "green": (30, 120, 70),
    "turquoise": (40, 160, 180),
    "blue": (25, 60, 150),
    "violet-blue": (30, 30, 170),
    "black": (35, 33, 38),
}
KEEP_PEN = TissueConfig(exclude_pen=False)


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
        ("hamamatsu_test3-DAPI.ndpi", 0.6, 0.85),  # fluorescence: blue on black
    ]:
        assert low < find_tissue(open_slide(fixtures / "wsi" / name), 256).mask.mean() < high, name


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "tcga-cr-7395-01a-01-ts1.svs"])
@pytest.mark.parametrize("l0_smallest_patch", [256, 64])
def test_real_tissue_is_not_taken_for_pen(fixtures: Path, name: str, l0_smallest_patch: int) -> None:
    slide = open_slide(fixtures / "wsi" / name)
    with_pen = find_tissue(slide, l0_smallest_patch, KEEP_PEN).mask
    without = find_tissue(slide, l0_smallest_patch).mask
    assert np.count_nonzero(with_pen != without) < 0.005 * with_pen.sum()


@pytest.mark.parametrize("averaged_px", [1, 4])
def test_brown_immunostain_and_its_blue_nuclei_are_not_taken_for_pen(averaged_px: int) -> None:
    image, n = immunohistochemistry(), averaged_px
    assert not pen_marks(image.reshape(512 // n, n, 512 // n, n, 3).mean((1, 3)).astype(np.uint8)).any()


@settings(max_examples=60, deadline=None)
@given(
    amounts=st.tuples(st.floats(0, 2), st.floats(0, 2), st.floats(0, 2)).filter(lambda a: sum(a) <= 2),
    noise=st.integers(0, 6),
)
@example(amounts=(1.0, 0.0, 0.75), noise=0)  # the blackest mixtures
@example(amounts=(1.14, 0.0, 0.8), noise=2)
def test_no_mixture_of_haematoxylin_eosin_and_dab_is_pen(amounts: tuple[float, ...], noise: int) -> None:
    pixel = 255 * 10 ** -(np.array(amounts) @ rgb_from_hed)
    image = pixel + np.random.default_rng(0).uniform(-noise, noise, (40, 40, 3))
    assert not pen_marks(np.clip(image, 0, 255).astype(np.uint8)).any()


@pytest.mark.parametrize(
    ("name", "ink"),
    [*(("CMU-1-Small-Region.svs", ink) for ink in INKS), ("tcga-cr-7395-01a-01-ts1.svs", "black")],
)
def test_pen_strokes_over_glass_and_tissue_are_left_out(fixtures: Path, tmp_path: Path, name: str, ink: str) -> None:
    slide = open_slide(fixtures / "wsi" / name)
    pixels, stroke = _with_stroke(slide.read(0, 0, slide.size), INKS[ink])
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=80)
    before, after = find_tissue(slide, 256).mask, find_tissue(open_slide(tmp_path / "a.jpg"), 256).mask
    height, width = after.shape
    inked = np.asarray(Image.fromarray(stroke).resize((width, height), Image.Resampling.BOX))
    assert (inked > 128).sum() > 300 and not after[inked > 64].any()
    far = ~ndimage.binary_dilation(inked > 0, iterations=5)
    assert np.count_nonzero((before != after) & far) < 0.01 * before.sum()
    assert find_tissue(open_slide(tmp_path / "a.jpg"), 256, KEEP_PEN).mask[inked > 128].mean() > 0.2


def _with_stroke(pixels: np.ndarray, ink: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A bent stroke of 300 px across the slide that lets 15 % of what is below shine through, and where it is."""
    height, width = pixels.shape[:2]
    stroke = Image.new("L", (width, height))
    path = [(width * 0.1, height * 0.4), (width * 0.5, height * 0.55), (width * 0.9, height * 0.45)]
    ImageDraw.Draw(stroke).line(path, fill=255, width=300, joint="curve")
    covered = np.asarray(stroke)
    return np.where(covered[..., None] > 0, (0.15 * pixels + 0.85 * np.array(ink)), pixels).astype(np.uint8), covered


def test_pale_ends_of_a_stroke_are_left_out_with_it() -> None:
    fading = np.linspace(0.15, 1, 80)[None, :, None].repeat(30, 0)
    for ink in ("green", "turquoise", "blue"):
        image = np.full((60, 120, 3), GLASS, np.uint8)
        image[15:45, 20:100] = np.array(GLASS) * (np.array(INKS[ink]) / 255) ** fading
        image[2:8, 2:110] = PINK
        np.testing.assert_array_equal(tissue_pixels(image).nonzero()[0].max(), 7)


def test_pigment_and_red_ink_count_as_tissue() -> None:
    melanin, red_ink = (70, 52, 42), (190, 40, 50)
    for colour in (melanin, red_ink):
        image = np.full((60, 60, 3), GLASS, np.uint8)
        image[20:40, 20:40] = colour
        assert tissue_pixels(image)[20:40, 20:40].all()
    specks = np.full((60, 60, 3), PINK, np.uint8)
    specks[::10, ::10] = (0, 0, 0)
    specks[20:25, 20:25] = INKS["green"]
    assert not pen_marks(specks).any()


def test_thresholds_come_from_the_settings() -> None:
    image = np.full((60, 60, 3), GLASS, np.uint8)
    image[:20, :20], image[:20, 40:], image[40:, :20], image[30:33, 30:33] = (230, 200, 215), PINK, (18, 12, 15), PINK

    def found(**settings: float) -> list[bool]:
        mask = tissue_pixels(image, TissueConfig.model_validate(settings))
        return [bool(mask[y, x]) for y, x in ((5, 5), (5, 50), (50, 5), (31, 31))]

    assert found(saturation=0.1) == [True, True, False, False]
    assert found(saturation=0.2) == [False, True, False, False]
    assert found(saturation=0.2, black=10, exclude_pen=False) == [False, True, True, False]
    assert found(saturation=0.2, min_area_px=8) == [False, True, False, True]
    image[8:11, 48:51] = GLASS
    assert tissue_pixels(image, TissueConfig(max_hole_px=9))[9, 49]
    assert not tissue_pixels(image, TissueConfig(max_hole_px=8))[9, 49]


def test_a_small_biopsy_on_much_glass_is_judged_by_its_colour() -> None:
    image = np.clip(np.random.default_rng(0).normal(235, 3, (500, 500, 3)), 0, 255).astype(np.uint8)
    image[100:120, 100:140] = PINK  # 0.3 % of the slide
    expected = np.zeros((500, 500), bool)
    expected[100:120, 100:140] = True
    np.testing.assert_array_equal(tissue_pixels(image), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (7, 5), (33, 31)])
@pytest.mark.parametrize("value", [0, 128, 255])
def test_tiny_slides_do_not_crash(tmp_path: Path, size: tuple[int, int], value: int) -> None:
    Image.new("RGB", size, (value,) * 3).save(tmp_path / "a.png")
    tissue = find_tissue(open_slide(tmp_path / "a.png"), 32)
    rings = tissue.outlines()
    assert tissue.fraction(np.array([(0, 0)]), 1)[0] in (0, 1)
    assert all(np.isfinite(ring).all() for ring in rings)


@given(mask=arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 20))), downsample=st.floats(1, 100))
def test_a_mask_comes_back_from_arrays_as_it_was(mask: np.ndarray, downsample: float) -> None:
    back = TissueMask.from_arrays(TissueMask(mask, downsample, downsample * 1.01).to_arrays())
    np.testing.assert_array_equal(back.mask, mask)
    assert (back.downsample_x, back.downsample_y) == (downsample, downsample * 1.01)


def test_outlines_enclose_the_tissue_in_level_0_pixels() -> None:
    mask = np.zeros((40, 60), bool)
    mask[10:30, 5:60], mask[15:25, 20:40] = True, False
    tissue = TissueMask(mask, 32.0, 16.0)
    outer, hole = sorted(tissue.outlines(tolerance_px=0), key=len, reverse=True)
    np.testing.assert_allclose([outer.min(0), outer.max(0)], [(5 * 32, 10 * 16), (60 * 32, 30 * 16)])
    np.testing.assert_allclose([hole.min(0), hole.max(0)], [(20 * 32, 15 * 16), (40 * 32, 25 * 16)])
    np.testing.assert_array_equal(outer[0], outer[-1])
    assert outer.dtype == np.float64 and max(map(len, tissue.outlines())) <= 9


def test_outlines_of_real_tissue_enclose_its_area(fixtures: Path) -> None:
    tissue = find_tissue(open_slide(fixtures / "wsi" / "tcga-cr-7395-01a-01-ts1.svs"), 256)
    l0_area = tissue.mask.sum() * tissue.downsample_x * tissue.downsample_y
    x_y = [(ring[:, 0], ring[:, 1]) for ring in tissue.outlines()]
    enclosed = abs(sum((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2 for x, y in x_y))
    assert enclosed == pytest.approx(l0_area, rel=0.01)


def test_a_slide_without_low_levels_never_makes_a_mask_above_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = open_slide(tissue_slide(tmp_path / "a.png", 700, 500))
    monkeypatch.setattr("trainer.slides.tissue._MAX_MASK_PX", 400)
    assert find_tissue(slide, 8).mask.size <= 1.1 * 400


def test_grey_image_file_gives_a_mask(tmp_path: Path) -> None:
    Image.fromarray(np.full((64, 64), 90, np.uint8)).save(tmp_path / "a.png")
    assert find_tissue(open_slide(tmp_path / "a.png"), 32).fraction(np.array([(0, 0)]), 64)[0] == 1
