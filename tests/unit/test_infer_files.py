"""Files that are made of a finished map, read back as users' programs read them."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import shapely
import tifffile
from PIL import Image
from scipy import ndimage

from trainer.errors import PredictionError
from trainer.infer.overview import write_overview
from trainer.infer.pieces import pieces_of
from trainer.infer.pyramid import open_pyramid, write_pyramid
from trainer.infer.regions import Region, regions_of, write_geojson
from trainer.infer.summary import summary
from trainer.slides.annotations.read import read_annotations
from trainer.slides.geometry import rasterise

NAMES = ["normal", "stroma", "tumour"]
COLOURS = [(236, 231, 242), (86, 180, 233), (240, 228, 66)]
SIZES = [(1537, 1201), (2049, 1024), (1, 3000), (1100, 1), (1, 1)]


def reader(pixels: np.ndarray) -> Callable[[int, int, int, int], np.ndarray]:
    def read(x: int, y: int, width: int, height: int) -> np.ndarray:
        assert min(x, y) >= 0 and min(width, height) > 0 and x + width <= pixels.shape[1] and y + height <= len(pixels)
        return pixels[y : y + height, x : x + width]

    return read


def halved_by_mean(pixels: np.ndarray) -> np.ndarray:
    even = np.pad(pixels, [(0, n % 2) for n in pixels.shape], "edge").astype(int)
    quads = [even[row::2, column::2] for row in (0, 1) for column in (0, 1)]
    return ((np.sum(quads, axis=0) + 2) // 4).astype(np.uint8)


def levels_of(path: Path) -> list[np.ndarray]:
    with openslide.OpenSlide(path) as slide:
        return [np.asarray(slide.read_region((0, 0), n, size)) for n, size in enumerate(slide.level_dimensions)]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_every_level_of_probabilities_is_what_openslide_reads(tmp_path: Path, width: int, height: int) -> None:
    wanted = np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)
    write_pyramid(tmp_path / "p.tif", reader(wanted), width, height, mpp=0.5)
    levels = levels_of(tmp_path / "p.tif")
    for level in levels:
        assert (level[..., 3] == 255).all()
        np.testing.assert_array_equal(level[..., :3], np.repeat(wanted[..., None], 3, axis=2))
        wanted = halved_by_mean(wanted)
    assert max(levels[-1].shape[:2]) <= 1024 or min(width, height) < 128
    assert [path.name for path in tmp_path.iterdir()] == ["p.tif"]


def test_a_class_map_keeps_its_ids_and_shows_their_colours(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 3, (1201, 1537), np.uint8)
    ids[:600] = 255
    write_pyramid(tmp_path / "c.tif", reader(ids), 1537, 1201, mpp=None, colours=COLOURS)
    colours = np.full((256, 3), 255, np.uint8)
    colours[:3] = COLOURS
    for n, level in enumerate(levels_of(tmp_path / "c.tif")):
        np.testing.assert_array_equal(level[..., :3], colours[ids[:: 2**n, :: 2**n]])
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "c.tif"), ids)


def test_a_map_is_read_back_at_any_place_and_not_made_up_where_it_is_damaged(tmp_path: Path) -> None:
    path, pixels = tmp_path / "p.tif", np.random.default_rng(0).integers(0, 256, (1201, 1537), np.uint8)
    write_pyramid(path, reader(pixels), 1537, 1201, mpp=None)
    size, read = open_pyramid(path)
    assert size == (1537, 1201)
    for x, y, width, height in [(0, 0, 1537, 1201), (500, 511, 13, 600), (1536, 1200, 1, 1), (512, 512, 512, 512)]:
        np.testing.assert_array_equal(read(x, y, width, height), pixels[y : y + height, x : x + width])
    path.write_bytes(path.read_bytes()[: 1 << 19])
    with pytest.raises(PredictionError, match=r"p\.tif: cannot be read"):
        open_pyramid(path)[1](0, 0, 1537, 1201)


@pytest.mark.parametrize(("mpp", "shown"), [(0.25, 0.25), (1.943, 1.943), (None, None)])
def test_viewers_are_told_the_mpp_where_it_is_known(tmp_path: Path, mpp: float | None, shown: float | None) -> None:
    write_pyramid(tmp_path / "p.tif", reader(np.zeros((10, 10), np.uint8)), 10, 10, mpp=mpp)
    with openslide.OpenSlide(tmp_path / "p.tif") as slide:
        found = slide.properties.get(openslide.PROPERTY_NAME_MPP_X)
    assert shown is found is None or float(found) == pytest.approx(shown, rel=1e-6)


def test_a_large_map_is_written_in_little_memory_and_read_once(tmp_path: Path) -> None:
    empty, num_read = np.zeros((512, 512), np.uint8), 0

    def read(x: int, y: int, width: int, height: int) -> np.ndarray:
        nonlocal num_read
        num_read += width * height
        return empty[:height, :width]

    tracemalloc.start()
    try:
        write_pyramid(tmp_path / "p.tif", read, 20_000, 20_000, mpp=0.5)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert num_read == 20_000**2
    assert peak_bytes < 32 << 20
    assert (tmp_path / "p.tif").stat().st_size < 1 << 20


def test_a_map_that_cannot_be_read_leaves_no_file(tmp_path: Path) -> None:
    def read(x: int, y: int, width: int, height: int) -> np.ndarray:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        write_pyramid(tmp_path / "p.tif", read, 2000, 2000, mpp=0.5)
    assert not list(tmp_path.iterdir())


def found_in(
    classes: np.ndarray, probability: np.ndarray | None = None, downsample: float = 4.0, **options: Any
) -> list[Region]:
    probability = np.full(classes.shape, 204, np.uint8) if probability is None else probability
    read = reader(probability)
    return regions_of(
        reader(classes), lambda _, *box: read(*box), *classes.shape[::-1], NAMES, downsample, 2.0, **options
    )


@pytest.fixture(scope="module")
def blobs() -> np.ndarray:
    """Blobs of two classes with holes in them, touching one another and the map's border; a strip is not predicted."""
    field = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((301, 420)), 4)
    classes = np.select([field > 0.3 * field.std(), field < -0.8 * field.std()], [1, 2], 0).astype(np.uint8)
    classes[100:110] = 255
    return classes


