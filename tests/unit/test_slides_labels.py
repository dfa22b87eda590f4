from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from shapely.geometry import Point, Polygon, box
from small_slides import asap, data_config, pyramid, rgb, square

from trainer.config.schema import IGNORE_LABEL
from trainer.errors import AnnotationError, ConfigError
from trainer.slides import mask_image
from trainer.slides.annotations import Annotation, Drawing, label_geometries
from trainer.slides.dataset import SlideRecord
from trainer.slides.labels import Labels, MaskLabels, PolygonLabels, open_labels
from trainer.slides.slide import Slide, open_slide

SLIDE = (200, 130)
POINTS = np.array([(0, 0), (37, 11), (150, 80), (100, 64)])


def labels_for(folder: Path, annotation: Path | None, **changes: Any) -> Labels:
    slide = open_slide(pyramid(folder / "slide.tif", rgb(*SLIDE)))
    return open_labels(SlideRecord(slide.path, annotation), slide, data_config(**changes))


def save(path: Path, array: np.ndarray) -> Path:
    Image.fromarray(array).save(path)
    return path


def shares(labels: np.ndarray, size: int) -> np.ndarray:
    windows = [labels[y : y + size, x : x + size] for x, y in POINTS]
    return np.array([[np.mean(w == c) for c in range(3)] for w in windows])


@pytest.fixture
def ids() -> np.ndarray:
    """Values 0, 1, 2 and 9 (ignored) in blocks of 4 x 4 level-0 pixels."""
    blocks = np.random.default_rng(1).choice(np.array([0, 1, 2, 9], np.uint8), (33, 50))
    return blocks.repeat(4, 0).repeat(4, 1)[: SLIDE[1], : SLIDE[0]]


@pytest.fixture
def truth(ids: np.ndarray) -> np.ndarray:
    return np.where(ids == 9, IGNORE_LABEL, ids).astype(np.uint8)


def test_polygons_label_their_pixels_at_every_level(tmp_path: Path) -> None:
    path = asap(
        tmp_path / "a.xml", ("_0", square(20, 30, 60)), ("_2", square(40, 40, 8)), ("blur", square(24, 32, 4)),
        ("stroma", square(100, 64, 32)),
    )  # fmt: skip
    labels = labels_for(tmp_path, path)
    truth = np.zeros((SLIDE[1], SLIDE[0]), np.uint8)
    truth[30:90, 20:80], truth[40:48, 40:48], truth[32:36, 24:28], truth[64:96, 100:132] = 2, 0, IGNORE_LABEL, 1
    np.testing.assert_array_equal(labels.read(10, 20, 64), truth[20:84, 10:74])
    np.testing.assert_array_equal(labels.read(8, 8, 30, 2), truth[9:68:2, 9:68:2])
    np.testing.assert_allclose(labels.fractions(POINTS, 48), shares(truth, 48), atol=1e-6)


def test_no_annotation_is_all_first_class_and_ignored_outside_the_slide(tmp_path: Path) -> None:
    labels = labels_for(tmp_path, None)
    assert not labels.read(0, 0, 100).any()
    np.testing.assert_array_equal(labels.fractions(POINTS, 50), [[1, 0, 0]] * 4)
    edge = labels.read(190, -3, 16)
    assert (edge[:3] == IGNORE_LABEL).all() and (edge[:, 10:] == IGNORE_LABEL).all() and not edge[3:, :10].any()
    assert labels.fractions(np.zeros((0, 2), np.int64), 50).shape == (0, 3)


