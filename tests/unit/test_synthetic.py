"""Synthetic slides: files that OpenSlide and ASAP's readers take, a known mask, and context that decides."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
from shapely.geometry import Polygon, box
from skimage.draw import polygon2mask
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import balanced_accuracy_score

from trainer.errors import DataError
from trainer.slides.synthetic import (
    context_bound,
    make_slides,
    marker_seen_share,
    paint_slide,
    plan_data_set,
    plan_slide,
)
from trainer.slides.synthetic.bound import MARKER_REACH_PX
from trainer.slides.synthetic.files import write_slide
from trainer.slides.synthetic.layout import GAP_PX, MARKER_RADIUS_PX, Compartment, SlideLayout

NUMBERS: dict[str, Any] = {"num_train": 4, "num_test": 2, "size": 2048, "seed": 11}


@dataclasses.dataclass(frozen=True)
class Slide:
    path: Path
    layout: SlideLayout
    image: np.ndarray


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("slides") / "set"
    make_slides(root, **NUMBERS)
    return root


@pytest.fixture(scope="module")
def slides(root: Path) -> list[Slide]:
    return [Slide(root / path, layout, level0(root / path)) for path, layout in plan_data_set(**NUMBERS)]


@pytest.fixture(scope="module")
def tumour_slides(slides: list[Slide]) -> list[Slide]:
    return [slide for slide in slides if slide.path.parent.name != "normal"]


def level0(path: Path) -> np.ndarray:
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))


def annotation_of(slide: Path) -> Path:
    return slide.parents[1] / "lesion_annotations" / f"{slide.stem}.xml"


def polygons(path: Path, group: str) -> list[np.ndarray]:
    found = ET.parse(path).getroot().findall(f"Annotations/Annotation[@PartOfGroup='{group}']")
    return [np.array([[float(c.get("X", "")), float(c.get("Y", ""))] for c in a.iter("Coordinate")]) for a in found]


def compartment_pixels(slide: SlideLayout, compartment: Compartment) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of each pixel of one compartment, from the formula of its outline."""
    outline, island = compartment.outline, compartment.island
    near = (slice(int(at - outline.l0_reach), int(at + outline.l0_reach) + 2) for at in (outline.l0_y, outline.l0_x))
    row, col = np.mgrid[tuple(near)]
    inside = outline.depth(col + 0.5, row + 0.5)[0] > 0
    if island is not None:
        inside &= island.depth(col + 0.5, row + 0.5)[0] <= 0
    return row[inside], col[inside]


def known_mask(layout: SlideLayout) -> np.ndarray:
    mask = np.zeros((layout.l0_size, layout.l0_size), bool)
    for compartment in layout.compartments:
        if compartment.is_tumour:
            mask[compartment_pixels(layout, compartment)] = True
    return mask


def test_files_are_laid_out_like_camelyon16(root: Path):
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()) == [
        "testing/images/test_001.tif",
        "testing/images/test_002.tif",
        "testing/lesion_annotations/test_001.xml",
        "testing/lesion_annotations/test_002.xml",
        "training/lesion_annotations/tumor_001.xml",
        "training/lesion_annotations/tumor_002.xml",
        "training/lesion_annotations/tumor_003.xml",
        "training/normal/normal_001.tif",
        "training/tumor/tumor_001.tif",
        "training/tumor/tumor_002.tif",
        "training/tumor/tumor_003.tif",
    ]


def test_openslide_sees_levels_size_and_resolution(root: Path):
    with openslide.OpenSlide(root / "training/normal/normal_001.tif") as slide:
        assert slide.level_dimensions == tuple((2048 >> level,) * 2 for level in range(4))
        assert slide.level_downsamples == (1, 2, 4, 8)
        assert float(slide.properties["openslide.mpp-x"]) == float(slide.properties["openslide.mpp-y"]) == 0.5
        assert slide.properties["openslide.level[0].tile-width"] == "256"


def test_lower_levels_are_the_same_picture(slides: list[Slide]):
    with openslide.OpenSlide(slides[1].path) as slide:
        low = np.asarray(slide.read_region((0, 0), 3, (256, 256)).convert("RGB"), float)
    mean = slides[1].image.reshape(256, 8, 256, 8, 3).mean(axis=(1, 3))
    assert np.abs((low - mean).mean(axis=(0, 1))).max() < 0.5
    assert np.abs(low - mean).mean() < 5 < 9 < np.abs(low - np.roll(mean, 1, axis=1)).mean()


def test_odd_sizes_are_written(tmp_path: Path):
    layout = plan_slide(1027, (3,), has_tumour=True)
    write_slide(tmp_path / "odd.tif", paint_slide(layout))
    with openslide.OpenSlide(tmp_path / "odd.tif") as slide:
        assert slide.level_dimensions == ((1027, 1027), (513, 513), (256, 256))


