"""Pixel normalisation as the first layer of the network, so that an exported model carries its own."""

from __future__ import annotations

from trainer.models.keras import keras, tf

# mode -> (subtract, divide by), on RGB in 0..255. `tf`, `torch` and `caffe` are keras_applications' names and
# constants (imagenet_utils.preprocess_input); `raw` leaves the work to the backbone's own first norm, `bn_data`.
_SCALES: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "raw": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "tf": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    "torch": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "caffe": ((123.68, 116.779, 103.939), (1.0, 1.0, 1.0)),
}
# What the published weights of each family were trained with: the `preprocess_input` that segmentation-models gives
# for it (a test compares them). The first matching prefix counts.
_TRAINED_WITH = (
    (("resnet", "resnext", "seresnet18", "seresnet34"), "raw"),
    (("seresnet", "seresnext", "senet", "densenet", "efficientnet"), "torch"),
    (("mobilenet", "inception", "xception"), "tf"),
    (("vgg",), "caffe"),
)


def pixel_mode(backbone: str, has_weights: bool) -> str:
    """The scaling a backbone wants: what its weights were trained with, else `tf` (to -1..1)."""
    if not has_weights:
        return "tf"
    return next(mode for prefixes, mode in _TRAINED_WITH if backbone.startswith(prefixes))


class PixelScaling(keras.layers.Layer):
    """[B, H, W, 3] RGB in 0..255 to what the backbone expects, float32 (the next layer casts). It has no weights."""

    def __init__(self, mode: str, **kwargs) -> None:
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.mode = mode

    def call(self, image_BHWC):
        subtract, divide = _SCALES[self.mode]
        scaled = (image_BHWC - tf.constant(subtract)) / tf.constant(divide)
        return scaled[..., ::-1] if self.mode == "caffe" else scaled  # caffe's networks read BGR

    def get_config(self) -> dict:
        return {**super().get_config(), "mode": self.mode}
