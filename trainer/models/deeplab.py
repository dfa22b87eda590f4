"""DeepLabV3+ (Chen et al. 2018, arXiv 1802.02611): atrous spatial pyramid pooling and a decoder with the 1/4 map.

Shapes: B patches, H x W pixels (unknown when built, so the same weights serve any patch whose sides are multiples of
16), h x w pixels of the deepest map, C channels.
"""

from __future__ import annotations

from trainer.models.keras import keras, tf
from trainer.models.layers import ResizeLike
from trainer.models.parts import Parts

_RATES = {16: (6, 12, 18), 8: (12, 24, 36)}  # by output stride; arXiv 1706.05587, section 4.1
_LOW_LEVEL_CHANNELS = 48  # arXiv 1802.02611, table 1


def deeplabv3plus(image_BHWC: tf.Tensor, parts: Parts) -> tf.Tensor:
    """-> [B, H/4, W/4, decoder_channels]."""
    low_level, deepest = parts.maps(image_BHWC, [4], parts.config.output_stride)
    context = parts.dropout(_pyramid(deepest, parts), "aspp_dropout")
    return _decoder(context, low_level, parts)


def _pyramid(deepest_BhwC: tf.Tensor, parts: Parts) -> tf.Tensor:
    """Atrous spatial pyramid pooling: [B, h, w, C] -> [B, h, w, aspp_channels]."""
    channels = parts.config.aspp_channels
    branches = [parts.conv(deepest_BhwC, channels, 1, "aspp_1x1")]
    for rate in _RATES[parts.config.output_stride]:
        branches.append(_separable(deepest_BhwC, channels, rate, f"aspp_rate{rate}", parts))
    branches.append(_image_level(deepest_BhwC, channels))
    joined = keras.layers.Concatenate(name="aspp_concat")(branches)
    return parts.conv(joined, channels, 1, "aspp_project")


def _image_level(deepest_BhwC: tf.Tensor, channels: int) -> tf.Tensor:
    """The patch's mean feature, at every pixel: [B, h, w, C] -> [B, h, w, channels].

    A bias and no norm, whatever the policy. After global pooling a batch norm at batch 1 sees one value per channel:
    it subtracts that value from itself, and the branch says the same for every patch. At batch 2 the branch would
    say only which of the two patches has more. A group norm would take out the patch's overall level likewise.
    """
    mean = keras.layers.GlobalAveragePooling2D(keepdims=True, name="aspp_image_mean")(deepest_BhwC)
    mean = keras.layers.Conv2D(channels, 1, activation="relu", name="aspp_image_conv")(mean)
    return ResizeLike(name="aspp_image")([mean, deepest_BhwC])


def _decoder(context: tf.Tensor, low_level: tf.Tensor, parts: Parts) -> tf.Tensor:
    """Context at 1/output_stride and detail at 1/4 -> [B, H/4, W/4, decoder_channels]."""
    channels = parts.config.decoder_channels
    detail = parts.conv(low_level, _LOW_LEVEL_CHANNELS, 1, "decoder_detail")
    context = ResizeLike(name="decoder_context")([context, detail])
    x = keras.layers.Concatenate(name="decoder_concat")([context, detail])
    x = _separable(x, channels, 1, "decoder_1", parts)
    return _separable(x, channels, 1, "decoder_2", parts)


def _separable(x: tf.Tensor, channels: int, rate: int, name: str, parts: Parts) -> tf.Tensor:
    """3x3 depthwise and 1x1 convolution, norm and ReLU after each.

    Keras' dilated depthwise convolution goes through space-to-batch and is still the fast way on a CPU: forward and
    backward of [4, 16, 16, 1280] at rate 6 take 6 ms, nine shifted products 70 ms (2 threads, float32).
    """
    depthwise = f"{name}_depthwise"
    x = Atrous(3, padding="same", dilation_rate=rate, use_bias=False, name=depthwise)(x)
    return parts.conv(parts.norm_relu(x, depthwise), channels, 1, name)


class Atrous(keras.layers.DepthwiseConv2D):
    """A 3x3 depthwise convolution that leaves out what padding multiplies by zero.

    On a map with no more rows and columns than the dilation rate, all taps but the middle one lie in the padding. What
    remains is a product per channel, the same numbers; space-to-batch would first enlarge 8 x 8 to 54 x 54 (rate 18).
    """

    def call(self, x):
        rows, columns = x.shape[1:3]
        if rows is None or columns is None or self.dilation_rate[0] < max(rows, columns):
            return super().call(x)
        return x * tf.convert_to_tensor(self.depthwise_kernel)[1, 1, :, 0]
