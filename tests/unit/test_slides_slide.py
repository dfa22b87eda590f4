from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image
from scipy import ndimage
from skimage.transform import resize_local_mean
from small_slides import pyramid, rgb

from trainer.errors import SlideError
from trainer.slides.cache import SlideCache
from trainer.slides.slide import ImageSlide, PyramidSlide, Slide, open_slide


def test_real_slide_reads_what_openslide_reads(fixtures: Path) -> None:
    path = fixtures / "wsi" / "CMU-1-Small-Region.svs"
    slide = open_slide(path)
    assert (slide.size, slide.level_count, slide.mpp) == ((2220, 2967), 1, 0.499)
    expected = np.asarray(openslide.OpenSlide(path).read_region((700, 900), 0, (50, 40)).convert("RGB"))
    np.testing.assert_array_equal(slide.read(700, 900, (50, 40)), expected)


def test_real_pyramids_report_levels_and_missing_mpp(fixtures: Path) -> None:
    tcga = open_slide(fixtures / "wsi" / "tcga-cr-7395-01a-01-ts1.svs")
    assert (tcga.level_count, tcga.mpp, tcga.level_size(1)) == (2, None, (2221, 1783))
    assert tcga.downsample(1) == pytest.approx(2.0, abs=1e-3)
    assert open_slide(fixtures / "wsi" / "hamamatsu_test3-DAPI.ndpi").level_count == 7


@pytest.mark.parametrize("name", ["boxes.tiff", "small.svs", "slaid_test_3level.tif"])
def test_edge_case_slides_open_and_are_white_outside(fixtures: Path, name: str) -> None:
    slide = open_slide(fixtures / "wsi" / name)
    width, height = slide.size
    assert (slide.read(width, height, 4) == 255).all()
    assert slide.read(width - 2, 0, 4).shape == (4, 4, 3)


def test_slide_that_nothing_opens_names_file_and_reasons(fixtures: Path) -> None:
    with pytest.raises(SlideError, match=r"unopenable\.tiff: cannot be opened \(OpenSlide: .*52479.*plain image") as e:
        open_slide(fixtures / "wsi" / "unopenable.tiff")
    assert "pyramidal TIFF" in e.value.fix


def test_missing_file_and_missing_level(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match=r"gone\.svs: there is no such file"):
        open_slide(tmp_path / "gone.svs")
    slide = open_slide(pyramid(tmp_path / "a.tif", rgb(200, 130)))
    for bad in (-1, 3):
        with pytest.raises(SlideError, match=rf"a\.tif: there is no level {bad}.*has 3") as e:
            slide.read(0, 0, 8, bad)
        assert "index.resolution.level=2" in e.value.fix


@pytest.mark.parametrize(
    ("stated", "mpp"), [("0.25", 0.25), ("0", None), ("-0.25", None), ("inf", None), ("nan", None)]
)
def test_resolution_that_cannot_be_is_none(tmp_path: Path, stated: str, mpp: float | None) -> None:
    description = f"Aperio Image Library v1\r\n|MPP = {stated}"
    tifffile.imwrite(
        tmp_path / "a.svs", rgb(64, 64), tile=(64, 64), photometric="rgb", description=description, metadata=None
    )
    assert open_slide(tmp_path / "a.svs").mpp == mpp


def test_pyramid_levels_hold_the_pixels_they_were_made_from(tmp_path: Path) -> None:
    pixels = rgb(200, 130)
    slide = open_slide(pyramid(tmp_path / "a.tif", pixels))
    assert isinstance(slide, PyramidSlide)
    np.testing.assert_array_equal(slide.read(10, 20, (30, 25)), pixels[20:45, 10:40])
    np.testing.assert_array_equal(slide.read(40, 20, 16, 1), pixels[::2, ::2][10:26, 20:36])


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_plain_image_is_a_one_level_slide_with_white_around(tmp_path: Path, name: str) -> None:
    pixels = rgb(31, 17)
    Image.fromarray(pixels).save(tmp_path / name)
    slide = open_slide(tmp_path / name)
    assert isinstance(slide, ImageSlide)
    assert (slide.size, slide.level_count, slide.mpp) == ((31, 17), 1, None)
    padded = np.pad(pixels, ((40, 40), (40, 40), (0, 0)), constant_values=255)
    for x, y, width, height in [(3, 2, 5, 6), (-4, -5, 60, 50), (29, 15, 9, 9), (31, 0, 4, 4), (-9, 3, 4, 4)]:
        expected = padded[y + 40 : y + 40 + height, x + 40 : x + 40 + width]
        np.testing.assert_array_equal(slide.read(x, y, (width, height)), expected)


