"""An inference function as files of other programs: OpenVINO's IR, ONNX, TensorFlow's SavedModel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.infer.openvino import openvino
from trainer.models.keras import keras, tf
from trainer.quiet import quiet_stderr

Function = Any
"""What `graph.inference_function` gives."""
_OPSET = 18  # of ONNX; the newest that tf2onnx 1.17 writes


def to_openvino(function: Function) -> openvino.Model:
    """The function as an OpenVINO model: batch norms folded into convolutions, any batch and tile size."""
    model = openvino.convert_model(function)
    model.inputs[0].set_names({"image"})
    model.outputs[0].set_names({"probabilities"})
    return model


def write_openvino(model: openvino.Model, folder: Path, *, half: bool) -> str:
    """network.xml and network.bin; returns the one to read.

    Args:
      half: weights in float16.
    """
    openvino.save_model(model, folder / "network.xml", compress_to_fp16=half)
    return "network.xml"


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
