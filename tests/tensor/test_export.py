"""Exports compute what the run computes, say what they are, and need no TensorFlow."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import write_config

from trainer.config import Config, load_config
from trainer.curriculum import Position
from trainer.errors import ConfigError, ExportError
from trainer.evaluate.tiles import Tile
from trainer.export.export import Wanted, export_run
from trainer.export.formats import to_openvino
from trainer.export.graph import inference_function
from trainer.export.int8 import quantise
from trainer.export.patches import Patches, validation_patches
from trainer.infer.exported_network import ExportedNetwork
from trainer.infer.openvino import openvino
from trainer.infer.run_network import RunNetwork
from trainer.infer.slide_job import predict_slide
from trainer.models import build_model
from trainer.models.keras import keras, tf
from trainer.models.layers import ResizeLike
from trainer.models.norms import GroupNorm
from trainer.patches.build import build_index
from trainer.slides.slide import open_slide
from trainer.train.checkpoint import Progress, snapshot, write_checkpoint
from trainer.train.checkpoints import checkpoint_path
from trainer.train.session import write_settings

ROOT = Path(__file__).parents[2]


def silent(line: str) -> None:
    pass


def write_run(folder: Path, slides: Path, **changes) -> Config:
    """A run directory with an index and one checkpoint, with weights that were drawn."""
    folder.mkdir()
    config = load_config(write_config(folder, slides, **changes))
    build_index(config, config.index_path)
    model = build_model(config.model, 2, read_weights=False)
    rng = np.random.default_rng(1)
    for variable in model.variables:  # scales, shifts and statistics that do something
        if "gamma" in variable.name or "moving_variance" in variable.name:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif "beta" in variable.name or "moving_mean" in variable.name:
            variable.assign(rng.uniform(-0.2, 0.2, variable.shape))
    image, _ = next(iter(validation_patches(config, config.patch_sizes[-1])))
    logits = model(image[np.newaxis]).numpy()
    model.trainable_variables[-1].assign_add([0, np.median(logits[..., 0] - logits[..., 1])])  # both classes occur
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    path = checkpoint_path(config.output, 1)
    path.parent.mkdir(parents=True)
    write_checkpoint(path, snapshot(model, optimizer), Progress(Position(1), 1))
    write_settings(config, 1)
    return config


DEEPLAB = {"backbone": "resnet18", "aspp_channels": 16, "decoder_channels": 16}
TINY_UNET = {"architecture": "resunet", "decoder_channels": 16}


@pytest.fixture(scope="module")
def run(tiny_slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Of a small network."""
    keras.utils.set_random_seed(1)
    folder = tmp_path_factory.mktemp("export") / "run"
    stages = [{"patch_size": 64, "local_batch_size": 4, "steps": 4}]
    return write_run(folder, tiny_slides, model=TINY_UNET, curriculum=stages)