def levels(path: Path, *images: np.ndarray) -> Path:
    """A lossless pyramid of the given levels."""
    with tifffile.TiffWriter(path) as file:
        for n, image in enumerate(images):
            file.write(image, tile=(64, 64), compression="deflate", photometric="rgb", subfiletype=int(n > 0))
    return path


def ramp(side: int, downsample: float) -> np.ndarray:
    """Red grows to the right and green downwards by 2 per level-0 pixel, from 0 at pixel 95, at any resolution."""
    values = np.rint(((np.arange(side) + 0.5) * downsample - 0.5 - 95) * 2).clip(0, 255)
    image = np.zeros((side, side, 3), np.uint8)
    image[..., 0], image[..., 1] = values, values[:, None]
    return image


@pytest.mark.parametrize("downsample", [1.0, 1.3, 1.97, 2.005, 2.5, 3.9, 4.03, 7.3, 20.0])
def test_resampled_pixels_lie_where_their_centres_are(tmp_path: Path, downsample: float) -> None:
    slide = open_slide(levels(tmp_path / "a.tif", ramp(401, 1), ramp(200, 2.005), ramp(100, 4.01)))
    image = slide.resample(103, 107, (4, 5), downsample)
    for channel, start, num in ((0, 103, 4), (1, 107, 5)):
        expected = (start + (np.arange(num) + 0.5) * downsample - 0.5 - 95) * 2
        np.testing.assert_allclose(image[..., channel].mean(axis=channel), expected, atol=1)  # half a level-0 pixel


@pytest.mark.parametrize("downsample", [1.25, 2.5, 6.0])
def test_resampling_agrees_with_means_over_pixel_areas(tmp_path: Path, downsample: float) -> None:
    noise = np.random.default_rng(0).normal(128, 600, (400, 400, 3))
    smooth = ndimage.gaussian_filter(noise, (9, 9, 0)).clip(0, 255).astype(np.uint8)
    slide = open_slide(levels(tmp_path / "a.tif", smooth))
    side = int(40 * downsample)
    region = smooth[30 : 30 + side, 50 : 50 + side]
    expected = resize_local_mean(region, (40, 40), channel_axis=-1, preserve_range=True)
    np.testing.assert_allclose(slide.resample(50, 30, 40, downsample), expected, atol=2)


def test_resampling_removes_what_is_too_fine_to_show(tmp_path: Path) -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 200
    slide = open_slide(levels(tmp_path / "a.tif", stripes))
    assert np.abs(slide.resample(40, 40, 40, 3.5).astype(int) - 100).max() <= 8


def test_level_within_half_a_percent_is_read_as_it_is(tmp_path: Path) -> None:
    slide = open_slide(pyramid(tmp_path / "a.tif", rgb(401, 401)))  # 401 / 201 = 1.995, 401 / 101 = 3.97
    for downsample in (1.99, 1.995, 2.0):
        np.testing.assert_array_equal(slide.resample(30, 50, 20, downsample), slide.read(30, 50, 20, 1))
    assert [slide.best_level(d) for d in (0.996, 1.0, 1.9, 1.99, 3.9, 3.96, 100)] == [0, 0, 0, 1, 1, 2, 2]
    for too_fine in (0.99, 0.5):
        with pytest.raises(ValueError, match="as fine as"):
            slide.resample(0, 0, 8, too_fine)


def test_large_reduction_reads_in_parts_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slide = open_slide(levels(tmp_path / "a.tif", rgb(900, 700)))
    at_once = slide.resample(-20, -10, (104, 80), 9.3)
    monkeypatch.setattr("trainer.slides.slide._BLOCK_PX", 128)
    read: list[int] = []
    whole_read = PyramidSlide._read
    monkeypatch.setattr(PyramidSlide, "_read", lambda self, *a: read.append(a[2] * a[3]) or whole_read(self, *a))
    assert np.abs(slide.resample(-20, -10, (104, 80), 9.3).astype(int) - at_once).max() <= 1
    assert max(read) < 200**2 and (at_once[-2:] == 255).all() and (at_once[:, -1] == 255).all()


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], np.uint8)).save(tmp_path / "a.png")
    assert open_slide(tmp_path / "a.png").read(0, 0, (3, 1)).tolist() == [[[10, 20, 30], [255] * 3, [204] * 3]]


