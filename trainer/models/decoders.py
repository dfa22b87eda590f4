"""Networks that go back from the backbone's deepest map, at 1/32, by way of its maps at 1/16, 1/8, 1/4 and 1/2.

The decoders are those of segmentation-models, layer for layer (a test compares them), but for what the classifier
is put on: see `build_model`.
"""

from __future__ import annotations

from trainer.models.keras import keras, tf
from trainer.models.layers import Enlarge
from trainer.models.parts import Parts

_STRIDES = (16, 8, 4, 2)
_CENTRE_CHANNELS = 512
_LAST_LINKNET_CHANNELS = 16


def unet(image_BHWC: tf.Tensor, parts: Parts) -> tf.Tensor:
    """U-Net (Ronneberger et al. 2015, arXiv 1505.04597) on a backbone: -> [B, H, W, decoder_channels / 16]."""
    x, skips = _encoded(image_BHWC, parts)
    x = _centre(x, parts)
    for stage, skip in enumerate([*skips, None]):
        name, channels = f"decoder_stage{stage}", -(-parts.config.decoder_channels // 2**stage)
        x = Enlarge(2, name=f"{name}_up")(x)
        if skip is not None:
            x = keras.layers.Concatenate(name=f"{name}_concat")([x, skip])
        x = parts.conv(x, channels, 3, f"{name}a")
        x = parts.conv(x, channels, 3, f"{name}b")
    return x


def linknet(image_BHWC: tf.Tensor, parts: Parts) -> tf.Tensor:
    """LinkNet (Chaurasia and Culurciello 2017, arXiv 1707.03718): maps are added, not joined: -> [B, H, W, 16]."""
    x, skips = _encoded(image_BHWC, parts)
    x = _centre(x, parts)
    for stage, skip in enumerate([*skips, None]):
        name, narrow = f"decoder_stage{stage}", x.shape[-1] // 4
        x = parts.conv(x, narrow, 1, f"{name}a")
        x = Enlarge(2, name=f"{name}_up")(x)
        x = parts.conv(x, narrow, 3, f"{name}b")
        x = parts.conv(x, _LAST_LINKNET_CHANNELS if skip is None else skip.shape[-1], 1, f"{name}c")
        if skip is not None:
            x = keras.layers.Add(name=f"{name}_add")([x, skip])
    return x


def fpn(image_BHWC: tf.Tensor, parts: Parts) -> tf.Tensor:
    """Feature pyramid network (Kirillov et al. 2019, arXiv 1901.02446): -> [B, H/2, W/2, decoder_channels / 2].

    Levels are added, as in the paper (in segmentation-models an option). Each sum is enlarged for the next level,
    which is the same as to enlarge every level to 1/2 first.
    """
    x, skips = _encoded(image_BHWC, parts)
    channels = parts.config.decoder_channels
    x = keras.layers.Conv2D(channels, 1, name="pyramid_deepest")(x)
    total = None
    for stride, skip in zip(_STRIDES, skips, strict=True):
        name, narrow = f"pyramid_{stride}", -(-channels // 2)
        x = Enlarge(2, name=f"{name}_up")(x)
        x = keras.layers.Add(name=f"{name}_add")([x, keras.layers.Conv2D(channels, 1, name=name)(skip)])
        level = parts.conv(x, narrow, 3, f"{name}a")
        level = parts.conv(level, narrow, 3, f"{name}b")
        if total is not None:
            level = keras.layers.Add(name=f"{name}_sum")([Enlarge(2, name=f"{name}_coarser")(total), level])
        total = level
    return parts.conv(total, narrow, 3, "pyramid_project")


def _encoded(image_BHWC: tf.Tensor, parts: Parts) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """The deepest map, and the others from the coarsest on."""
    *skips, deepest = parts.maps(image_BHWC, _STRIDES)
    return parts.dropout(deepest, "encoder_dropout"), skips


def _centre(deepest: tf.Tensor, parts: Parts) -> tf.Tensor:
    """A vgg ends in a pooling, after which nothing has been computed at 1/32."""
    if not parts.config.backbone.startswith("vgg"):
        return deepest
    return parts.conv(parts.conv(deepest, _CENTRE_CHANNELS, 3, "centre_a"), _CENTRE_CHANNELS, 3, "centre_b")
