"""Arithmetic of a graph's convolutions."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from trainer.models.keras import tf

_FORWARD = {"Conv2D", "DepthwiseConv2dNative"}
_TO_INPUT = {"Conv2DBackpropInput", "DepthwiseConv2dNativeBackpropInput"}
_TO_KERNEL = {"Conv2DBackpropFilter", "DepthwiseConv2dNativeBackpropFilter"}


def convolution_flops(operations: Iterable[tf.Operation]) -> float:
    """Floating-point operations of all convolutions, forward and backward; a multiply-add is two."""
    return float(sum(2 * _multiply_adds(operation) for operation in operations))


def _multiply_adds(operation: tf.Operation) -> int:
    """Pixels and channels of the map that leaves (or whose gradient arrives) x what one of them sums."""
    if operation.type in _FORWARD:
        kernel, result = operation.inputs[1], operation.outputs[0]
    elif operation.type in _TO_INPUT:
        kernel, result = operation.inputs[1], operation.inputs[2]
    elif operation.type in _TO_KERNEL:
        kernel, result = operation.outputs[0], operation.inputs[2]
    else:
        return 0
    is_depthwise = operation.type.startswith("Depthwise")
    return result.shape.num_elements() * prod(kernel.shape[:2] if is_depthwise else kernel.shape[:3])