def test_grey_16_bit_palette_and_1_bit_images_become_rgb(tmp_path: Path) -> None:
    grey = np.array([[0, 100], [200, 255]], np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    tifffile.imwrite(tmp_path / "deep.tif", grey.astype(np.uint16) * 257)
    Image.fromarray(np.stack([grey] * 3, -1)).quantize(4).save(tmp_path / "palette.png")
    for name in ("grey.png", "deep.png", "deep.tif", "palette.png"):
        np.testing.assert_array_equal(open_slide(tmp_path / name).read(0, 0, 2), np.stack([grey] * 3, -1), err_msg=name)
    Image.fromarray(grey > 150).save(tmp_path / "bits.png")
    assert open_slide(tmp_path / "bits.png").read(0, 0, 2)[..., 0].tolist() == [[0, 0], [255, 255]]


def test_images_without_a_fixed_range_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "float.tif", np.zeros((8, 8), np.float32))
    with pytest.raises(SlideError, match="float32"):
        open_slide(tmp_path / "float.tif")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(SlideError, match=r"cut\.png: cannot be opened"):
        open_slide(tmp_path / "cut.png")


def test_slide_that_breaks_while_training_names_file_and_position(tmp_path: Path) -> None:
    path = pyramid(tmp_path / "a.tif", rgb(512, 512), (1,))
    slide = open_slide(path)
    data = bytearray(path.read_bytes())
    data[200:-4000] = bytes(len(data) - 4200)  # the tiles; the directory is behind them
    path.write_bytes(data)
    with pytest.raises(SlideError, match=r"a\.tif: reading 64 x 64 px of level 0 at \(128, 64\) failed"):
        slide.read(128, 64, 64)


def test_many_threads_open_each_slide_once_and_read_right_pixels(tmp_path: Path) -> None:
    images = {n: rgb(96, 96, seed=n) for n in range(6)}
    for n, pixels in images.items():
        pyramid(tmp_path / f"{n}.tif", pixels, (1,))
    opened: list[int] = []
    most_open = 0
    lock = threading.Lock()

    def open_one(n: int) -> PyramidSlide:
        with lock:
            opened.append(n)
        return PyramidSlide(tmp_path / f"{n}.tif")

    wide: SlideCache[int, PyramidSlide] = SlideCache(open_one, 6)
    narrow: SlideCache[int, PyramidSlide] = SlideCache(open_one, 2)

    def read(job: tuple[SlideCache[int, PyramidSlide], int]) -> None:
        nonlocal most_open
        cache, n = job
        np.testing.assert_array_equal(cache.get(n).read(8, 16, 32), images[n][16:48, 8:40])
        most_open = max(most_open, len(narrow))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, [(wide, i % 6) for i in range(60)]))
        assert sorted(opened) == list(range(6))
        list(pool.map(read, [(narrow, i * 5 % 6) for i in range(60)]))
    assert most_open == 2


def test_slides_pushed_out_of_the_cache_close_when_their_last_reader_lets_go(tmp_path: Path) -> None:
    for n in range(2):
        pyramid(tmp_path / f"{n}.tif", rgb(64, 64), (1,))
    cache: SlideCache[int, PyramidSlide] = SlideCache(lambda n: PyramidSlide(tmp_path / f"{n}.tif"), 1)

    held = cache.get(0)
    alive = weakref.ref(held)
    cache.get(1)
    assert held.read(0, 0, 8).shape == (8, 8, 3)
    del held
    gc.collect()
    assert alive() is None  # and with it OpenSlide's handle, which closes the file when it is collected


def test_failure_to_open_is_raised_each_time_and_not_kept(tmp_path: Path) -> None:
    cache: SlideCache[str, Slide] = SlideCache(lambda name: open_slide(tmp_path / name), 2)
    for _ in range(2):
        with pytest.raises(SlideError, match="no such file"):
            cache.get("a.png")
    Image.fromarray(rgb(4, 4)).save(tmp_path / "a.png")
    assert cache.get("a.png").size == (4, 4)
