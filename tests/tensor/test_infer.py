from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from small_slides import GLASS, PINK, damaged

from trainer.config.schema import ResolutionConfig, StainConfig, TissueConfig
from trainer.errors import PredictionError, SlideError
from trainer.infer.blend import BLOCK
from trainer.infer.map_file import NOT_PREDICTED, MapFile, holes_of
from trainer.infer.network import Recipe
from trainer.infer.plan import TilePlan, plan_tiles
from trainer.infer.predict import predict_map, unpredicted
from trainer.infer.slide_view import SlideView, open_view
from trainer.infer.tiles import predict_here
from trainer.models.keras import keras, tf

REACH = 5
"""Pixels that the convolutions below see in each direction."""
MADE_FROM = {"slide": "a.tif", "network": "1", "sizes": (1, 2)}


def recipe(**changes) -> Recipe:
    values = {
        "network": "1", "class_names": ("normal", "tumour"), "patch_sizes": (96,), "mpp": None,
        "resolution": ResolutionConfig(level=0), "tissue": TissueConfig(), "min_tissue_fraction": 0.3,
        "stain": StainConfig(), "seed": 1,
    }  # fmt: skip
    return Recipe(**values | changes)


class Convolutions:
    """A network without any pooling: two convolutions that see `REACH` pixels in each direction."""

    recipe = recipe()

    def __init__(self) -> None:
        self.model = keras.Sequential(
            [
                keras.layers.Rescaling(1 / 255, input_shape=(None, None, 3)),
                keras.layers.Conv2D(4, 7, padding="same", activation="relu"),
                keras.layers.Conv2D(2, 5, padding="same", activation="softmax"),
            ]
        )
        self.shapes: set[tuple[int, ...]] = set()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.shapes.add(images.shape)
        return self.model(tf.constant(images)).numpy()


