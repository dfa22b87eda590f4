"""The network of an export, by OpenVINO. No TensorFlow here, nor in anything that this imports."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from trainer.errors import ConfigError, ExportError
from trainer.infer.export_folder import files_of, read_about
from trainer.infer.network import Recipe
from trainer.infer.openvino import openvino


class ExportedNetwork:
    """An exported network, compiled for one shape of batches, and again when another one comes.

    Args:
      folder: see `export_folder.py`.
      threads: that compute, all of them on one batch.
    Raises:
      ExportError: the folder is not an export that can be run, or is damaged.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        about = read_about(folder)
        if about["network"] is None:
            raise ExportError(
                f"a {about['kind']} is for other programs: `widefield predict` cannot run it",
                where=str(folder),
                fix="give the run's directory, or an export of it with --format openvino",
            )
        files = files_of(folder)
        if files != about["files"]:
            raise ExportError(
                "is damaged: its files are not those that were written",
                where=str(folder),
                fix="copy it again from its source, or make it again with widefield export RUN_DIR",
            )
        # not the hash of the run's weights: a map begun in one precision must not go on in another
        own_hash = hashlib.sha256(json.dumps(files).encode()).hexdigest()
        self.recipe = replace(Recipe.from_json(about["recipe"]), network=own_hash)
        self._tile_multiple: int = about["tile_multiple"]
        self._core = openvino.Core()
        self._model = self._core.read_model(folder / about["network"])
        self._settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            # ranks that nothing bound would all pin their threads to the same cores
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": arithmetic(about["narrow"], self._core),
        }
        self._shape: tuple[int, ...] = ()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        if images.shape != self._shape:
            self._compile(images.shape)
        return self._compiled(images)[0]

    def _compile(self, shape: tuple[int, ...]) -> None:
        multiple = self._tile_multiple
        if shape[1] % multiple or shape[2] % multiple:
            raise ConfigError(
                f"the network takes tiles of a multiple of {multiple} px, not of {shape[1]}",
                where="--tile",
                fix=f"--tile {-(-shape[1] // multiple) * multiple}",
            )
        self._model.reshape(list(shape))
        self._compiled = self._core.compile_model(self._model, "CPU", self._settings)
        self._shape = shape


def arithmetic(narrow: bool, core: openvino.Core) -> str:
    """What a network computes in where it is not quantised: bf16 if it may and the processor has it, else f32.

    OpenVINO's own choice would be bf16 on every processor that has it, for float32 too.
    """
    has_bfloat16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "bf16" if narrow and has_bfloat16 else "f32"
