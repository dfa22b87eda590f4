"""Deep Residual U-Net (Zhang et al. 2018, arXiv 1711.10684): a U-Net of pre-activation residual units.

It has an encoder of its own, to 1/8, which no published weights fit.
"""

from __future__ import annotations

from trainer.models.keras import keras, tf
from trainer.models.layers import Enlarge
from trainer.models.noise import with_noise
from trainer.models.parts import Parts
from trainer.models.pixels import PixelScaling

_WIDTHS = (1, 2, 4, 8)
"""Channels of the encoder's units, in quarters of `decoder_channels`: the paper's 64 to 512 of 256."""


def resunet(image_BHWC: tf.Tensor, parts: Parts) -> tf.Tensor:
    """-> [B, H, W, decoder_channels / 4].

    A last norm and ReLU follow the last sum, as in He et al. 2016 (arXiv 1603.05027, appendix): what units have added
    up is as large as there are units.
    """
    *skips, x = _encoder(parts)(PixelScaling("tf", name="pixels")(image_BHWC))
    x = parts.dropout(x, "encoder_dropout")
    for stage, skip in enumerate(reversed(skips)):
        name = f"decoder_stage{stage}"
        x = Enlarge(2, name=f"{name}_up")(x)
        x = keras.layers.Concatenate(name=f"{name}_concat")([x, skip])
        x = _unit(x, skip.shape[-1], name, parts)
    return parts.norm_relu(x, "decoder")


def _encoder(parts: Parts) -> keras.Model:
    """Scaled image -> maps at 1/1, 1/2, 1/4 and 1/8. A model of its own, as a backbone is: see `recompute.py`."""
    image = x = keras.Input((None, None, 3), name="scaled_image")
    maps = []
    for stage, width in enumerate(_WIDTHS):
        channels, stride = -(-parts.config.decoder_channels * width // 4), 1 if stage == 0 else 2
        drop_rate = parts.config.stochastic_depth * (stage + 1) / len(_WIDTHS)
        x = _unit(x, channels, f"encoder_stage{stage}", parts, stride=stride, on_image=stage == 0, drop_rate=drop_rate)
        maps.append(x)
    return keras.Model(image, maps, name="encoder")


def _unit(
    x: tf.Tensor,
    channels: int,
    name: str,
    parts: Parts,
    *,
    stride: int = 1,
    on_image: bool = False,
    drop_rate: float = 0.0,
) -> tf.Tensor:
    """Norm, ReLU and 3x3 convolution, twice, added to a projection of the input; the image is not normalised.

    The projection takes every `stride`-th pixel by a pooling of its own: TensorFlow 2.21 aborts in the gradient of a
    1x1 convolution with stride 2 on few channels.
    """
    y = x if on_image else parts.norm_relu(x, f"{name}a")
    y = keras.layers.Conv2D(channels, 3, stride, padding="same", use_bias=False, name=f"{name}a")(y)
    y = parts.norm_relu(y, f"{name}b")
    y = keras.layers.Conv2D(channels, 3, padding="same", name=f"{name}b")(y)
    y = with_noise(y, drop_rate, "patch", parts.noise, f"{name}_branch")
    if stride > 1:
        x = keras.layers.AveragePooling2D(1, stride, name=f"{name}_every")(x)
    shortcut = keras.layers.Conv2D(channels, 1, name=f"{name}_shortcut")(x)
    return keras.layers.Add(name=f"{name}_add")([y, shortcut])
