"""The network as it is exported: pixels in, probabilities out, in operations that inference engines run fast."""

from __future__ import annotations

from typing import Any

from trainer.models.graph import Call, call_layer, forward_of
from trainer.models.keras import keras, tf
from trainer.models.norms import GroupNorm


def inference_function(model: keras.Model) -> tf.types.experimental.GenericFunction:
    """image uint8 RGB [B, H, W, 3] -> probabilities float32 [B, H, W, C], for any B, H and W.

    Args:
      model: built in float32.
    """
    forward = forward_of(model, _apply)

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, "image")], autograph=False)
    def probabilities(image: tf.Tensor) -> tf.Tensor:
        logits = forward(image)
        if logits.shape[-1] == 2:  # the same, and less than half of a softmax's time
            return tf.sigmoid(logits - tf.gather(logits, [1, 0], axis=3), name="probabilities")
        return tf.nn.softmax(logits, name="probabilities")

    return probabilities


def _apply(call: Call, inputs: Any) -> tf.Tensor:
    if isinstance(call.layer, GroupNorm):
        return _group_norm(call.layer, inputs)
    if isinstance(call.layer, keras.layers.DepthwiseConv2D) and max(call.layer.dilation_rate) > 1:
        return _dilated(call.layer, inputs)
    return call_layer(call, inputs, training=False)


def _group_norm(layer: GroupNorm, x_NHWC: tf.Tensor) -> tf.Tensor:
    """`norms.group_norm` as two means and one pass of scale and shift, which the engine joins with the ReLU behind it.

    The square is a power: where the result of an INT8 convolution is multiplied by itself, OpenVINO 2026.4 takes its
    scale wrongly. All of it is indifferent to how x lies in memory. Normalising groups as such (MVN,
    GroupNormalization) wants one channel after the other, where convolutions want one pixel after the other: 1.3-1.5
    times the time, see docs/architecture.md.
    """
    groups, channels = layer.groups, x_NHWC.shape[-1]
    mean_N11C = tf.reduce_mean(x_NHWC, [1, 2], keepdims=True)
    square_N11C = tf.reduce_mean(tf.pow(x_NHWC, 2.0), [1, 2], keepdims=True)

    def of_groups(x_N11C: tf.Tensor) -> tf.Tensor:
        return tf.reshape(x_N11C, [-1, groups, channels // groups])

    mean_NG1 = tf.reduce_mean(of_groups(mean_N11C), 2, keepdims=True)
    square_NG1 = tf.reduce_mean(of_groups(square_N11C), 2, keepdims=True)
    variance_NG1 = tf.maximum(square_NG1 - tf.square(mean_NG1), 0.0)
    scale_NGc = of_groups(layer.gamma) * tf.math.rsqrt(variance_NG1 + layer.epsilon)
    shift_NGc = of_groups(layer.beta) - mean_NG1 * scale_NGc
    scale_N11C, shift_N11C = (tf.reshape(x, [-1, 1, 1, channels]) for x in (scale_NGc, shift_NGc))
    return x_NHWC * scale_N11C + shift_N11C


def _dilated(layer: keras.layers.DepthwiseConv2D, x_NHWC: tf.Tensor) -> tf.Tensor:
    """As one convolution: TensorFlow's way round, by space-to-batch, is its own."""
    return tf.raw_ops.DepthwiseConv2dNative(
        input=x_NHWC,
        filter=layer.depthwise_kernel,
        strides=[1, 1, 1, 1],
        padding="SAME",
        dilations=[1, *layer.dilation_rate, 1],
    )