def test_background_is_pale_and_tissue_is_coloured(slides: list[Slide]):
    for slide in slides[:2]:
        depth = slide.layout.tissue.depth(np.arange(2048)[None, :], np.arange(2048)[:, None])[0]
        saturation = slide.image.max(axis=2).astype(int) - slide.image.min(axis=2)
        assert np.percentile(saturation[depth < -16], 99.9) < 15
        assert np.median(saturation[depth > 16]) > 40
        assert 0.5 < (depth > 0).mean() < 0.8


def test_polygons_are_valid_inside_the_slide_and_exclusions_lie_in_tumours(tumour_slides: list[Slide]):
    num_holes = 0
    for slide in tumour_slides:
        tumours = [Polygon(points) for points in polygons(annotation_of(slide.path), "_0")]
        holes = [Polygon(points) for points in polygons(annotation_of(slide.path), "_2")]
        assert len(tumours) == sum(compartment.is_tumour for compartment in slide.layout.compartments) > 5
        assert all(shape.is_valid and box(0, 0, 2048, 2048).contains(shape) for shape in tumours + holes)
        assert all(sum(tumour.contains(hole) for tumour in tumours) == 1 for hole in holes)
        num_holes += len(holes)
    assert num_holes > 5


def test_annotated_mask_is_the_known_geometry(tumour_slides: list[Slide]):
    for slide in tumour_slides[:2]:
        drawn = np.zeros((2048, 2048), bool)
        for group, value in (("_0", True), ("_2", False)):
            for points in polygons(annotation_of(slide.path), group):
                drawn[polygon2mask(drawn.shape, points[:, ::-1] - 0.5)] = value  # a pixel's centre lies at + 0.5
        truth = known_mask(slide.layout)
        assert (drawn & truth).sum() / (drawn | truth).sum() > 0.998


def test_same_seed_gives_the_same_files_and_another_seed_others(root: Path, tmp_path: Path):
    few = {**NUMBERS, "num_train": 2, "num_test": 1}  # a slide does not depend on how many others there are
    make_slides(tmp_path / "again", **few)
    files = [path for path in (tmp_path / "again").rglob("*") if path.is_file()]
    assert len(files) == 5
    assert all(path.read_bytes() == (root / path.relative_to(tmp_path / "again")).read_bytes() for path in files)
    one, other = (plan_slide(1024, (seed,), has_tumour=True) for seed in (1, 2))
    assert one.compartments != other.compartments and one.texture_seed != other.texture_seed


@pytest.mark.parametrize("size", [1024, 2048, 3072])
def test_compartments_fill_the_tissue_without_touching(size: int):
    for seed in range(4):
        layout = plan_slide(size, (seed,), has_tumour=True)
        shapes = [Polygon(compartment.outline.polygon(96)) for compartment in layout.compartments]
        tissue = Polygon(layout.tissue.polygon(720))
        assert box(0, 0, size, size).contains(tissue)
        assert all(tissue.buffer(-15).contains(shape) for shape in shapes)
        gaps = [a.distance(b) for i, a in enumerate(shapes) for b in shapes[:i]]
        assert min(gaps) >= GAP_PX - 0.1
        fill = sum(shape.area for shape in shapes) / tissue.area
        assert (0.45 if size == 1024 else 0.55) < fill < 0.65
        tumour = sum(s.area for s, c in zip(shapes, layout.compartments, strict=True) if c.is_tumour)
        assert 0.3 < tumour / sum(shape.area for shape in shapes) < 0.5


def test_normal_slides_have_no_tumour(slides: list[Slide]):
    assert [any(c.is_tumour for c in slide.layout.compartments) for slide in slides] == [False] + 5 * [True]


def test_labels_change_no_pixel_outside_the_markers_not_even_through_jpeg(slides: list[Slide], tmp_path: Path):
    layout = slides[1].layout
    flipped = tuple(dataclasses.replace(c, is_tumour=not c.is_tumour) for c in layout.compartments)
    image, other = paint_slide(layout), paint_slide(dataclasses.replace(layout, compartments=flipped))
    write_slide(tmp_path / "flipped.tif", other)
    at = np.arange(2048) + 0.5
    marker, reach = np.zeros((2, 2048, 2048), bool)
    for compartment in layout.compartments:
        dx, dy = at[None, :] - compartment.outline.l0_x, at[:, None] - compartment.outline.l0_y
        marker |= np.hypot(dx, dy) < MARKER_RADIUS_PX + 0.5
        reach |= np.maximum(abs(dx), abs(dy)) < MARKER_REACH_PX
    changed = (image != other).any(axis=2)
    assert not changed[~marker].any() and changed[marker].mean() > 0.9
    assert not (slides[1].image != level0(tmp_path / "flipped.tif")).any(axis=2)[~reach].any()