def check_mask(labels: Labels, truth: np.ndarray) -> None:
    for x, y in POINTS[:3]:
        np.testing.assert_array_equal(labels.read(int(x), int(y), 40), truth[y : y + 40, x : x + 40])
    np.testing.assert_array_equal(labels.read(12, 20, 20, 2), truth[21:60:2, 13:52:2])
    np.testing.assert_allclose(labels.fractions(POINTS, 45), shares(truth, 45), atol=1e-6)
    padded = np.pad(truth, 60, constant_values=IGNORE_LABEL)
    for x, y in [(195, 0), (-3, -3), (-4, 120), (190, -5)]:  # over the border
        for step in (1, 2):
            expected = padded[60 + y + step // 2 :: step, 60 + x + step // 2 :: step][:13, :13]
            np.testing.assert_array_equal(labels.read(x, y, 13, step), expected)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_mask_of_class_ids(tmp_path: Path, ids: np.ndarray, truth: np.ndarray, suffix: str) -> None:
    check_mask(labels_for(tmp_path, save(tmp_path / f"m.{suffix}", ids)), truth)


@pytest.mark.parametrize("factor", [2, 4])
def test_smaller_mask_covers_the_slide_by_a_whole_factor(
    tmp_path: Path, ids: np.ndarray, truth: np.ndarray, factor: int
) -> None:
    check_mask(labels_for(tmp_path, save(tmp_path / "m.png", ids[::factor, ::factor])), truth)


def test_mask_of_colours(tmp_path: Path, ids: np.ndarray, truth: np.ndarray) -> None:
    colours = np.zeros((10, 3), np.uint8)
    colours[1], colours[2], colours[9] = (0, 255, 0), (255, 0, 0), (9, 9, 9)  # grey 9 stands for the id 9
    check_mask(labels_for(tmp_path, save(tmp_path / "m.png", colours[ids])), truth)


def test_palette_mask_is_read_by_ids_or_by_colours_as_the_configuration_says(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8).repeat(65, 0).repeat(100, 1)).convert("P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.save(tmp_path / "m.png")
    points = ((0, 0), (150, 0), (0, 100))
    by_id = labels_for(tmp_path, tmp_path / "m.png")
    assert [int(by_id.read(x, y, 1)[0, 0]) for x, y in points] == [0, 1, 2]
    classes = [{"name": "a"}, {"name": "b", "mask_values": ["#00FF00"]}, {"name": "c", "mask_values": ["#ff0000"]}]
    by_colour = labels_for(tmp_path, tmp_path / "m.png", classes=classes, ignore_mask_values=[])
    assert [int(by_colour.read(x, y, 1)[0, 0]) for x, y in points] == [0, 2, 1]


@pytest.mark.parametrize("downsample", [1.0, 1.7, 2.0003, 5.5])
def test_any_downsample_reads_the_label_under_each_pixel_centre(
    tmp_path: Path, ids: np.ndarray, truth: np.ndarray, downsample: float
) -> None:
    by_mask = labels_for(tmp_path, save(tmp_path / "m.png", ids))
    by_polygons = labels_for(tmp_path, asap(tmp_path / "a.xml", ("_0", square(20, 30, 60)), ("_2", square(40, 40, 9))))
    drawn = np.zeros_like(truth)
    drawn[30:90, 20:80], drawn[40:49, 40:49] = 2, 0
    for labels, pixels in ((by_mask, truth), (by_polygons, drawn)):
        rows, columns = (np.floor(start + (np.arange(20) + 0.5) * downsample).astype(int) for start in (11, 17))
        np.testing.assert_array_equal(labels.read(17, 11, 20, downsample), pixels[np.ix_(rows, columns)])


@pytest.fixture(scope="module")
def plain_slide(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    return open_slide(pyramid(tmp_path_factory.mktemp("plain") / "slide.tif", rgb(*SLIDE)))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(5, 190), st.integers(5, 120), st.integers(3, 90)), min_size=1, max_size=5),
    st.integers(-40, 150),
    st.integers(-40, 100),
    st.floats(1, 9),
)
def test_labels_of_overlapping_areas_agree_with_shapely_at_every_pixel_centre(
    plain_slide: Slide, discs: list[tuple[int, int, int]], x: int, y: int, downsample: float
) -> None:
    groups = ["_0", "stroma", "blur", "_2", "Tumor"]
    areas = [Point(a, b).buffer(r, quad_segs=90).difference(Point(a, b).buffer(r / 3)) for a, b, r in discs]
    path = Path("drawn.xml")
    drawn = tuple(Annotation("", g, a.intersection(box(0, 0, *SLIDE))) for g, a in zip(groups, areas, strict=False))
    drawing = Drawing(path, "ASAP", drawn, {})
    config = data_config()
    labels = PolygonLabels(label_geometries(drawing, config, SLIDE), plain_slide, config, drawing)
    centres = np.meshgrid(*(start + (np.arange(30) + 0.5) * downsample for start in (x, y)))
    expected = np.zeros((30, 30), np.uint8)
    for group, label in (("stroma", 1), ("_0", 2), ("Tumor", 2), ("_2", 0), ("blur", IGNORE_LABEL)):  # weakest first
        for annotation in (a for a in drawn if a.group == group):
            expected[shapely.contains_xy(annotation.area, *centres)] = label
    expected[~shapely.contains_xy(box(0, 0, *SLIDE), *centres)] = IGNORE_LABEL
    borders = shapely.union_all([a.area.boundary for a in drawn] + [box(0, 0, *SLIDE).boundary])
    is_clear = shapely.distance(borders, shapely.points(*centres)) > 1e-6
    np.testing.assert_array_equal(labels.read(x, y, 30, downsample)[is_clear], expected[is_clear])