@pytest.fixture(scope="module")
def exported(run: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in float32 for OpenVINO; not to be changed."""
    out = tmp_path_factory.mktemp("exported") / "openvino-fp32"
    about = export_run(run, run.output, Wanted(), out, 2, silent)
    assert about["largest_difference"] < 1e-4
    return out


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (*shape, 3), np.uint8)


def test_an_export_gives_tensorflows_probabilities(run: Config, exported: Path) -> None:
    ours, theirs = RunNetwork(run, run.output), ExportedNetwork(exported, 2)
    for images in (noise(1, 160, 160), noise(2, 64, 96)):
        expected = ours(images)
        assert expected.std() > 0.01, "the network says something"
        np.testing.assert_allclose(theirs(images), expected, atol=1e-4)


@pytest.mark.parametrize("model", [DEEPLAB, TINY_UNET | {"norm": "sync_batch"}], ids=["deeplab", "sync_batch"])
def test_other_networks_are_exported_exactly(model: dict[str, Any], tiny_slides: Path, tmp_path: Path) -> None:
    config = write_run(tmp_path / "r", tiny_slides, model=model)
    about = export_run(config, config.output, Wanted(), tmp_path / "out", 2, silent)
    assert about["largest_difference"] < 1e-4


def test_a_bfloat16_run_is_exported_in_float32(run: Config, tmp_path: Path) -> None:
    narrow = run.model_copy(update={"training": run.training.model_copy(update={"precision": "mixed_bfloat16"})})
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    about = export_run(narrow, run.output, Wanted(), tmp_path / "out", 2, silent)
    assert about["largest_difference"] < 1e-4


@pytest.mark.parametrize(("kind", "precision", "tolerance"), [("onnx", "fp32", 1e-4), ("openvino", "fp16", 0.1)])
def test_other_formats_run_too(kind: str, precision: str, tolerance: float, run: Config, tmp_path: Path) -> None:
    export_run(run, run.output, Wanted(kind=kind, precision=precision), tmp_path / "out", 2, silent)
    images = noise(1, 64, 64)
    expected = RunNetwork(run, run.output)(images)
    np.testing.assert_allclose(ExportedNetwork(tmp_path / "out", 2)(images), expected, atol=tolerance)


def test_a_savedmodel_serves_probabilities_and_is_not_for_predict(run: Config, tmp_path: Path) -> None:
    export_run(run, run.output, Wanted(kind="savedmodel"), tmp_path / "out", 2, silent)
    serve = tf.saved_model.load(str(tmp_path / "out" / "network.savedmodel")).signatures["serving_default"]
    images = noise(2, 64, 64)
    found = serve(image=tf.constant(images))["probabilities"]
    np.testing.assert_allclose(found, RunNetwork(run, run.output)(images), atol=1e-5)
    with pytest.raises(ExportError, match="a savedmodel is for other programs"):
        ExportedNetwork(tmp_path / "out", 2)


def test_int8_keeps_dice_and_says_so(run: Config, tmp_path: Path) -> None:
    wanted = Wanted(precision="int8", calibration_patches=16, max_drop=0.02)
    about = export_run(run, run.output, wanted, tmp_path / "out", 2, silent)
    int8 = about["int8"]
    assert int8["calibration_patches"] == 16 and int8["validation_patches"] == 37
    assert 0.05 < int8["dice_float32"] < 0.95, "there is something to lose"
    assert int8["dice"] >= int8["dice_float32"] - 0.02
    assert json.loads((tmp_path / "out" / "export.json").read_text()) == about
    text = (tmp_path / "out" / "report.md").read_text()
    assert f"| INT8 | {int8['dice']:.4f} |" in text and f"of {int8['num_layers']} layers" in text.replace("All", "of")


@dataclass
class OwnAnswers:
    """A store of noise whose labels are what the network itself says in float32: its Dice is 1."""

    network: object

    def read_at(self, slide: int, x: int, y: int, size: int):
        image = np.random.default_rng(x).integers(0, 256, (size, size, 3), np.uint8)
        return image, self.network(image[np.newaxis]).numpy()[0].argmax(-1).astype(np.uint8)


def test_layers_that_cost_dice_stay_in_float32_and_are_named() -> None:
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    for number in range(3):
        x = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name=f"conv{number}")(x)
    model = keras.Model(inputs, keras.layers.Conv2D(2, 1, name="last")(x))
    function = inference_function(model)
    patches = Patches(OwnAnswers(function), [Tile(0, n, 0, 64) for n in range(6)], 1)
    loose = quantise(to_openvino(function, model), patches, patches, 2, 1.0, silent)
    assert loose.dice_float32 == 1 and loose.kept == () and loose.num_layers == 4
    strict = quantise(to_openvino(function, model), patches, patches, 2, 1e-6, silent)
    assert 1 <= len(strict.kept) <= 4 and all("conv" in name or "last" in name for name in strict.kept)


def test_a_group_norm_after_an_int8_convolution_norms_what_comes_from_it() -> None:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(16, 3, padding="same", activation="relu")(keras.layers.Rescaling(1 / 255)(inputs))
    x = GroupNorm()(keras.layers.DepthwiseConv2D(3, padding="same")(x))
    model = keras.Model(inputs, keras.layers.Conv2D(2, 1)(keras.layers.ReLU()(x)))
    function = inference_function(model)
    patches = Patches(OwnAnswers(function), [Tile(0, n, 0, 64) for n in range(6)], 1)
    quantised = quantise(to_openvino(function, model), patches, patches, 2, 1.0, silent)
    images = noise(1, 64, 64)
    executed, rounded = (
        openvino.compile_model(
            quantised.model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "LP_TRANSFORMS_MODE": integers}
        )(images)[0]
        for integers in ("YES", "NO")
    )
    deviation = function(images).numpy().std()
    assert np.abs(executed - rounded).mean() < deviation / 50, "INT8 computes what rounding to its numbers gives"
    assert np.abs(executed - function(images).numpy()).mean() < deviation / 3


def test_an_int8_network_that_resizes_takes_tiles_of_other_sizes_than_it_was_calibrated_with() -> None:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((None, None, 3))
    fine = keras.layers.Conv2D(16, 3, padding="same", activation="relu")(keras.layers.Rescaling(1 / 255)(inputs))
    coarse = keras.layers.Conv2D(16, 3, strides=4, padding="same", activation="relu")(fine)
    x = keras.layers.Concatenate()([ResizeLike()([coarse, fine]), fine])
    model = keras.Model(inputs, keras.layers.Conv2D(2, 1)(keras.layers.DepthwiseConv2D(3, padding="same")(x)))
    function = inference_function(model)
    patches = Patches(OwnAnswers(function), [Tile(0, n, 0, 64) for n in range(6)], 1)
    quantised = quantise(to_openvino(function, model), patches, patches, 2, 1.0, silent)
    images = noise(1, 128, 128)
    expected = function(images).numpy()
    quantised.model.reshape([1, 128, 128, 3])
    assert np.abs(openvino.compile_model(quantised.model, "CPU")(images)[0] - expected).mean() < expected.std() / 3


def test_an_export_predicts_the_map_that_the_run_predicts(
    run: Config, exported: Path, tiny_slides: Path, tmp_path: Path
) -> None:
    slide, classes = sorted(tiny_slides.rglob("tumor*.tif"))[0], []
    for network in (RunNetwork(run, run.output), ExportedNetwork(exported, 2)):
        out = tmp_path / type(network).__name__
        predict_slide(slide, network, out, tile=256, threads=2, say=silent, progress=lambda done, total: None)
        classes.append(open_slide(out / "classes.tif").read(0, 0, 1024))
    assert len(np.unique(classes[0])) > 1
    assert np.mean(classes[0] != classes[1]) < 1e-3


REFUSE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"tensorflow", "tf_keras", "keras", "horovod", "mpi4py", "segmentation_models"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
from trainer.cli.main import main
main(sys.argv[1:])
"""


def without_tensorflow(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", REFUSE, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_an_export_predicts_without_tensorflow(run: Config, exported: Path, tiny_slides: Path, tmp_path: Path) -> None:
    slide = sorted(tiny_slides.rglob("tumor*.tif"))[0]
    done = without_tensorflow("predict", exported, slide, "-o", tmp_path / "out", "--tile", 256)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / slide.stem / "classes.tif").exists()
    done = without_tensorflow("predict", run.output, slide, "-o", tmp_path / "other")
    assert done.returncode == 2 and "pip install 'widefield[train]'" in done.stderr, done.stderr


def test_a_tile_that_the_network_cannot_take_is_told(exported: Path) -> None:
    with pytest.raises(ConfigError, match="a multiple of 16 px, not of 100") as e:
        ExportedNetwork(exported, 2)(noise(1, 100, 100))
    assert e.value.fix == "--tile 112"


def test_only_its_own_export_is_replaced(run: Config, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(ExportError, match="is no export"):
        export_run(run, run.output, Wanted(), tmp_path / "photos", 2, silent)
    with pytest.raises(ExportError, match="holds the export of another run"):
        export_run(run.model_copy(update={"seed": 99}), run.output, Wanted(), exported, 2, silent)
    out = shutil.copytree(exported, tmp_path / "out")
    (out / "network.bin").write_bytes(b"")
    with pytest.raises(ExportError, match="is damaged"):
        ExportedNetwork(out, 2)
    export_run(run, run.output, Wanted(), out, 2, silent)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    ExportedNetwork(out, 2)


def test_int8_without_patches_is_refused_before_any_work(run: Config, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no patches of 999 px"):
        export_run(run, run.output, Wanted(precision="int8", patch_size=999), tmp_path / "out", 2, silent)
    moved = run.model_copy(update={"output": tmp_path / "moved"})
    shutil.copytree(run.output, moved.output)
    moved.index_path.unlink()
    with pytest.raises(ExportError, match="patches are not known"):
        export_run(moved, moved.output, Wanted(precision="int8"), tmp_path / "out", 2, silent)
    assert not (tmp_path / "out").exists()
