"""Layers of a converted network get their names back: on the way to OpenVINO most of them lose theirs."""

from __future__ import annotations

import numpy as np

from trainer.infer.openvino import openvino
from trainer.models.graph import calls_of
from trainer.models.keras import keras

CONVOLUTIONS = ("Convolution", "GroupConvolution")


def name_layers(converted: openvino.Model, model: keras.Model) -> None:
    """Name convolutions after the layers that they were, which are found by their weights.

    A norm that was folded into a convolution has multiplied all weights of an output channel by one number, so each
    channel's weights are compared by their direction. What is not found keeps its number for a name.
    """
    directions = {
        call.layer.name: _directions(_rows(call.layer)) for call in calls_of(model) if _has_kernel(call.layer)
    }
    for op in converted.get_ops():
        weights = op.input_value(1).get_node() if op.get_type_name() in CONVOLUTIONS else None
        if weights is None or weights.get_type_name() != "Constant":
            continue
        # [out, in, h, w], of a depthwise one [channels, 1, 1, h, w]
        wanted = _directions(weights.data.reshape(weights.data.shape[0], -1))
        for name, rows in directions.items():
            if rows.shape == wanted.shape and np.allclose(np.abs(rows), np.abs(wanted), atol=1e-4):
                op.set_friendly_name(name)


def _has_kernel(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, (keras.layers.Conv2D, keras.layers.DepthwiseConv2D))


def _rows(layer: keras.layers.Layer) -> np.ndarray:
    """[output channels, weights of each], in OpenVINO's order."""
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        kernel = layer.depthwise_kernel.numpy().transpose(2, 3, 0, 1)  # from [h, w, channels, 1]
    else:
        kernel = layer.kernel.numpy().transpose(3, 2, 0, 1)  # from [h, w, in, out]
    return kernel.reshape(kernel.shape[0], -1)


def _directions(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
