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
        with pytest.raises(SlideError, match=rf"a\.tif: there is no level {bad}.*has 3"):
            slide.read(0, 0, 8, bad)


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