class FloatMap:
    """Takes the place of a MapFile and keeps what it is given unrounded."""

    num_classes, holes = 2, ()

    def __init__(self, size: tuple[int, int]) -> None:
        columns, rows = (-(-n // BLOCK) * BLOCK for n in size)
        self.pixels, self.size = np.full((2, rows, columns), np.nan, np.float32), size

    def finished(self) -> set[tuple[int, int]]:
        return set()

    def write(self, place: tuple[int, int], block: np.ndarray) -> None:
        x, y = place[0] * BLOCK, place[1] * BLOCK
        self.pixels[:, y : y + BLOCK, x : x + BLOCK] = block

    def sync(self) -> None: ...

    def probabilities(self) -> np.ndarray:
        return np.moveaxis(self.pixels[:, : self.size[1], : self.size[0]], 0, 2)


def predict(view: SlideView, network, plan: TilePlan, map_file, progress=lambda done, total: None) -> None:
    predict_map(view, partial(predict_here, network, 2), plan, map_file, progress=progress)


@pytest.fixture
def slide(tiny_slides: Path) -> Path:
    return sorted(tiny_slides.rglob("tumor*.tif"))[0]


@pytest.fixture
def network() -> Convolutions:
    return Convolutions()


@pytest.mark.parametrize("tile", [96, 300, 2000])
def test_tiles_blend_into_what_the_network_makes_of_the_whole_image(
    slide: Path, network: Convolutions, tile: int
) -> None:
    """The receptive field, 11 px, is not wider than the overlap."""
    view = open_view(slide, recipe())
    whole = network(view.read(0, 0, max(*view.size, tile))[None])[0][: view.size[1], : view.size[0]]
    seamless = FloatMap(view.size)
    predict(view, network, plan_tiles(view.size, tile, 2 * REACH), seamless)
    predicted = ~np.isnan(seamless.probabilities())
    assert predicted.mean() > 0.2
    assert tile > 96 or predicted.mean() < 1, "glass is not predicted"
    np.testing.assert_allclose(seamless.probabilities()[predicted], whole[predicted], atol=1e-5)


def test_all_tissue_is_predicted(slide: Path, network: Convolutions) -> None:
    view = open_view(slide, recipe())
    seen = FloatMap(view.size)
    predict(view, network, plan_tiles(view.size, 96), seen)
    assert view.tissue
    y, x = np.nonzero(view.tissue.mask)
    x, y = ((x + 0.5) * view.tissue.downsample_x).astype(int), ((y + 0.5) * view.tissue.downsample_y).astype(int)
    inside = (x < view.size[0]) & (y < view.size[1])
    assert not np.isnan(seen.probabilities()[y[inside], x[inside]]).any()


def test_a_stopped_prediction_goes_on_and_ends_with_the_same_bytes(
    slide: Path, network: Convolutions, tmp_path: Path
) -> None:
    view = open_view(slide, recipe(tissue=None))
    plan = plan_tiles(view.size, 96)
    whole = MapFile(tmp_path / "whole", view.size, 2, MADE_FROM)
    predict(view, network, plan, whole)
    whole.close()

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    parts = MapFile(tmp_path / "parts", view.size, 2, MADE_FROM)
    with pytest.raises(KeyboardInterrupt):
        predict(view, network, plan, parts, stop)
    parts.close()
    parts = MapFile(tmp_path / "parts", view.size, 2, MADE_FROM)
    assert 0 < len(unpredicted(view, plan, parts)) < len(plan)
    predict(view, network, plan, parts)
    assert unpredicted(view, plan, parts) == []
    parts.close()
    assert (tmp_path / "parts" / "map.blocks").read_bytes() == (tmp_path / "whole" / "map.blocks").read_bytes()
    assert len(network.shapes) == 1, "a network is compiled for one shape"


def test_a_damaged_tile_is_a_hole_with_its_place_and_the_rest_is_predicted(
    slide: Path, network: Convolutions, tmp_path: Path
) -> None:
    plan = plan_tiles(open_view(slide, recipe()).size, 96)
    maps = []
    for path in (slide, damaged(slide, tmp_path / "a.tif", 600, 520)):
        view = open_view(path, recipe(tissue=None))
        maps.append(MapFile(tmp_path / path.stem, view.size, 2, MADE_FROM))
        predict(view, network, plan, maps[-1])
    whole, broken = (m.read(0, 0, *view.size) for m in maps)
    assert whole.any(axis=0).all() and maps[0].holes == []
    is_hole = np.zeros(view.size[::-1], bool)
    is_hole[512 - 6 : 768 + 6, 512 - 6 : 768 + 6] = True  # half an overlap beside a slide's tile of 256 px
    np.testing.assert_array_equal(~broken.any(axis=0), is_hole)
    assert np.abs(broken[:, ~is_hole].astype(int) - whole[:, ~is_hole]).max() <= 1, "what is predicted is right"
    assert maps[1].read_classes(600, 520, 1, 1) == NOT_PREDICTED
    (hole,) = maps[1].holes
    assert (hole.x, hole.y, hole.side) == (512, 512, 256)
    assert "column 2, row 2 of level 0 (level-0 pixel (512, 512)) cannot be read" in hole.why
    maps[1].close()
    assert holes_of(tmp_path / "a", MADE_FROM) == maps[1].holes, "a later look still knows of them"


def test_where_damage_hides_the_tissue_everything_is_predicted_and_that_is_said(tmp_path: Path) -> None:
    pixels = np.full((600, 500, 3), PINK, np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(256, 256), compression="jpeg", photometric="rgb")
    view = open_view(damaged(tmp_path / "a.tif", tmp_path / "b.tif", 300, 300), recipe())
    (note,) = view.notes
    assert note.startswith("tissue cannot be found, so everything is predicted: the tile in column 1, row 1")
    plan = plan_tiles(view.size, 96)
    assert view.tiles_with_tissue(plan) == list(range(len(plan)))
    assert (view.thumbnail()[0][300, 300] == 255).all() and (view.thumbnail()[0][30, 30] < 255).any()


def test_a_slide_of_which_nothing_can_be_read_is_an_error(
    slide: Path, network: Convolutions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = open_view(slide, recipe())

    def fail(*_: object) -> None:
        raise SlideError("the disk is gone")

    monkeypatch.setattr(type(view.slide), "_read", fail)
    with pytest.raises(SlideError, match="nothing of its tissue can be read; the first part: the disk is gone"):
        predict(view, network, plan_tiles(view.size, 300), MapFile(tmp_path / "m", view.size, 2, MADE_FROM))


def test_glass_alone_gives_an_empty_map_and_says_so(network: Convolutions, tmp_path: Path) -> None:
    Image.new("RGB", (700, 600), GLASS).save(tmp_path / "glass.png")
    view = open_view(tmp_path / "glass.png", recipe())
    assert view.notes == ("no tissue was found: the map is empty",)
    empty = MapFile(tmp_path / "m", view.size, 2, MADE_FROM)
    predict(view, network, plan_tiles(view.size, 96), empty)
    assert not empty.read(0, 0, 700, 600).any()
    assert (empty.read_classes(0, 0, 700, 600) == NOT_PREDICTED).all()


def test_a_slide_of_another_resolution_is_resampled_and_that_is_said(tmp_path: Path) -> None:
    Image.new("RGB", (700, 601), PINK).save(tmp_path / "a.png")
    view = open_view(tmp_path / "a.png", recipe(resolution=ResolutionConfig(mpp=0.5), mpp=0.3))
    assert view.size == (420, 361) and view.mpp == pytest.approx(0.5)
    assert "is resampled to the 0.5 um/px of training: every 1.67 px become one" in view.notes
    listed = open_view(tmp_path / "a.png", recipe(resolution=ResolutionConfig(mpp=0.5), mpp=0.3), listed_mpp=0.5)
    assert listed.size == (700, 601), "a manifest wins"
    with pytest.raises(SlideError, match=r"(?s)does not say its resolution.*--mpp 0\.25"):
        open_view(tmp_path / "a.png", recipe(resolution=ResolutionConfig(mpp=0.5)))


def test_regions_of_a_map_are_what_was_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    size, shape = (1100, 700), (3, 2 * BLOCK, 3 * BLOCK)
    truth = rng.random(shape, np.float32)
    truth[:, :BLOCK, BLOCK : 2 * BLOCK] = np.nan
    map_file = MapFile(tmp_path / "m", size, 3, MADE_FROM)
    for column, row in np.ndindex(3, 2):
        map_file.write((column, row), truth[:, row * BLOCK :, column * BLOCK :][:, :BLOCK, :BLOCK])
    map_file.sync()
    expected = np.nan_to_num(np.rint(truth * 255)).astype(np.uint8)
    for x, y, width, height in ((0, 0, 1100, 700), (511, 500, 3, 30), (1000, 3, 40, 600), (600, 100, 50, 50)):
        region = expected[:, y : y + height, x : x + width]
        np.testing.assert_array_equal(map_file.read(x, y, width, height), region)
        np.testing.assert_array_equal(map_file.read_probability(2, x, y, width, height), region[2])
        classes = np.where(region.any(axis=0), region.argmax(axis=0), NOT_PREDICTED)
        np.testing.assert_array_equal(map_file.read_classes(x, y, width, height), classes)
    assert not map_file.read(-20, -30, 20, 30).any()


def test_the_folder_of_another_map_is_refused(tmp_path: Path) -> None:
    first = MapFile(tmp_path / "m", (100, 100), 2, MADE_FROM)
    with pytest.raises(PredictionError, match="another process predicts into it"):
        MapFile(tmp_path / "m", (100, 100), 2, MADE_FROM)
    first.close()
    MapFile(tmp_path / "m", (100, 100), 2, MADE_FROM).close()
    with pytest.raises(PredictionError, match="holds a map with another network: 1, not 2") as e:
        MapFile(tmp_path / "m", (100, 100), 2, MADE_FROM | {"network": "2"})
    assert "-o" in e.value.fix
    (tmp_path / "m" / "map.json").write_text("{")
    with pytest.raises(PredictionError, match=r"map\.json: cannot be read"):
        MapFile(tmp_path / "m", (100, 100), 2, MADE_FROM)
