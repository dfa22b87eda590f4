"""Export a run: its best network in another format, with all that predicting slides with it needs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trainer import __version__
from trainer.config import Config
from trainer.config.architectures import ARCHITECTURES
from trainer.errors import ExportError
from trainer.export.formats import to_openvino, write_onnx, write_openvino, write_savedmodel
from trainer.export.graph import inference_function
from trainer.export.patches import Patches, training_patches, validation_patches
from trainer.export.report import report
from trainer.export.score import confusions, dice_of
from trainer.files import replace_content, replaced_folder
from trainer.infer.export_folder import ABOUT, FORMAT, files_of, is_export, read_about
from trainer.infer.exported_network import ExportedNetwork
from trainer.infer.network import Recipe
from trainer.infer.run_network import read_model
from trainer.infer.run_recipe import recipe_of, scored_checkpoint
from trainer.models.keras import keras
from trainer.train.session import config_hash

Kind = Literal["openvino", "onnx", "savedmodel"]
Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
Say = Callable[[str], None]
_TOLERANCE = 1e-3
"""Of a probability in float32. Rounding alone gives 1e-5, a layer that was converted wrongly gives tenths."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to make of a run.

    Args:
      calibration_patches: training patches that INT8 is calibrated with.
      max_drop: how much lower Dice on the validation patches may be in INT8 than in float32.
      patch_size: of these patches; None is the run's largest.
    """

    kind: Kind = "openvino"
    precision: Precision = "fp32"
    calibration_patches: int = 128
    max_drop: float = 0.005
    patch_size: int | None = None

    @property
    def name(self) -> str:
        """Of its folder in RUN_DIR/export."""
        return f"{self.kind}-{self.precision}"

    def __post_init__(self) -> None:
        if self.kind != "openvino" and self.precision != "fp32":
            raise ExportError(
                f"{self.kind} is written in fp32 only",
                where=f"--precision {self.precision}",
                fix=f"--format openvino --precision {self.precision}",
            )


def export_run(config: Config, run: Path, wanted: Wanted, out: Path, threads: int, say: Say) -> dict[str, Any]:
    """Write a folder with the network and what there is to know of it; it is there when it is whole.

    Args:
      threads: that compute while what was written is checked.
    Returns:
      what `export.json` holds.
    Raises:
      ExportError: `out` holds something else or cannot be written, INT8 finds no patches, or the written network does
        not compute what TensorFlow does.
      RunError, CheckpointError: no checkpoint, or one of another architecture.
    """
    check_place(out, config)
    patches = _patches(config, wanted) if wanted.precision == "int8" else None  # missing ones are missed at once
    checkpoint = scored_checkpoint(run)
    say(f"reading {checkpoint}")
    keras.mixed_precision.set_global_policy("float32")  # also where it was trained in a narrower one
    model = read_model(config, checkpoint)
    recipe = recipe_of(config, checkpoint)
    about: dict[str, Any] = {
        "format": FORMAT,
        "widefield": __version__,
        "kind": wanted.kind,
        "precision": wanted.precision,
        "narrow": wanted.precision != "fp32",
        "tile_multiple": ARCHITECTURES[config.model.architecture].patch_multiple,
        "recipe": recipe.to_json(),
        "source": {"run": str(run.resolve()), "checkpoint": checkpoint.name, "settings": config_hash(config)},
    }
    try:
        with replaced_folder(out) as folder:
            say(f"writing {wanted.kind} {wanted.precision}")
            about |= _write_network(model, wanted, patches, len(recipe.class_names), folder, say)
            about["files"] = files_of(folder)
            _write_about(folder, about)
            if patches:
                about |= _scored(about, folder, patches[1], threads, say)
            if about["network"]:
                about["largest_difference"] = _difference(model, ExportedNetwork(folder, threads), wanted, recipe)
            _write_about(folder, about)
    except OSError as error:
        raise ExportError(f"cannot be written: {error}", where=str(out), fix="free some space, or give -o") from None
    return read_about(out)


def is_current(folder: Path, config: Config, run: Path) -> bool:
    """Whether a folder is an export of what `export_run` would export."""
    weights = recipe_of(config, scored_checkpoint(run)).network
    return is_export(folder) and read_about(folder)["recipe"]["network"] == weights


def check_place(out: Path, config: Config) -> None:
    """Whether an export may take the place of what is there.

    Raises:
      ExportError: it is not an export, or one of another run.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not is_export(out):
        raise ExportError("is there and is no export", where=str(out), fix="give another folder with -o")
    source = read_about(out)["source"]
    if source["settings"] != config_hash(config):
        raise ExportError(
            f"holds the export of another run: {source['run']}",
            where=str(out),
            fix="give another folder with -o, or delete this one",
        )