def windows_beside_the_marker(slide: Slide, window_px: int, offset_px: float) -> tuple[list[np.ndarray], list[bool]]:
    """Four windows per compartment, centred `offset_px` left, right, above and below its centre."""
    images, labels = [], []
    for compartment in slide.layout.compartments:
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            left = round(compartment.outline.l0_x + dx * offset_px - window_px / 2)
            top = round(compartment.outline.l0_y + dy * offset_px - window_px / 2)
            images.append(slide.image[top : top + window_px, left : left + window_px])
            labels.append(compartment.is_tumour)
    return images, labels


def features(image: np.ndarray) -> np.ndarray:
    """Colour and texture: moments and quantiles of the channels, of their differences and of means over 8 x 8 px."""
    pixels = image.astype(np.float32)
    blocks = pixels.reshape(8, 8, 8, 8, 3).mean(axis=(1, 3))
    parts = [
        np.quantile(f.reshape(-1, 3), (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1), axis=0) for f in (image[::3, ::3], blocks)
    ]
    for field in (pixels, np.diff(pixels, axis=0), np.diff(pixels, axis=1), np.diff(blocks, axis=0)):
        parts += [field.mean(axis=(0, 1)), field.std(axis=(0, 1))]
    return np.concatenate([part.ravel() for part in parts])


def learned_accuracy(train: list[Slide], test: list[Slide], offset_px: float) -> float:
    def table(slides: list[Slide]) -> tuple[np.ndarray, np.ndarray]:
        pairs = [windows_beside_the_marker(slide, 64, offset_px) for slide in slides]
        return np.array([features(w) for images, _ in pairs for w in images]), np.concatenate([y for _, y in pairs])

    forest = RandomForestClassifier(100, min_samples_leaf=3, class_weight="balanced", random_state=0)
    forest.fit(*table(train))
    x, y = table(test)
    return balanced_accuracy_score(y, forest.predict(x))


def test_colours_away_from_the_marker_do_not_differ_between_classes(tumour_slides: list[Slide]):
    means: dict[bool, list[np.ndarray]] = {False: [], True: []}
    deviations: dict[bool, list[np.ndarray]] = {False: [], True: []}
    for slide in tumour_slides:
        scale = slide.image.reshape(-1, 3).mean(axis=0)  # the strength of the stain differs from slide to slide
        for compartment in slide.layout.compartments:
            row, col = compartment_pixels(slide.layout, compartment)
            far = np.maximum(abs(row - compartment.outline.l0_y), abs(col - compartment.outline.l0_x)) > 24
            pixels = slide.image[row[far], col[far]] / scale
            means[compartment.is_tumour].append(pixels.mean(axis=0))
            deviations[compartment.is_tumour].append(pixels.std(axis=0))
    for values in (means, deviations):
        tumour, benign = np.array(values[True]), np.array(values[False])
        error = np.sqrt(tumour.var(axis=0) / len(tumour) + benign.var(axis=0) / len(benign))
        assert (np.abs(tumour.mean(axis=0) - benign.mean(axis=0)) < 3.5 * error).all()
        assert (np.abs(tumour.mean(axis=0) / benign.mean(axis=0) - 1) < 0.02).all()


def test_a_learned_classifier_is_at_chance_without_the_marker_and_right_with_it(tumour_slides: list[Slide]):
    train, test = tumour_slides[:3], tumour_slides[3:]
    beside = 32 + MARKER_REACH_PX + 1  # the 64 px window ends where the marker's last JPEG block may
    assert 0.4 < learned_accuracy(train, test, beside) < 0.6
    assert learned_accuracy(train, test, 24) > 0.95