@pytest.mark.parametrize("downsample", [1.0, 4.0, 3.9987])
def test_outlines_match_the_class_map_to_one_pixel(blobs: np.ndarray, downsample: float) -> None:
    found = found_in(blobs, downsample=downsample, min_area_px=1, block_px=128)
    assert any(region.polygon.interiors for region in found)
    for class_id in (1, 2):
        polygons = [region.polygon for region in found if region.class_id == class_id]
        assert all(polygon.is_valid for polygon in polygons)
        got = rasterise(shapely.union_all(polygons), 0, 0, blobs.shape[::-1], downsample)
        is_class, around = blobs == class_id, np.ones((3, 3))
        assert not (got & ~ndimage.binary_dilation(is_class, around)).any()
        assert not (ndimage.binary_erosion(is_class, around, border_value=1) & ~got).any()
        assert (got != is_class).mean() < 0.01


@pytest.mark.parametrize("share", [0.5, 0.6, 0.75])
def test_outlines_of_noise_are_valid(share: float) -> None:
    noise = (np.random.default_rng(0).random((150, 150)) < share).astype(np.uint8)
    found = found_in(noise, downsample=3.9987, min_area_px=1)
    assert all(region.polygon.is_valid for region in found)
    assert sum(region.area_px for region in found) == noise.sum()


@pytest.mark.parametrize("share", [0.3, 0.6, 0.75, 1.0])
def test_a_piece_is_outlined_along_its_pixels(share: float) -> None:
    classes = (np.random.default_rng(0).random((60, 50)) < share).astype(np.uint8)
    pieces, numbers = pieces_of(classes, classes, (7, 100), 1)
    assert len(pieces) == numbers.max() + 1
    for number, piece in enumerate(pieces):
        y, x = np.nonzero(numbers == number)
        pixels = shapely.union_all(shapely.box(x + 7, y + 100, x + 8, y + 101))
        assert piece.outline.is_valid
        assert piece.outline.equals(pixels)


def test_where_blocks_end_shows_nowhere(blobs: np.ndarray) -> None:
    probability = np.random.default_rng(1).integers(0, 256, blobs.shape, np.uint8)
    assert found_in(blobs, probability, block_px=64) == found_in(blobs, probability, block_px=1000)


