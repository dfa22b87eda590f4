"""The layers of a functional Keras model as a list of calls, for whoever runs the network in another way.

The model itself is left alone, so checkpoints, prediction and the order of variables know nothing of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trainer.models.keras import keras, tf
from trainer.models.layers import Enlarge, MeanOfParts, ResizeLike

Pair = tuple[int, int]


@dataclass(frozen=True)
class Call:
    """One layer of a graph whose tensors are named by numbers."""

    layer: keras.layers.Layer
    inputs: Any
    """A number, or the list of numbers that the layer takes."""
    output: int
    zeros: tuple[Pair, Pair] = ((0, 0), (0, 0))
    """Rows and columns of zeros around the input, where a padding layer was joined with the layer it is for."""


Apply = Callable[[Call, Any], tf.Tensor]
"""(call, the tensor or tensors it takes) -> its output."""


def call_layer(call: Call, inputs: Any, training: bool = True) -> tf.Tensor:
    """The layer as it is."""
    mode = {"training": training} if "training" in inspect.signature(call.layer.call).parameters else {}
    return call.layer(inputs, **mode)


def forward_of(
    model: keras.Model, apply: Apply, change: Callable[[list[Call]], list[Call]] = list
) -> Callable[[tf.Tensor], tf.Tensor]:
    """The network with its layers called by `apply`: images [B, H, W, 3] -> logits [B, H, W, num_classes].

    Args:
      change: another list of calls with the same result.
    """
    calls = change(calls_of(model))

    @tf.autograph.experimental.do_not_convert  # nothing in it depends on a tensor's value
    def forward(images: tf.Tensor) -> tf.Tensor:
        values = {id(model.input): tf.cast(images, model.input.dtype)}
        for call in calls:
            values[call.output] = apply(call, tf.nest.map_structure(values.__getitem__, call.inputs))
        return values[calls[-1].output]

    return forward


def calls_of(model: keras.Model) -> list[Call]:
    """The layers that the output needs, depth first.

    Args:
      model: functional, one input (whose number is its `id`), one output, each layer called once; models inside it
        are walked into.
    """
    calls: dict[int, Call] = {}
    same: dict[int, int] = {}

    def name(tensor: Any) -> int:
        return same.get(id(tensor), id(tensor))

    def walk(network: keras.Model) -> None:
        for layer in network.layers:
            if isinstance(layer, keras.layers.InputLayer):
                continue
            inputs, outputs = layer.get_input_at(0), layer.get_output_at(0)
            if isinstance(layer, keras.Model):
                same.update(zip(map(id, layer.inputs), map(name, tf.nest.flatten(inputs)), strict=True))
                walk(layer)
                same.update(zip(map(id, tf.nest.flatten(outputs)), map(name, layer.outputs), strict=True))
            else:
                calls[id(outputs)] = Call(layer, tf.nest.map_structure(name, inputs), id(outputs))

    walk(model)
    return _depth_first(calls, name(model.output))


def _depth_first(calls: dict[int, Call], output: int) -> list[Call]:
    """In this order few tensors are alive at a time: a branch is done before the next one begins."""
    ordered: dict[int, Call] = {}
    stack = [output]
    while stack:
        call = calls[stack[-1]]
        waiting = [i for i in tf.nest.flatten(call.inputs) if i in calls and i not in ordered]
        if waiting:
            stack.append(waiting[0])
        else:
            ordered[call.output] = call
            stack.pop()
    return list(ordered.values())


def strides_of(calls: Sequence[Call], image: int) -> dict[int, int]:
    """Pixels of the image per pixel of each map, along a side; 0 where a patch has one value, or a few.

    Args:
      image: the number of the calls' input.
    """
    strides = {image: 1}
    for call in calls:
        layer, before = call.layer, [strides[i] for i in tf.nest.flatten(call.inputs)]
        if isinstance(layer, (keras.layers.GlobalAveragePooling2D, MeanOfParts)):
            strides[call.output] = 0
        elif isinstance(layer, ResizeLike):
            strides[call.output] = before[1]
        elif isinstance(layer, Enlarge):
            strides[call.output] = before[0] // layer.factor
        else:
            strides[call.output] = max(before) * getattr(layer, "strides", (1, 1))[0]
    return strides


def sizes_of(calls: Sequence[Call], image: int) -> dict[int, float]:
    """Bytes per pixel of the image of what each call makes; 0 for a few values per patch. By `Call.output`."""
    strides = strides_of(calls, image)
    width = {call.output: call.layer.output_shape[-1] * tf.as_dtype(call.layer.compute_dtype).size for call in calls}
    return {i: width[i] / strides[i] ** 2 if strides[i] else 0.0 for i in width}


def padding_joined(calls: list[Call]) -> list[Call]:
    """The same graph without `ZeroPadding2D` layers: the calls that use what they made have it in `zeros`."""
    joined: dict[int, Call] = {}
    for call in calls:
        before = None if isinstance(call.inputs, list) else joined.get(call.inputs)
        if before and isinstance(before.layer, keras.layers.ZeroPadding2D):
            call = replace(call, inputs=before.inputs, zeros=before.zeros)
        if isinstance(call.layer, keras.layers.ZeroPadding2D):
            sides = zip(call.zeros, call.layer.padding, strict=True)
            rows, columns = ((a + c, b + d) for (a, b), (c, d) in sides)
            call = replace(call, zeros=(rows, columns))
        joined[call.output] = call
    return [c for c in joined.values() if not isinstance(c.layer, keras.layers.ZeroPadding2D)]
