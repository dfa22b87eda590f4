"""An inference function as files of other programs: OpenVINO's IR, ONNX, TensorFlow's SavedModel."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from trainer.export.names import name_layers
from trainer.export.rewrite import resize_channels_first, square_means_by_norms
from trainer.infer.openvino import openvino
from trainer.models.keras import keras, tf
from trainer.quiet import quiet_stderr

Function = Any
"""What `graph.inference_function` gives."""
_OPSET = 18  # of ONNX; the newest that tf2onnx 1.17 writes


def to_openvino(function: Function, model: keras.Model) -> openvino.Model:
    """The function as an OpenVINO model: batch norms folded into convolutions, layers by their names in `model`."""
    converted = openvino.convert_model(function)
    # every custom gradient has left results of its own, which would be computed and kept as well
    result = next(o for o in converted.outputs if "probabilities:0" in o.get_names())
    converted = openvino.Model([result.get_node()], converted.get_parameters())
    resize_channels_first(converted)
    square_means_by_norms(converted)
    converted.inputs[0].set_names({"image"})
    converted.outputs[0].set_names({"probabilities"})
    name_layers(converted, model)
    return converted


def write_openvino(model: openvino.Model, folder: Path, *, half: bool) -> str:
    """network.xml and network.bin; returns the one to read.

    Args:
      half: weights in float16.
    """
    path = folder / "network.xml"
    openvino.save_model(model, path, compress_to_fp16=half)
    path.write_text(re.sub(r">\s+<", "><", path.read_text()))  # the white space is a fifth of it
    return path.name


def write_onnx(function: Function, folder: Path) -> str:
    """network.onnx, one file."""
    with quiet_stderr():  # it greets, and warns of versions
        import tf2onnx

        tf2onnx.convert.from_function(
            function, function.input_signature, opset=_OPSET, output_path=str(folder / "network.onnx")
        )
    return "network.onnx"


def write_savedmodel(model: keras.Model, folder: Path) -> None:
    """A SavedModel with the signature `serving_default`: image -> probabilities, as TensorFlow itself runs it fast."""

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, "image")], autograph=False)
    def serve(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probabilities": tf.nn.softmax(model(image, training=False))}

    module = tf.Module()
    module.weights = model.variables  # not the model: it would save all its layers' functions, training ones too
    tf.saved_model.save(module, str(folder / "network.savedmodel"), signatures=serve)
