"""PSPNet (Zhao et al. 2017, arXiv 1612.01105): a pyramid of means over ever smaller parts of the patch.

As in the paper the backbone is dilated, where segmentation-models cuts it off at 1/8, and parts are equal in a patch
of any size, where it wants multiples of 48 px and one size per network.
"""

from __future__ import annotations

from trainer.models.keras import keras, tf
from trainer.models.layers import MeanOfParts, ResizeLike
from trainer.models.parts import Parts

_LEVELS = (1, 2, 3, 6)


def pspnet(image_BHWC: tf.Tensor, parts: Parts) -> tf.Tensor:
    """-> [B, H/output_stride, W/output_stride, decoder_channels].

    The levels have a bias and no norm, whatever the policy: see `deeplab._image_level`, which is the first of them.
    """
    channels = parts.config.decoder_channels
    (deepest,) = parts.maps(image_BHWC, (), parts.config.output_stride)
    levels = [deepest]
    for level in _LEVELS:
        name = f"pyramid_{level}"
        mean = MeanOfParts(level, name=f"{name}_mean")(deepest)
        mean = keras.layers.Conv2D(channels, 1, activation="relu", name=name)(mean)
        levels.append(ResizeLike(name=f"{name}_up")([mean, deepest]))
    x = keras.layers.Concatenate(name="pyramid_concat")(levels)
    return parts.dropout(parts.conv(x, channels, 3, "pyramid_project"), "pyramid_dropout")
