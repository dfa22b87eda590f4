from __future__ import annotations

import gc
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_slides import rgb

from trainer.errors import SlideError
from trainer.slides import tiled
from trainer.slides.images import over_white
from trainer.slides.slide import PyramidSlide, Slide, TiledSlide, open_slide
from trainer.slides.tile_cache import TileCache

TILE = 64
SIZES = ((411, 333), (205, 166), (102, 83), (33, 28))
"""Odd sizes, with downsamples that are not whole: 2.0 and a little, 4.0 and a little, 12.2."""
_SPACING = '<Attribute Name="DICOM_PIXEL_SPACING">"{0}" "{0}"</Attribute>'
_PHILIPS = (
    '<?xml version="1.0"?><DataObject ObjectType="DPUfsImport"><Attribute Name="PIM_DP_SCANNED_IMAGES"><Array>'
    '<DataObject ObjectType="DPScannedImage"><Attribute Name="PIM_DP_IMAGE_TYPE">WSI</Attribute>'
    '<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"><Array>{}</Array></Attribute></DataObject></Array>'
    "</Attribute></DataObject>"
)


def jpeg_pyramid(
    path: Path, sizes: Sequence[tuple[int, int]] = SIZES, vendor: str = "generic-tiff", colours: str = "rgb"
) -> Path:
    """Noise as JPEG tiles, in a file that OpenSlide takes for one of `vendor`."""
    spacings = "".join(
        f'<DataObject ObjectType="PixelDataRepresentation">{_SPACING.format(0.00025 * 2**n)}</DataObject>'
        for n in range(len(sizes))
    )
    marks = {
        "generic-tiff": {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"},
        "aperio": {"description": "Aperio Image Library v1\r\n|MPP = 0.5"},
        "philips": {"software": "Philips DP v1.0", "description": _PHILIPS.format(spacings)},
    }[vendor]
    with tifffile.TiffWriter(path) as file:
        for n, (width, height) in enumerate(sizes):
            file.write(
                rgb(width, height, n), tile=(TILE, TILE), compression="jpeg", photometric=colours, metadata=None,
                subsampling=(1, 1) if colours == "rgb" else (2, 2), subfiletype=int(n > 0),
                **(marks if n == 0 or vendor == "aperio" else {}),
            )  # fmt: skip
    return path


def leave_out(path: Path, level: int, *tiles: int) -> Path:
    with tifffile.TiffFile(path, mode="r+b") as file:
        for code in ("TileOffsets", "TileByteCounts"):
            tag = file.pages[level].tags[code]
            tag.overwrite([0 if n in tiles else value for n, value in enumerate(tag.value)])
    return path


def tile_place(path: Path, level: int, tile: int) -> tuple[int, int]:
    """(offset, bytes) of a tile in the file."""
    with tifffile.TiffFile(path) as file:
        return file.pages[level].dataoffsets[tile], file.pages[level].databytecounts[tile]


def by_openslide(path: Path, x: int, y: int, size: tuple[int, int], level: int) -> np.ndarray:
    with openslide.OpenSlide(path) as slide:
        return over_white(np.asarray(slide.read_region((x, y), level, size)))


def assert_same(slide: Slide, x: int, y: int, size: tuple[int, int], level: int) -> None:
    """Equal to OpenSlide within one grey level."""
    expected = by_openslide(slide.path, x, y, size, level)
    difference = np.abs(slide.read(x, y, size, level).astype(int) - expected)
    assert difference.max(initial=0) <= 1, np.argwhere(difference > 1)[:5]


def assert_same_everywhere(slide: Slide, num: int, seed: int = 0) -> None:
    """At random places of every level, on and over the borders among them."""
    rng = np.random.default_rng(seed)
    for level, (width, height) in enumerate(slide.level_sizes):
        for _ in range(num):
            size = tuple(rng.integers(1, 400, 2).tolist())
            lv_x, lv_y = rng.uniform(-np.array(size) - 9, (width + 9, height + 9))
            assert_same(slide, int(lv_x * slide.downsample(level)), int(lv_y * slide.downsample(level)), size, level)
        assert_same(slide, 0, 0, slide.level_size(level), level)


@pytest.fixture(scope="module", params=["generic-tiff", "aperio", "philips", "ycbcr", "sparse"])
def slide(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Slide:
    path = tmp_path_factory.mktemp("tiled") / "a.tif"
    if request.param == "philips":
        jpeg_pyramid(path, ((448, 384), (256, 192), (128, 128)), "philips")  # whole tiles; levels are 224, 112 wide
    elif request.param == "ycbcr":
        jpeg_pyramid(path, colours="ycbcr")
    elif request.param == "sparse":
        leave_out(leave_out(jpeg_pyramid(path), 0, 0, 9, 10, 41), 1, 1, 5, 11)
    else:
        jpeg_pyramid(path, vendor=request.param)
    slide = open_slide(path)
    assert isinstance(slide, TiledSlide)
    return slide


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_regions_equal_openslide_at_any_position_size_and_level(slide: Slide, data: st.DataObject) -> None:
    level = data.draw(st.integers(0, slide.level_count - 1))
    width, height = slide.size
    x, y = data.draw(st.integers(-150, width + 50)), data.draw(st.integers(-150, height + 50))
    assert_same(slide, x, y, (data.draw(st.integers(1, 150)), data.draw(st.integers(1, 150))), level)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_resampled_neighbours_agree_at_their_border(slide: Slide, data: st.DataObject) -> None:
    downsample = data.draw(st.sampled_from([1.25, 1.5, 2.25, 2.75, 5.5, 14.0]))
    x, y = data.draw(st.integers(-60, 300)), data.draw(st.integers(-60, 300))
    cut = 4 * data.draw(st.integers(1, 6))
    whole = slide.resample(x, y, (cut + 13, cut + 7), downsample).astype(int)
    right = slide.resample(x + int(cut * downsample), y, (13, cut + 7), downsample)
    below = slide.resample(x, y + int(cut * downsample), (cut + 13, 7), downsample)
    assert np.abs(whole[:, cut:] - right).max() <= 1 and np.abs(whole[cut:] - below).max() <= 1


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "CMU-1-Small-Region_pyramid.tif", "small.svs"])
def test_real_jpeg_slides_are_read_by_tile_and_equal_openslide(fixtures: Path, name: str) -> None:
    slide = open_slide(fixtures / "wsi" / name)
    assert isinstance(slide, TiledSlide)
    assert_same_everywhere(slide, 25)