def test_geojson_and_image_scope_give_the_labels_of_the_same_areas_in_asap(tmp_path: Path) -> None:
    points, hole = square(20, 30, 60), square(40, 40, 9)
    collection = {"type": "FeatureCollection", "features": [{
        "geometry": {"type": "Polygon", "coordinates": [points, hole]}, "properties": {"classification": {"name": "_0"}}
    }]}  # fmt: skip
    (tmp_path / "a.geojson").write_text(json.dumps(collection))
    vertices = ["".join(f"<Vertex X='{x}' Y='{y}'/>" for x, y in ring) for ring in (points, hole)]
    regions = f"<Region>{vertices[0]}</Region><Region NegativeROA='1'>{vertices[1]}</Region>"
    (tmp_path / "i.xml").write_text(f"<Annotations><Annotation Name='_0'>{regions}</Annotation></Annotations>")
    truth = labels_for(tmp_path, asap(tmp_path / "a.xml", ("_0", points), ("_2", hole))).read(0, 0, 130)
    for name in ("a.geojson", "i.xml"):
        np.testing.assert_array_equal(labels_for(tmp_path, tmp_path / name).read(0, 0, 130), truth)


def test_report_counts_groups_areas_and_what_was_passed_over(tmp_path: Path) -> None:
    drawn = asap(
        tmp_path / "a.xml", ("_0", square(-5, 0, 25)), ("Tumor", square(0, 0, 20)), ("blur", square(0, 0, 10)),
        ("roi", square(0, 0, 5)), ("_0", [(1, 1)]),
    )  # fmt: skip
    report = labels_for(tmp_path, drawn, skip_groups=["roi"]).report
    assert json.loads(json.dumps(asdict(report))) == {
        "source": "ASAP",
        "groups": {"_0": 1, "Tumor": 1, "blur": 1, "roi": 1},
        "class_areas_px": {"normal": 200 * 130 - 500, "stroma": 0, "tumour": 400},
        "ignored_area_px": 100,
        "passed_over": {"outline that encloses no area": 1, "area of skipped group 'roi'": 1},
    }
    assert labels_for(tmp_path, None).report.class_areas_px == {"normal": 26000, "stroma": 0, "tumour": 0}


@pytest.mark.parametrize("factor", [1, 3])
def test_report_of_a_mask_counts_its_pixels(tmp_path: Path, ids: np.ndarray, truth: np.ndarray, factor: int) -> None:
    report = labels_for(tmp_path, save(tmp_path / "m.png", ids[::factor, ::factor])).report
    shown = ids[::factor, ::factor].repeat(factor, 0).repeat(factor, 1)[: SLIDE[1], : SLIDE[0]]
    assert report.source == "mask image" and report.groups == report.passed_over == {}
    assert report.class_areas_px == {name: (shown == i).sum() for i, name in enumerate(("normal", "stroma", "tumour"))}
    assert report.ignored_area_px == (shown == 9).sum()


def test_outlines_enclose_each_label_and_its_holes(tmp_path: Path) -> None:
    disc = [(100 + 50 * np.cos(a), 65 + 50 * np.sin(a)) for a in np.linspace(0, 2 * np.pi, 1000, endpoint=False)]
    drawn = asap(tmp_path / "a.xml", ("_0", disc), ("_2", square(90, 60, 15)), ("blur", square(0, 0, 1)))
    by_polygons = labels_for(tmp_path, drawn)
    truth = by_polygons.read(0, 0, 200)[: SLIDE[1]]
    by_mask = labels_for(tmp_path, save(tmp_path / "m.png", np.where(truth == IGNORE_LABEL, 9, truth)))
    for labels in (by_polygons, by_mask):
        outlines = labels.outlines(1.0)
        assert not outlines.get(IGNORE_LABEL)  # smaller than the tolerance
        outer, hole = sorted(map(Polygon, outlines[2]), key=lambda p: -p.area)
        assert len(outer.exterior.coords) < 100
        assert outer.area == pytest.approx(np.pi * 50**2, rel=0.04) and hole.area == pytest.approx(225, rel=0.2)
        assert outer.bounds == pytest.approx((50, 15, 150, 115), abs=2)


