"""What OpenVINO's conversion leaves to be done to a network, for speed and for INT8. Results stay the same."""

from __future__ import annotations

import numpy as np

from trainer.infer.openvino import openvino

ops = openvino.opset13
_TO_NCHW, _TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)


def resize_channels_first(model: openvino.Model) -> None:
    """Resizing, channels first as all else is: left as TensorFlow does it, NNCF quantises rows instead of channels."""
    for resize in _nodes(model, "Interpolate"):
        image, sizes, axes = resize.input_values()
        if axes.get_node().data.tolist() != [1, 2]:
            continue
        image_NCHW = _transposed(image, _TO_NCHW)
        resized_NCHW = ops.interpolate(image_NCHW, sizes, **resize.get_attributes(), axes=_constant([2, 3]))
        resized_NCHW.set_friendly_name(resize.get_friendly_name())
        _replace(resize, resized_NCHW)
    model.validate_nodes_and_infer_types()


def _replace(node_NHWC: openvino.Node, node_NCHW: openvino.Node) -> None:
    """Have those who read a node read another one, which is the same channels first."""
    for target in list(node_NHWC.output(0).get_target_inputs()):
        reader = target.get_node()
        if _is_transpose(reader, _TO_NCHW):
            reader.output(0).replace(node_NCHW.output(0))
        else:
            target.replace_source_output(_transposed(node_NCHW.output(0), _TO_NHWC))


def _transposed(output: openvino.Output, order: tuple[int, ...]) -> openvino.Output:
    """With its axes in another order, of which two that undo each other are none."""
    node = output.get_node()
    if _is_transpose(node, _TO_NHWC if order == _TO_NCHW else _TO_NCHW):
        return node.input_value(0)
    return ops.transpose(output, _constant(order)).output(0)


def _is_transpose(node: openvino.Node, order: tuple[int, ...]) -> bool:
    return node.get_type_name() == "Transpose" and tuple(node.input_value(1).get_node().data.tolist()) == order


def square_means_by_norms(model: openvino.Model) -> None:
    """Means of squares from the Euclidean norm: there is no map of squares then, which is 15% of a norm."""
    for mean in _nodes(model, "ReduceMean"):
        square, axes = mean.input_values()
        if not _is_power(square.get_node(), 2.0):
            continue
        x = square.get_node().input_value(0)
        norm = ops.reduce_l2(x, axes, keep_dims=True)
        sizes = ops.gather(ops.shape_of(x), axes, _constant(0))
        count = ops.convert(ops.reduce_prod(sizes, _constant(0), keep_dims=True), "f32")
        mean.output(0).replace(ops.divide(ops.multiply(norm, norm), count).output(0))


def _is_power(node: openvino.Node, exponent: float) -> bool:
    if node.get_type_name() != "Power" or node.input_value(1).get_node().get_type_name() != "Constant":
        return False
    return bool((node.input_value(1).get_node().data == exponent).all())


def guard_convolutions(model: openvino.Model) -> None:
    """A power that changes nothing behind each convolution that several read.

    OpenVINO 2026.4 takes the scale of an INT8 convolution into it, and with some readers (means, gathering) behind them
    as well. It does not move it across a power.
    """
    for convolution in (*_nodes(model, "Convolution"), *_nodes(model, "GroupConvolution")):
        readers = convolution.output(0).get_target_inputs()
        if len(readers) > 1:
            same = ops.power(convolution, ops.constant(np.float32(1)))
            for reader in readers:
                reader.replace_source_output(same.output(0))


def _nodes(model: openvino.Model, kind: str) -> list[openvino.Node]:
    return [node for node in model.get_ordered_ops() if node.get_type_name() == kind]


def _constant(value: int | list[int] | tuple[int, ...]) -> openvino.Node:
    return ops.constant(np.array(value, np.int64))