@pytest.mark.parametrize(
    "name", ["tcga-cr-7395-01a-01-ts1.svs", "hamamatsu_test3-DAPI.ndpi", "slaid_test_3level.tif", "boxes.tiff"]
)
def test_formats_other_than_jpeg_tiles_stay_with_openslide(fixtures: Path, name: str) -> None:
    slide = open_slide(fixtures / "wsi" / name)
    assert isinstance(slide, PyramidSlide)
    assert_same(slide, 103, 71, (90, 50), slide.level_count - 1)


def test_generated_slides_are_read_by_tile_and_equal_openslide(tiny_slides: Path) -> None:
    slide = open_slide(next(tiny_slides.rglob("*.tif")))
    assert isinstance(slide, TiledSlide)
    assert_same_everywhere(slide, 10)


def test_regions_wider_than_openslide_draws_at_once_are_equal(tmp_path: Path) -> None:
    slide = open_slide(jpeg_pyramid(tmp_path / "a.tif", ((8701, 70), (4345, 35))))
    for x in (-3, 0, 1, 101):
        assert_same(slide, x, -1, (4340, 36), 1)
        assert_same(slide, x, -1, (8600, 50), 0)


def test_levels_sizes_and_mpp_are_those_of_openslide(slide: Slide) -> None:
    with openslide.OpenSlide(slide.path) as reference:
        assert slide.level_sizes == reference.level_dimensions and slide.downsamples == reference.level_downsamples
        assert slide.mpp == PyramidSlide(slide.path).mpp


def test_aperio_slide_with_gaps_is_left_to_openslide_which_fills_them(tmp_path: Path) -> None:
    path = leave_out(jpeg_pyramid(tmp_path / "a.svs", vendor="aperio"), 1, 2)
    slide = open_slide(path)
    assert isinstance(slide, PyramidSlide)
    assert (slide.read(256, 0, TILE, 1) < 255).any()


@pytest.mark.parametrize("colours", ["rgb", "ycbcr"])
def test_colour_space_is_that_of_the_tiff_whatever_the_tiles_say(tmp_path: Path, colours: str) -> None:
    tile = imagecodecs.jpeg8_encode(rgb(TILE, TILE), level=95, subsampling="444")  # JFIF, so YCbCr by its own word
    assert b"JFIF" in bytes(tile)
    kind = {"tile": (TILE, TILE), "compression": "jpeg", "photometric": colours, "metadata": None}
    tifffile.imwrite(
        tmp_path / "a.tif", iter([bytes(tile)] * 4), shape=(128, 128, 3), dtype=np.uint8, subsampling=(1, 1), **kind
    )
    slide = open_slide(tmp_path / "a.tif")
    assert isinstance(slide, TiledSlide)
    assert_same(slide, 0, 0, (128, 128), 0)