@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("is_colour", [False, True])
def test_large_tiled_mask_is_read_by_tiles_with_the_same_result(
    tmp_path: Path,
    ids: np.ndarray,
    truth: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    compression: Any,
    is_colour: bool,
) -> None:
    monkeypatch.setattr(mask_image, "HOLD_PIXELS", 1000)
    colours = np.zeros((10, 3), np.uint8)
    colours[1], colours[2], colours[9] = (0, 255, 0), (255, 0, 0), (9, 9, 9)
    pixels = colours[ids] if is_colour else ids
    tifffile.imwrite(tmp_path / "m.tif", pixels, tile=(32, 48), compression=compression, metadata=None)
    labels = labels_for(tmp_path, tmp_path / "m.tif")
    assert isinstance(labels, MaskLabels) and isinstance(labels._mask, mask_image.TiledMask)
    check_mask(labels, truth)


def test_large_tiled_mask_finds_unknown_values_where_patches_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_image, "HOLD_PIXELS", 1000)
    pixels = np.zeros((SLIDE[1], SLIDE[0]), np.uint8)
    pixels[100, 150] = 7
    tifffile.imwrite(tmp_path / "m.tif", pixels, tile=(32, 48), metadata=None)
    labels = labels_for(tmp_path, tmp_path / "m.tif")
    assert labels.fractions(np.array([(0, 0)]), 60)[0].tolist() == [1, 0, 0]
    with pytest.raises(AnnotationError, match=r"m\.tif: value 7 at mask pixel \(150, 100\)"):
        labels.fractions(np.array([(0, 0), (140, 70)]), 60)


def test_value_without_a_class_names_value_file_and_position(tmp_path: Path, ids: np.ndarray) -> None:
    ids[100, 150] = 7
    with pytest.raises(AnnotationError, match=r"m\.png: value 7 at mask pixel \(150, 100\) has no class") as error:
        labels_for(tmp_path, save(tmp_path / "m.png", ids))
    assert "add 7 to data.classes[i].mask_values" in error.value.fix
    colour = np.zeros((SLIDE[1], SLIDE[0], 3), np.uint8)
    colour[3, 4] = (0, 0, 254)
    with pytest.raises(AnnotationError, match=r"colour '#0000fe' at mask pixel \(4, 3\)"):
        labels_for(tmp_path, save(tmp_path / "c.png", colour))


def test_explicit_values_of_the_first_class_replace_zero(tmp_path: Path) -> None:
    classes = [{"name": "a", "mask_values": [5]}, {"name": "b", "mask_values": [1]}]
    fives = np.full((SLIDE[1], SLIDE[0]), 5, np.uint8)
    assert not labels_for(tmp_path, save(tmp_path / "m.png", fives), classes=classes).read(0, 0, 9).any()
    with pytest.raises(AnnotationError, match="value 0 at"):
        labels_for(tmp_path, save(tmp_path / "m.png", fives * 0), classes=classes)


@pytest.mark.parametrize("shape", [(130, 100), (131, 200), (87, 134), (300, 400)])
def test_mask_of_another_shape_is_refused(tmp_path: Path, shape: tuple[int, int]) -> None:
    with pytest.raises(
        AnnotationError, match=rf"m\.png: the mask has {shape[1]} x {shape[0]} px, its slide slide\.tif"
    ):
        labels_for(tmp_path, save(tmp_path / "m.png", np.zeros(shape, np.uint8)))


def test_unknown_kind_missing_file_and_bad_colour_are_named(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"annotations of type '\.csv' are not known") as error:
        labels_for(tmp_path, tmp_path / "a.csv")
    assert "ImageScope (.xml), GeoJSON of QuPath (.geojson .json), or a mask image (.png" in error.value.fix
    with pytest.raises(AnnotationError, match=r"gone\.png: there is no such file"):
        labels_for(tmp_path, tmp_path / "gone.png")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(AnnotationError, match=r"cut\.png: mask cannot be decoded"):
        labels_for(tmp_path, tmp_path / "cut.png")
    with pytest.raises(ConfigError, match="'red' is not a colour"):
        classes = [{"name": "a"}, {"name": "b", "mask_values": ["red"]}]
        labels_for(tmp_path, save(tmp_path / "m.png", np.zeros((130, 200), np.uint8)), classes=classes)


def test_real_glomeruli_masks_are_read(fixtures: Path) -> None:
    config = data_config(classes=[{"name": "other"}, {"name": "glomerulus", "mask_values": ["#ff0000"]}])
    for path in sorted((fixtures / "seg" / "masks").iterdir()):
        slide = open_slide(fixtures / "seg" / "images" / path.name)
        labels = open_labels(SlideRecord(slide.path, path), slide, config)
        truth = np.asarray(Image.open(path))[..., 0] == 255
        np.testing.assert_array_equal(labels.read(0, 0, 1024), truth)
        assert labels.fractions(np.array([(0, 0)]), 1024)[0, 1] == pytest.approx(truth.mean())