def test_a_region_has_the_numbers_of_its_pixels() -> None:
    classes, probability = np.zeros((50, 60), np.uint8), np.full((50, 60), 100, np.uint8)
    classes[10:30, 5:45] = 2
    classes[15:20, 30:40] = 0
    probability[25, 44] = probability[27, 6] = 255
    classes[40:44, 50:54] = 1
    region, small = found_in(classes, probability, block_px=16)
    assert (region.class_id, small.class_id, small.area_px) == (2, 1, 16)
    assert region.area_px == 20 * 40 - 5 * 10
    assert region.area_um2 == region.area_px * 4
    assert region.mean_probability == pytest.approx((748 * 100 + 2 * 255) / 750 / 255)
    assert (region.peak, region.peak_probability) == ((44.5 * 4, 25.5 * 4), 1.0)
    assert region.polygon.bounds == (20, 40, 180, 120)
    assert region.polygon.interiors[0].bounds == (120, 60, 160, 80)
    assert found_in(classes, probability, min_area_px=17) == [region]


def test_pixels_that_touch_at_corners_are_two_regions() -> None:
    classes = np.kron(np.eye(2, dtype=np.uint8), np.ones((5, 5), np.uint8))
    assert [region.area_px for region in found_in(classes, block_px=5)] == [25, 25]


@pytest.mark.parametrize("value", [0, 255])
def test_a_map_without_classes_has_no_regions(value: int) -> None:
    assert found_in(np.full((100, 90), value, np.uint8), block_px=64) == []


def test_geojson_is_read_back_as_an_annotation(tmp_path: Path, blobs: np.ndarray) -> None:
    found = found_in(blobs, downsample=3.9987)
    write_geojson(tmp_path / "r.geojson", found, NAMES, COLOURS)
    drawing = read_annotations(tmp_path / "r.geojson")
    assert not drawing.passed_over
    assert [area.group for area in drawing.areas] == [NAMES[region.class_id] for region in found]
    assert {"tumour 1", "stroma 1", "stroma 2"} <= {area.name for area in drawing.areas}
    assert all(area.area.equals(region.polygon) for area, region in zip(drawing.areas, found, strict=True))
    feature = json.loads((tmp_path / "r.geojson").read_text())["features"][0]
    assert shapely.geometry.shape(feature["geometry"]).is_valid
    assert feature["properties"]["objectType"] == "annotation"
    assert feature["properties"]["classification"]["color"] == list(COLOURS[found[0].class_id])
    assert feature["properties"]["measurements"]["Mean probability"] == 0.8


def test_geojson_without_regions_is_a_file_all_the_same(tmp_path: Path) -> None:
    write_geojson(tmp_path / "r.geojson", [], NAMES, COLOURS)
    assert read_annotations(tmp_path / "r.geojson").areas == ()


def test_an_overview_shows_outlines_and_a_legend(tmp_path: Path, blobs: np.ndarray) -> None:
    slide = np.full((301, 420, 3), 255, np.uint8)
    write_overview(tmp_path / "o.png", slide, found_in(blobs), 4.0, NAMES, COLOURS)
    picture = np.asarray(Image.open(tmp_path / "o.png"))
    assert picture.shape[1] == 420
    for part in (picture[:301], picture[301:]):
        assert all((part == COLOURS[class_id]).all(axis=2).any() for class_id in (1, 2))


@pytest.mark.parametrize("mpp", [2.0, None])
def test_a_summary_is_json_with_areas_where_mpp_is_known(blobs: np.ndarray, mpp: float | None) -> None:
    found, hole = found_in(blobs), {"x": 0, "y": 400, "width": 1680, "height": 40, "why": "damaged tile"}
    class_px = {name: int((blobs == n).sum()) for n, name in enumerate(NAMES)}
    said = summary("slide", found, class_px, mpp, [hole])
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    tumour = said["classes"]["tumour"]
    assert tumour["area_mm2"] == (None if mpp is None else pytest.approx(tumour["area_px"] * 4e-6))
    assert sum(c["num_lesions"] for c in said["classes"].values()) == len(said["lesions"]) == len(found)
    assert said["slide_score"] == 0.8
    assert said["holes"] == [hole]


def test_a_slide_without_lesions_has_score_0() -> None:
    assert summary("slide", [], {"normal": 9, "tumour": 0}, None, [])["slide_score"] == 0
