"""What a run says of itself to whole-slide prediction, and one slide from file to files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import shapely
from small_slides import manifest, run_config, tissue_slide

from trainer.config import Config
from trainer.config.schema import ResolutionConfig
from trainer.curriculum import Position
from trainer.errors import PredictionError
from trainer.infer.network import Recipe
from trainer.infer.run_network import RunNetwork, recipe_of
from trainer.infer.slide_job import predict_slide
from trainer.infer.slide_view import open_view
from trainer.models import build_model
from trainer.models.keras import keras
from trainer.patches.build import build_index
from trainer.patches.one_slide import index_slide
from trainer.slides.dataset import SlideRecord
from trainer.slides.slide import open_slide
from trainer.train.checkpoint import Progress, named_variables, write_checkpoint
from trainer.train.checkpoints import checkpoint_path
from trainer.train.ema import Averaged

SMALL = {"backbone": "resnet18", "aspp_channels": 16, "decoder_channels": 16}


def save(config: Config, step: int, model: keras.Model, factor: float) -> None:
    """A checkpoint of the network's weights times `factor`, whose averages are the weights as they are."""
    averaged = Averaged(model, 0.9)
    arrays = {name: v.numpy() for name, v in named_variables(model, None, averaged).items()}
    arrays |= {name: array * factor for name, array in arrays.items() if name.startswith("model/")}
    path = checkpoint_path(config.output, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(path, arrays, Progress(Position(step), 1))


def test_the_network_of_a_run_has_the_averaged_weights_of_its_best_checkpoint(tmp_path: Path) -> None:
    config = run_config(tmp_path, sizes=(64,), model=SMALL, training={"ema_decay": 0.9})
    model = build_model(config.model, len(config.data.classes), read_weights=False)
    image = np.random.default_rng(1).integers(0, 256, (1, 64, 64, 3), np.uint8)
    expected = keras.activations.softmax(model(image))
    save(config, 3, model, 1.5)
    model.trainable_variables[-1].assign_add([0.0, 1.0, 2.0])
    save(config, 5, model, 1.5)
    best = {"step": 3, "metric": "common_miou", "score": 0.5}
    (config.output / "checkpoints" / "best.json").write_text(json.dumps(best))
    network = RunNetwork(config, config.output)
    np.testing.assert_allclose(network(image), expected, atol=1e-5)
    newest = checkpoint_path(config.output, 5)
    assert network.recipe.network != recipe_of(config, newest).network
    assert network.recipe.class_names == ("normal", "stroma", "tumour")


def test_a_run_that_asked_for_a_level_wants_the_resolution_that_its_slides_had_there(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tissue_slide(tmp_path / f"{name}.png")
    manifest(tmp_path, "a.png,,,,train,0.4", "b.png,,,,val,0.4", header="slide,annotation,patient,centre,split,mpp")
    config = run_config(tmp_path, model=SMALL)
    (tmp_path / "weights").touch()
    assert recipe_of(config, tmp_path / "weights").resolution == ResolutionConfig(level=0), "nothing is indexed yet"
    build_index(config, config.index_path)
    assert recipe_of(config, tmp_path / "weights").resolution == ResolutionConfig(mpp=0.4)


def test_a_slide_has_the_stains_that_indexing_finds(tiny_slides: Path, tmp_path: Path) -> None:
    slide = sorted(tiny_slides.rglob("tumor*.tif"))[0]
    config = run_config(tmp_path, sizes=(128,), model=SMALL, stain={"normalise": "macenko"})
    (tmp_path / "weights").touch()
    view = open_view(slide, recipe_of(config, tmp_path / "weights"))
    assert view.stains and view.stains.to_json() == index_slide(SlideRecord(slide, None), config).info.stains
    assert np.abs(view.read(400, 400, 64).astype(int) - open_slide(slide).read(400, 400, 64)).max() > 5


class Threshold:
    """Calls dark pixels tumour."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def __call__(self, images: np.ndarray) -> np.ndarray:
        tumour = (images.mean(axis=-1) < 150).astype(np.float32)
        return np.stack([1 - tumour, 0 * tumour, tumour], axis=-1)


def test_a_slide_becomes_a_folder_of_files_once(tiny_slides: Path, tmp_path: Path) -> None:
    slide, out, said = sorted(tiny_slides.rglob("tumor*.tif"))[0], tmp_path / "out", []
    config = run_config(tmp_path, sizes=(64, 256), model=SMALL)
    (tmp_path / "weights").touch()
    network = Threshold(recipe_of(config, tmp_path / "weights"))

    def predict(tile: int) -> dict[str, Any]:
        return predict_slide(
            slide, network, out, tile=tile, threads=2, say=said.append, progress=lambda done, total: None
        )

    found = predict(256)
    assert {p.name for p in out.iterdir() if not p.name.startswith(".")} == {
        "probability-stroma.tif", "probability-tumour.tif", "classes.tif", "regions.geojson", "overview.png",
        "summary.json", "map.json",
    }  # fmt: skip
    pixels = open_slide(slide).read(0, 0, 1024)
    areas = {name: c["area_px"] for name, c in found["classes"].items()}
    assert areas["stroma"] == 0
    assert areas["tumour"] == pytest.approx(np.count_nonzero(pixels.mean(axis=-1) < 150), rel=0.02)
    assert open_slide(out / "classes.tif").size == (1024, 1024)
    assert "1024 x 1024 px" in said[0] and "tiles have tissue" in said[0]
    assert predict(256) == json.loads((out / "summary.json").read_text()) == found
    assert "was finished before" in said[-1]
    with pytest.raises(PredictionError, match="holds a map with another tile: 256, not 64"):
        predict(64)


def test_viewers_see_a_real_slide_and_its_prediction_in_one_place(real_slide: Path, tmp_path: Path) -> None:
    """Dark is tumour, on an Aperio slide of 0.499 um/px that has one level."""
    config = run_config(tmp_path, sizes=(256,), model=SMALL)
    (tmp_path / "weights").touch()
    network = Threshold(recipe_of(config, tmp_path / "weights"))
    found = predict_slide(
        real_slide, network, tmp_path / "out", threads=2, say=print, progress=lambda done, total: None
    )
    assert found["mpp"] == pytest.approx(0.499) and not found["holes"]
    tumour = found["classes"]["tumour"]
    assert tumour["area_mm2"] == pytest.approx(tumour["area_px"] * 0.499**2 / 1e6)
    for name in ("classes", "probability-tumour"):
        with openslide.OpenSlide(tmp_path / "out" / f"{name}.tif") as shown, openslide.OpenSlide(real_slide) as slide:
            assert shown.dimensions == slide.dimensions and shown.level_count > 1
            assert float(shown.properties[openslide.PROPERTY_NAME_MPP_X]) == pytest.approx(0.499)
            for level, size in enumerate(shown.level_dimensions):
                assert np.ptp(np.asarray(shown.read_region((0, 0), level, size))[..., 0]) > 0
    outlines = json.loads((tmp_path / "out" / "regions.geojson").read_text())["features"]
    drawn = shapely.unary_union([shapely.geometry.shape(f["geometry"]) for f in outlines])
    assert drawn.is_valid and drawn.area == pytest.approx(tumour["area_px"], rel=0.05)
