"""DeepLabV3+ (Chen et al. 2018, arXiv 1802.02611): atrous spatial pyramid pooling and a decoder with the 1/4 map.

Shapes: B patches, H x W pixels (unknown when built, so the same weights serve any patch whose sides are multiples of
16), h x w pixels of the deepest map, C channels.
"""

from __future__ import annotations

from collections.abc import Callable

from trainer.config.schema import ModelConfig
from trainer.models.backbones import build_backbone
from trainer.models.keras import keras, tf
from trainer.models.noise import NoiseSource, with_noise
from trainer.models.norms import AllReduce, decoder_norm
from trainer.models.pixels import PixelScaling, pixel_mode

_RATES = {16: (6, 12, 18), 8: (12, 24, 36)}  # by output stride; arXiv 1706.05587, section 4.1
_LOW_LEVEL_CHANNELS = 48  # arXiv 1802.02611, table 1
NewNorm = Callable[[str], keras.layers.Layer]


def build_model(
    config: ModelConfig, num_classes: int, *, all_reduce: AllReduce | None = None, read_weights: bool = True
) -> keras.Model:
    """The network: images [B, H, W, 3] uint8 or float in 0..255 -> logits [B, H, W, num_classes] float32.

    Pixel scaling is inside. Keras' global precision policy decides the type of the arithmetic. Weights are drawn from
    Keras' global seed (`keras.utils.set_random_seed`), the masks of its random layers from `noise_seed(model)`.

    Args:
      all_reduce: sum over ranks for `norm: sync_batch`; None when there is one rank.
      read_weights: False where a checkpoint will fill the network: same network, nothing read or downloaded.
    Raises:
      ModelError: see `build_backbone`.
    """

    def new_norm(name: str) -> keras.layers.Layer:
        return decoder_norm(config.norm, f"{name}_norm", all_reduce)

    image_BHWC = keras.Input((None, None, 3), dtype="float32", name="image")  # Keras casts uint8 on the way in
    scaled_BHWC = PixelScaling(pixel_mode(config.backbone, config.weights is not None), name="pixels")(image_BHWC)
    noise = NoiseSource()
    backbone = build_backbone(config, all_reduce=all_reduce, read_weights=read_weights, noise=noise)
    low_level, deepest = backbone(scaled_BHWC)
    context = with_noise(_pyramid(deepest, config, new_norm), config.dropout, "value", noise, "aspp_dropout")
    decoded = _decoder(context, low_level, config.decoder_channels, new_norm)
    decoded = with_noise(decoded, config.decoder_dropout, "channel", noise, "decoder_dropout")
    logits = Classifier(num_classes, 1, name="classifier")(decoded)
    logits_BHWC = ResizeLike(dtype="float32", name="logits")([logits, image_BHWC])
    return keras.Model(image_BHWC, logits_BHWC, name=f"deeplabv3plus_{config.backbone}")


def _pyramid(deepest_BhwC: tf.Tensor, config: ModelConfig, new_norm: NewNorm) -> tf.Tensor:
    """Atrous spatial pyramid pooling: [B, h, w, C] -> [B, h, w, aspp_channels]."""
    channels = config.aspp_channels
    branches = [_conv(deepest_BhwC, channels, "aspp_1x1", new_norm)]
    for rate in _RATES[config.output_stride]:
        branches.append(_separable(deepest_BhwC, channels, rate, f"aspp_rate{rate}", new_norm))
    branches.append(_image_level(deepest_BhwC, channels))
    joined = keras.layers.Concatenate(name="aspp_concat")(branches)
    return _conv(joined, channels, "aspp_project", new_norm)


def _image_level(deepest_BhwC: tf.Tensor, channels: int) -> tf.Tensor:
    """The patch's mean feature, at every pixel: [B, h, w, C] -> [B, h, w, channels].

    A bias and no norm, whatever the policy. After global pooling a batch norm at batch 1 sees one value per channel:
    it subtracts that value from itself, and the branch says the same for every patch. At batch 2 the branch would
    say only which of the two patches has more. A group norm would take out the patch's overall level likewise.
    """
    mean = keras.layers.GlobalAveragePooling2D(keepdims=True, name="aspp_image_mean")(deepest_BhwC)
    mean = keras.layers.Conv2D(channels, 1, activation="relu", name="aspp_image_conv")(mean)
    return ResizeLike(name="aspp_image")([mean, deepest_BhwC])


def _decoder(context: tf.Tensor, low_level: tf.Tensor, channels: int, new_norm: NewNorm) -> tf.Tensor:
    """Context at 1/output_stride and detail at 1/4 -> [B, H/4, W/4, channels]."""
    detail = _conv(low_level, _LOW_LEVEL_CHANNELS, "decoder_detail", new_norm)
    context = ResizeLike(name="decoder_context")([context, detail])
    x = keras.layers.Concatenate(name="decoder_concat")([context, detail])
    x = _separable(x, channels, 1, "decoder_1", new_norm)
    return _separable(x, channels, 1, "decoder_2", new_norm)


def _conv(x: tf.Tensor, channels: int, name: str, new_norm: NewNorm) -> tf.Tensor:
    """1x1 convolution, norm, ReLU."""
    x = keras.layers.Conv2D(channels, 1, use_bias=False, name=name)(x)
    return keras.layers.ReLU(name=f"{name}_relu")(new_norm(name)(x))


def _separable(x: tf.Tensor, channels: int, rate: int, name: str, new_norm: NewNorm) -> tf.Tensor:
    """3x3 depthwise and 1x1 convolution, norm and ReLU after each.

    Keras' dilated depthwise convolution goes through space-to-batch and is still the fast way on a CPU: forward and
    backward of [4, 16, 16, 1280] at rate 6 take 6 ms, nine shifted products 70 ms (2 threads, float32).
    """
    depthwise = f"{name}_depthwise"
    x = Atrous(3, padding="same", dilation_rate=rate, use_bias=False, name=depthwise)(x)
    x = keras.layers.ReLU(name=f"{depthwise}_relu")(new_norm(depthwise)(x))
    return _conv(x, channels, name, new_norm)


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


class Classifier(keras.layers.Conv2D):
    """A convolution with a float32 result under every policy: the loss and small class differences need the digits.

    Its gradients are computed in the type of its input, as those of all other layers. In float32 they would need two
    float32 copies of the decoder's last map, 0.5 GB at 2048 px.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **{**kwargs, "dtype": "float32", "autocast": False})

    def convolution_op(self, inputs, kernel):
        @tf.custom_gradient
        def convolve(x, kernel):
            def gradient(dy):
                narrow = tf.cast(kernel, x.dtype)
                with tf.GradientTape() as tape:
                    tape.watch([x, narrow])
                    y = tf.nn.conv2d(x, narrow, self.strides, self.padding.upper())
                dx, dkernel = tape.gradient(y, [x, narrow], tf.cast(dy, x.dtype))
                return dx, tf.cast(dkernel, kernel.dtype)

            return tf.nn.conv2d(tf.cast(x, kernel.dtype), kernel, self.strides, self.padding.upper()), gradient

        return convolve(inputs, tf.convert_to_tensor(kernel))


class ResizeLike(keras.layers.Layer):
    """Bilinear resize of the first map to the rows and columns of the second, in the layer's compute type."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**{**kwargs, "autocast": False})  # no cast copy of a map that only lends its size

    def call(self, inputs):
        x, like = inputs
        resized = tf.image.resize(x, tf.shape(like)[1:3], method="bilinear")
        return tf.cast(resized, self.compute_dtype)