def _patches(config: Config, wanted: Wanted) -> tuple[Patches, Patches]:
    """To calibrate with and to score on."""
    size = wanted.patch_size or config.patch_sizes[-1]
    return training_patches(config, size, wanted.calibration_patches), validation_patches(config, size)


def _write_network(
    model: keras.Model,
    wanted: Wanted,
    patches: tuple[Patches, Patches] | None,
    num_classes: int,
    folder: Path,
    say: Say,
) -> dict[str, Any]:
    """The file that `ExportedNetwork` reads, None where there is none for it, and how INT8 was come by."""
    if wanted.kind == "savedmodel":
        write_savedmodel(model, folder)
        return {"network": None}
    function = inference_function(model)
    if wanted.kind == "onnx":
        return {"network": write_onnx(function, folder)}
    converted = to_openvino(function, model)
    if patches is None:
        return {"network": write_openvino(converted, folder, half=wanted.precision == "fp16")}
    from trainer.export.int8 import quantise

    calibration, validation = patches
    quantised = quantise(converted, calibration, validation, num_classes, wanted.max_drop, say)
    int8 = {
        "calibration_patches": len(calibration),
        "validation_patches": len(validation),
        "patch_size": validation.tiles[0].size,
        "max_drop": wanted.max_drop,
        "dice_float32": quantised.dice_float32,
        "num_layers": quantised.num_layers,
        "kept_in_float32": list(quantised.kept),
    }
    return {"network": write_openvino(quantised.model, folder, half=False), "int8": int8}


def _scored(about: dict[str, Any], folder: Path, validation: Patches, threads: int, say: Say) -> dict[str, Any]:
    """Dice of INT8 as it will run: with bfloat16 beside it, or without where that costs too much."""
    for narrow in (True, False):
        about = about | {"narrow": narrow}
        _write_about(folder, about)
        dice = dice_of(confusions(ExportedNetwork(folder, threads), validation, len(about["recipe"]["class_names"])))
        say(f"Dice as it will run, {'bfloat16' if narrow else 'float32'} beside INT8: {dice:.4f}")
        about["int8"] = about["int8"] | {"dice": dice}
        if dice >= about["int8"]["dice_float32"] - about["int8"]["max_drop"]:
            break
    return about


def _difference(model: keras.Model, network: ExportedNetwork, wanted: Wanted, recipe: Recipe) -> float:
    """The largest difference of a probability from what TensorFlow computes, on noise.

    Raises:
      ExportError: too large for float32.
    """
    size = recipe.patch_sizes[0]
    image = np.random.default_rng(1).integers(0, 256, (1, size, size, 3), np.uint8)
    expected = keras.activations.softmax(model(image, training=False)).numpy()
    difference = float(np.abs(network(image) - expected).max())
    if wanted.precision == "fp32" and not difference < _TOLERANCE:
        raise ExportError(
            f"probabilities differ by {difference:.1e} from those of TensorFlow: a layer is not converted rightly",
            where=wanted.name,
            fix="please report it with the run's config.yaml; another --format may do",
        )
    return difference


def _write_about(folder: Path, about: dict[str, Any]) -> None:
    replace_content(folder / ABOUT, json.dumps(about, indent=1) + "\n")
    replace_content(folder / "report.md", report(about))
