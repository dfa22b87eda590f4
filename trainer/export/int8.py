"""INT8 by NNCF: calibrated on training patches, and kept to a bound on the loss of Dice on validation patches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from trainer.batches.loader import Patch
from trainer.export.patches import Patches
from trainer.export.rewrite import guard_convolutions
from trainer.export.score import accuracy_of, confusions, dice_of
from trainer.infer.openvino import openvino

import nncf  # isort: skip  # after OpenVINO, see trainer/infer/openvino.py

_RANKING_PATCHES = 32
"""Validation patches that layers are ranked on, by what leaving each in float32 brings: one pass over them a layer."""
_WEIGHTED = ("Convolution", "GroupConvolution", "MatMul")


@dataclass(frozen=True)
class Quantised:
    """A network in INT8.

    Args:
      kept: names of layers that are in float32 because Dice fell too far without.
      num_layers: that could be quantised.
      dice_float32: on the validation patches, by OpenVINO.
    """

    model: openvino.Model
    kept: tuple[str, ...]
    num_layers: int
    dice_float32: float


def quantise(
    model: openvino.Model,
    calibration: Patches,
    validation: Patches,
    num_classes: int,
    max_drop: float,
    say: Callable[[str], None],
) -> Quantised:
    """Quantise what can be quantised, then take layers back, the worst first, until Dice is within `max_drop`."""
    nncf.set_log_level(logging.ERROR)
    guard_convolutions(model)
    dice: list[float] = []

    def score(compiled: Any, patches: Iterable[Patch]) -> tuple[float, list[float]]:
        per_patch = confusions(lambda image: compiled(image)[0], patches, num_classes)
        if len(per_patch) == len(validation):
            dice.append(dice_of(per_patch))
            say(
                f"Dice in float32: {dice[0]:.4f}"
                if len(dice) == 1
                else f"Dice in INT8, try {len(dice) - 1}: {dice[-1]:.4f}"
            )
        return dice_of(per_patch), [accuracy_of(c) for c in per_patch]

    with TemporaryDirectory() as folder:
        say(f"calibrating with {len(calibration)} patches, scoring on {len(validation)}")
        quantised = nncf.quantize_with_accuracy_control(
            model,
            nncf.Dataset(calibration, _image),
            nncf.Dataset(validation, _image),
            score,
            max_drop=max_drop,
            target_device=nncf.TargetDevice.CPU,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(calibration),
            ignored_scope=nncf.IgnoredScope(names=_arithmetic(model), validate=False),
            advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
                ranking_subset_size=min(_RANKING_PATCHES, len(validation)),
                num_ranking_workers=1,
                intermediate_model_dir=folder,
            ),
        )
        whole = openvino.Core().read_model(Path(folder) / "intermediate_model.xml")
        could_be = _quantised_layers(whole)
    kept = tuple(sorted(could_be - _quantised_layers(quantised)))
    return Quantised(quantised, kept, len(could_be), dice[0])


def _arithmetic(model: openvino.Model) -> list[str]:
    """Names of what is left in float though NNCF would round it: group norms, whose statistics need the digits.

    A sum that does not follow on a product joins two branches, and is rounded as its branches are.
    """

    def is_arithmetic(op: openvino.Node) -> bool:
        if op.get_type_name() == "Add":
            return any(source.get_node().get_type_name() == "Multiply" for source in op.input_values())
        return op.get_type_name() in ("Multiply", "Divide", "Subtract", "Power", "ReduceMean", "ReduceL2")

    return [op.get_friendly_name() for op in model.get_ops() if is_arithmetic(op)]


def _image(patch: Patch) -> np.ndarray:
    return patch[0][np.newaxis]


def _quantised_layers(model: openvino.Model) -> set[str]:
    """Names of the layers with weights whose weights are INT8, or are rounded to what INT8 can hold."""
    layers = (op for op in model.get_ops() if op.get_type_name() in _WEIGHTED)
    return {op.get_friendly_name() for op in layers if _is_quantised(op.input_value(1).get_node())}


def _is_quantised(weights: openvino.Node) -> bool:
    """Follow what a constant goes through on its way to a layer."""
    while weights.get_type_name() in ("Convert", "Subtract", "Multiply", "Reshape"):
        weights = weights.input_value(0).get_node()
    return weights.get_type_name() == "FakeQuantize" or weights.get_element_type() in (
        openvino.Type.i8,
        openvino.Type.u8,
    )