def test_truncated_slide_is_refused_when_opened(tmp_path: Path) -> None:
    path = jpeg_pyramid(tmp_path / "a.tif")
    offset, _ = tile_place(path, 2, 3)
    with tifffile.TiffFile(path, mode="r+b") as file:  # as if the file had been cut: tiles point behind its end
        tag = file.pages[2].tags["TileOffsets"]
        tag.overwrite([value + (path.stat().st_size if value == offset else 0) for value in tag.value])
    with pytest.raises(
        SlideError, match=r"a\.tif: is cut short at \d+ bytes: 1 of 4 tiles of level 2.*column 1, row 1"
    ):
        open_slide(path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2), "Corrupt JPEG|Premature end"),
        (lambda data: bytes(len(data)), "cannot be read"),
        (lambda data: data[:-500] + b"\xff\xd9" + bytes(498), "Premature end|Corrupt"),
        (lambda data: small_jpeg(len(data)), "32 x 32 px"),
    ],
    ids=["half of a tile", "no tile", "end too early", "tile of another size"],
)
def test_damaged_tile_names_file_and_tile_and_is_never_made_up(tmp_path: Path, damage, reason: str) -> None:
    path = jpeg_pyramid(tmp_path / "a.tif")
    offset, num_bytes = tile_place(path, 0, 8)
    data = bytearray(path.read_bytes())
    data[offset : offset + num_bytes] = damage(bytes(data[offset : offset + num_bytes]))
    path.write_bytes(data)
    slide = open_slide(path)
    assert slide.read(0, 0, TILE).shape == (TILE, TILE, 3)
    for _ in range(2):
        with pytest.raises(SlideError, match=rf"a\.tif: the tile in column 1, row 1 .*\(64, 64\).*({reason})") as e:
            slide.read(30, 30, 80)
        assert "copy the file again" in e.value.fix


def small_jpeg(num_bytes: int) -> bytes:
    jpeg = bytes(imagecodecs.jpeg8_encode(rgb(32, 32), level=50))
    return jpeg + bytes(num_bytes - len(jpeg))


def test_slide_that_is_cut_short_while_open_says_so(tmp_path: Path) -> None:
    path = jpeg_pyramid(tmp_path / "a.tif")
    slide = open_slide(path)
    with path.open("r+b") as file:
        file.truncate(tile_place(path, 0, 8)[0] + 10)
    with pytest.raises(
        SlideError, match=r"column 1, row 1 of level 0 .* cannot be read: the file ends \d+ bytes before"
    ):
        slide.read(70, 70, 8)


def open_descriptors(path: Path) -> int:
    return sum(link.is_symlink() and link.readlink() == path for link in Path("/proc/self/fd").iterdir())


def test_descriptors_are_closed_with_the_slide(tmp_path: Path) -> None:
    path = jpeg_pyramid(tmp_path / "a.tif").resolve()
    slides = [open_slide(path) for _ in range(5)]
    assert open_descriptors(path) == 5
    slides[0].close()
    slides[0].close()
    with pytest.raises(SlideError, match="cannot be read"):
        slides[0].read(0, 0, 8)
    del slides
    gc.collect()
    assert open_descriptors(path) == 0


def test_many_threads_read_right_pixels_through_a_cache_that_is_far_too_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = TileCache(5 * TILE * TILE * 3)
    monkeypatch.setattr(tiled, "_CACHE", cache)
    slides = [open_slide(jpeg_pyramid(tmp_path / f"{n}.tif", colours=c)) for n, c in enumerate(("rgb", "ycbcr"))]
    whole = [slide.read(0, 0, slide.size) for slide in slides]

    def check(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(40):
            n, x, y = rng.integers(0, (2, 380, 300)).tolist()
            np.testing.assert_array_equal(slides[n].read(x, y, 30), whole[n][y : y + 30, x : x + 30])
            assert cache.num_bytes <= cache.max_bytes

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(check, range(16)))
    assert cache.num_bytes == cache.max_bytes


def test_cache_keeps_the_tiles_used_last_within_its_bytes() -> None:
    cache = TileCache(250)
    tiles = {n: np.full(100, n, np.uint8) for n in range(3)}
    cache.put(0, tiles[0])
    cache.put(1, tiles[1])
    assert cache.get(0) is tiles[0]
    cache.put(2, tiles[2])
    assert (cache.get(1), cache.get(0), cache.get(2)) == (None, tiles[0], tiles[2])
    cache.put(2, tiles[2][:10])
    assert cache.num_bytes == 110
    cache.put(3, np.zeros(300, np.uint8))
    assert cache.get(3) is None and cache.num_bytes == 0


def test_large_region_leaves_only_the_tiles_its_border_cuts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slide = open_slide(jpeg_pyramid(tmp_path / "a.tif"))
    for max_tiles, kept in ((40, 5 * 5 - 3 * 3), (400, 5 * 5)):
        cache = TileCache(max_tiles * TILE * TILE * 3)
        monkeypatch.setattr(tiled, "_CACHE", cache)
        slide.read(10, 10, 4 * TILE)
        assert cache.num_bytes == kept * TILE * TILE * 3


def test_plain_image_named_like_a_slide_is_no_tiled_slide(tmp_path: Path) -> None:
    Image.fromarray(rgb(40, 30)).save(tmp_path / "a.tif")
    assert not isinstance(open_slide(tmp_path / "a.tif"), TiledSlide)