def seen_pixels(
    layout: SlideLayout, tile_px: int, reach_px: float, shift: tuple[int, int] = (0, 0)
) -> tuple[np.ndarray, np.ndarray]:
    """Per pixel: 0 stroma or background, 1 benign, 2 tumour; and whether its tile holds part of its marker."""
    label, seen = np.zeros((layout.l0_size,) * 2, np.int8), np.zeros((layout.l0_size,) * 2, bool)
    for compartment in layout.compartments:
        outline, (row, col) = compartment.outline, compartment_pixels(layout, compartment)
        label[row, col] = 1 + compartment.is_tumour
        seen[row, col] = True
        for index, centre in ((row + shift[0], outline.l0_y + shift[0]), (col + shift[1], outline.l0_x + shift[1])):
            low, high = np.floor((centre - reach_px) / tile_px), np.floor((centre + reach_px) / tile_px)
            seen[row, col] &= (low <= index // tile_px) & (index // tile_px <= high)
    return label, seen


@pytest.mark.parametrize("tile_px", [64, 128, 256, 512])
def test_the_closed_form_agrees_with_pixels_counted_on_slides(tile_px: int):
    shares = []
    for seed in range(8):
        layout = plan_slide(2048, (seed, 5), has_tumour=True)
        shift = np.random.default_rng(seed).integers(0, tile_px, 2)  # the closed form is for a grid at a random place
        label, seen = seen_pixels(layout, tile_px, MARKER_REACH_PX, tuple(shift))
        shares.append(seen[label > 0].mean())
    assert np.mean(shares) == pytest.approx(marker_seen_share(tile_px), abs=0.025)


def test_the_bound_grows_with_the_window_as_stated():
    tiled = [context_bound(window_px) for window_px in (64, 128, 256, 512)]
    assert tiled == pytest.approx([0.71, 0.83, 0.91, 0.95], abs=0.01)
    assert context_bound(64, tumour_share=0.5) < 0.65
    assert context_bound(64, placement="centred") < 0.72
    assert context_bound(256, placement="centred") == 1
    assert context_bound(1e9) == pytest.approx(1) and context_bound(64, tumour_share=0) == 1


def tiles_64(slide: Slide) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, tumour pixels and benign pixels of the slide's 64 px tiles that hold a part of a compartment."""
    num = slide.layout.l0_size // 64
    label, _ = seen_pixels(slide.layout, 64, 0)
    label = label.reshape(num, 64, num, 64).swapaxes(1, 2).reshape(num * num, -1)
    image = slide.image.reshape(num, 64, num, 64, 3).swapaxes(1, 2).reshape(num * num, 64, 64, 3)
    used = (label > 0).sum(axis=1) > 200
    return np.array([features(tile) for tile in image[used]]), *((label[used] == i).sum(axis=1) for i in (2, 1))


def test_64_px_tiles_do_not_beat_their_bound_and_256_px_tiles_can(tumour_slides: list[Slide]):
    """A forest gives one label to all compartment pixels of a tile, and few tiles of 64 px hold both classes."""
    x, tumour, benign = (np.concatenate(p) for p in zip(*map(tiles_64, tumour_slides[:3]), strict=True))
    forest = RandomForestClassifier(100, min_samples_leaf=3, random_state=0)
    forest.fit(x, tumour > benign, sample_weight=np.abs(tumour - benign))
    right = total = oracle_right = oracle_total = 0
    for slide in tumour_slides[3:]:
        x, tumour, benign = tiles_64(slide)
        right += np.where(forest.predict(x), tumour, benign).sum()
        total += (tumour + benign).sum()
        label, seen = seen_pixels(slide.layout, 256, MARKER_RADIUS_PX)
        oracle_right += ((label == 1) | (label == 2) & seen).sum()
        oracle_total += (label > 0).sum()
    assert 0.6 < right / total < context_bound(64) + 0.03
    assert context_bound(64) + 0.1 < oracle_right / oracle_total < context_bound(256) + 0.02


def test_a_directory_that_holds_files_is_refused_and_left_alone(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds files already \(mine.txt\); nothing is overwritten"):
        make_slides(tmp_path, **NUMBERS)
    with pytest.raises(DataError, match="this is a file"):
        make_slides(tmp_path / "mine.txt", **NUMBERS)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("size", 1023, r"size = 1023\n  fix: choose a size from 1024 to 8192 px"),
        ("size", 8193, "size = 8193"),
        ("num_train", 1, "training slides = 1"),
        ("num_test", -1, "test slides = -1"),
        ("seed", -1, "seed = -1"),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_written(tmp_path: Path, name: str, value: int, text: str):
    with pytest.raises(DataError, match=text):
        make_slides(tmp_path / "out", **{**NUMBERS, name: value})
    assert not (tmp_path / "out").exists()


def test_a_failed_write_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(path: Path, levels: list[np.ndarray]) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.slides.synthetic.files._write_levels", full)
    with pytest.raises(DataError, match="No space left on device"):
        make_slides(tmp_path / "out", num_train=2, num_test=0, size=1024, seed=1)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_progress_counts_every_slide(tmp_path: Path):
    seen: list[tuple[int, int]] = []
    paths = make_slides(
        tmp_path / "out", num_train=2, num_test=1, size=1024, seed=1, progress=lambda *at: seen.append(at)
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert [path.name for path in paths] == ["normal_001.tif", "tumor_001.tif", "test_001.tif"]
