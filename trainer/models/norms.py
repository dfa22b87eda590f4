"""The four normalisation policies, and how a backbone's batch norms become one of them.

`group` needs no batch and is right at batch 1; `batch` uses the statistics of one rank's batch; `sync_batch` those of
all ranks; `frozen` those stored in the weights. Under a mixed precision policy the weights and the statistics stay
float32 and the result has the policy's compute type.
"""

from __future__ import annotations

from collections.abc import Callable

from trainer.models.keras import keras, tf
from trainer.models.layers import shape_of

AllReduce = Callable[[tf.Tensor], tf.Tensor]
"""Sum over all ranks, differentiable: [n] float32 -> [n] float32."""

MIN_GROUP_CHANNELS = 8
MAX_GROUPS = 32  # Wu & He 2018 (arXiv 1803.08494): 32 groups are their default and their best in table 3


def num_groups(channels: int) -> int:
    """The largest divisor of `channels` that is at most 32 and leaves at least 8 channels in a group, else 1."""
    most = max(1, min(MAX_GROUPS, channels // MIN_GROUP_CHANNELS))
    return next(g for g in range(most, 0, -1) if channels % g == 0)


class GroupNorm(keras.layers.Layer):
    """Group normalisation (Wu & He 2018) of [N, H, W, C], by sums per channel.

    Keras' GroupNormalization reshapes to groups and casts to float32 on the way: 1.4-1.5 times the step time of this
    one (DeepLabV3+, ResNet-50, 1024 px, 2 threads), and under bfloat16 more memory than float32 itself.
    """

    def __init__(self, epsilon: float = 1e-3, **kwargs) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, input_shape) -> None:
        channels = int(input_shape[-1])
        self.groups = num_groups(channels)
        # Without autocast off, Keras hands bfloat16 copies of the weights to call().
        kwargs = {"shape": [channels], "dtype": "float32", "experimental_autocast": False}
        self.gamma = self.add_weight(name="gamma", initializer="ones", **kwargs)
        self.beta = self.add_weight(name="beta", initializer="zeros", **kwargs)
        super().build(input_shape)

    def call(self, x_NHWC):
        return group_norm(
            x_NHWC, tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta), self.groups, self.epsilon
        )

    def get_config(self) -> dict:
        return {**super().get_config(), "epsilon": self.epsilon}


def group_norm(
    x_NHWC: tf.Tensor,
    gamma_C: tf.Tensor,
    beta_C: tf.Tensor,
    groups: int,
    epsilon: float,
    sum_over_parts: AllReduce | None = None,
) -> tf.Tensor:
    """Group normalisation with a hand-written gradient, without a float32 copy of a narrower map.

    Args:
      x_NHWC: float32, bfloat16 or float16; sums and statistics are float32.
      gamma_C, beta_C: float32 scale and shift.
      sum_over_parts: where x is a part of each patch, the sum over all its parts; the statistics are then those of the
        whole patch, the gradients of gamma and beta those of this part.
    Returns:
      [N, H, W, C] in the type of x: the float32 result, rounded once. The gradient of a narrower x is the sum of two
      terms that are each rounded.
    """

    def whole(*sums_NC: tf.Tensor) -> list[tf.Tensor]:
        return tf.unstack(sum_over_parts(tf.stack(sums_NC))) if sum_over_parts else list(sums_NC)

    @tf.custom_gradient
    def normalise(x, gamma, beta):
        _, rows, width, channels = shape_of(x)
        _, sum_NC, square_NC = _scale_and_sum(x, x, tf.ones_like(x[:, 0, 0, :], tf.float32))
        pixels_NC = tf.fill(tf.shape(sum_NC), tf.cast(rows * width, tf.float32))
        pixels_NC, sum_NC, square_NC = whole(pixels_NC, sum_NC, square_NC)
        count = pixels_NC[0, 0] * (channels // groups)
        mean_NC = _over_group(sum_NC, groups) / count
        variance_NC = tf.maximum(_over_group(square_NC, groups) / count - tf.square(mean_NC), 0.0)
        inverse_NC = tf.math.rsqrt(variance_NC + epsilon)

        def gradient(dy):
            # y = gamma * u + beta with u = (x - mean) * inverse, so with p = <gamma dy> and q = <gamma dy u> averaged
            # over a group:  dx = inverse * (gamma dy - p - q u), written as one scale of dy, one of x, one shift.
            scaled_dy, sum_dy_NC, sum_dy_x_NC = _scale_and_sum(dy, x, gamma * inverse_NC)
            sum_dy_u_NC = inverse_NC * (sum_dy_x_NC - mean_NC * sum_dy_NC)
            whole_dy_NC, whole_dy_u_NC = whole(sum_dy_NC, sum_dy_u_NC)
            p_NC = _over_group(gamma * whole_dy_NC, groups) / count
            q_NC = _over_group(gamma * whole_dy_u_NC, groups) / count
            scale_x_NC = -q_NC * tf.square(inverse_NC)
            dx = scaled_dy + _scale_and_shift(x, scale_x_NC, -inverse_NC * p_NC - scale_x_NC * mean_NC)
            return dx, tf.reduce_sum(sum_dy_u_NC, 0), tf.reduce_sum(sum_dy_NC, 0)

        scale_NC = gamma * inverse_NC
        return _scale_and_shift(x, scale_NC, beta - mean_NC * scale_NC), gradient

    return normalise(x_NHWC, gamma_C, beta_C)


def _over_group(x_NC: tf.Tensor, groups: int) -> tf.Tensor:
    """Each channel's value replaced by the sum over its group."""
    channels = x_NC.shape[-1]
    sums_NG1 = tf.reduce_sum(tf.reshape(x_NC, [-1, groups, channels // groups]), 2, keepdims=True)
    return tf.reshape(tf.tile(sums_NG1, [1, 1, channels // groups]), [-1, channels])


# With statistics that change nothing, TensorFlow's batch norm operations are its only ones that read and write bfloat16
# and compute in float32 between, in one pass: half the time of casts, products and sums, and no float32 copy. They
# know one scale per channel, not per patch, so they serve batches of one: the large patches, where it matters.


def _scale_and_shift(x_NHWC: tf.Tensor, scale_NC: tf.Tensor, shift_NC: tf.Tensor) -> tf.Tensor:
    """x * scale + shift in float32, rounded to the type of x."""
    if x_NHWC.shape[0] != 1:
        y = tf.cast(x_NHWC, tf.float32) * _per_pixel(scale_NC) + _per_pixel(shift_NC)
        return tf.cast(y, x_NHWC.dtype)
    channels = x_NHWC.shape[-1]
    y, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x_NHWC,
        scale=tf.reshape(scale_NC, [channels]),
        offset=tf.reshape(shift_NC, [channels]),
        mean=tf.zeros([channels]),
        variance=tf.ones([channels]),
        epsilon=0.0,
        is_training=False,
    )
    return y


def _scale_and_sum(a_NHWC: tf.Tensor, b_NHWC: tf.Tensor, scale_NC: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """a * scale in the type of a, and the float32 sums [N, C] of a and of a * b over the pixels.

    Sums go down the columns first: sums of a few thousand rows at most keep the digits that one sum over a million
    pixels loses (a variance at 512 x 512 px is off by 8e-5 without, by 1e-6 with).
    """
    if a_NHWC.shape[0] != 1:
        a, b = tf.cast(a_NHWC, tf.float32), tf.cast(b_NHWC, tf.float32)
        scaled = tf.cast(a * _per_pixel(scale_NC), a_NHWC.dtype)
        return scaled, *(tf.reduce_sum(tf.reduce_sum(x, 1), 1) for x in (a, a * b))
    _, rows, width, channels = shape_of(a_NHWC)
    columns = [1, rows, 1, width * channels]  # a row's pixels count as channels
    scaled, sums_of_products, sums, *_ = tf.raw_ops.FusedBatchNormGradV3(
        y_backprop=tf.reshape(a_NHWC, columns),
        x=tf.reshape(b_NHWC, columns),
        scale=tf.tile(scale_NC[0], [width]),
        reserve_space_1=tf.zeros([width * channels]),  # mean
        reserve_space_2=tf.ones([width * channels]),  # variance
        reserve_space_3=tf.zeros([0]),
        epsilon=0.0,
        is_training=False,
    )
    totals = (tf.reduce_sum(tf.reshape(x, [1, width, channels]), 1) for x in (sums, sums_of_products))
    return tf.reshape(scaled, [1, rows, width, channels]), *totals


def _per_pixel(x_NC: tf.Tensor) -> tf.Tensor:
    return x_NC[:, tf.newaxis, tf.newaxis, :]


class FrozenBatchNorm(keras.layers.BatchNormalization):
    """Batch norm that always uses its stored statistics and never updates them; gamma and beta still train."""

    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=False)


class SyncBatchNorm(keras.layers.BatchNormalization):
    """Batch norm whose training statistics are those of the batches of all ranks together.

    Args:
      all_reduce: sums a float32 vector over the ranks and is differentiable; None: this process is the only rank,
        and the layer equals BatchNormalization. It is not part of get_config: a restored layer is of one process.
    """

    def __init__(self, all_reduce: AllReduce | None = None, **kwargs) -> None:
        super().__init__(**kwargs)
        self.all_reduce = all_reduce

    def call(self, inputs, training=None, mask=None):
        if not training:
            return super().call(inputs, training=False)
        return batch_norm(self, inputs, self.all_reduce)


def batch_norm(
    layer: keras.layers.BatchNormalization, x_NHWC: tf.Tensor, all_reduce: AllReduce | None = None
) -> tf.Tensor:
    """What a batch norm does while training, with the statistics of all that `all_reduce` sums over."""
    wide = tf.cast(x_NHWC, tf.float32)
    count, mean_C, variance_C = _statistics(wide, all_reduce)
    _move(layer, layer.moving_mean, mean_C)
    # Keras' fused batch norm keeps the unbiased variance for inference; so must this one.
    _move(layer, layer.moving_variance, variance_C * count / tf.maximum(count - 1.0, 1.0))
    gamma_C = layer.gamma if layer.scale else tf.ones_like(mean_C)
    beta_C = layer.beta if layer.center else tf.zeros_like(mean_C)
    scale_C = gamma_C * tf.math.rsqrt(variance_C + layer.epsilon)
    return tf.cast(wide * scale_C + (beta_C - mean_C * scale_C), layer.compute_dtype)


def _statistics(x_NHWC: tf.Tensor, all_reduce: AllReduce | None) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Pixels over all ranks (a scalar), and the mean and biased variance per channel over them."""
    channels = x_NHWC.shape[-1]
    count = tf.cast(tf.size(x_NHWC) // channels, tf.float32)
    sums = tf.concat(
        [count[tf.newaxis], tf.reduce_sum(x_NHWC, [0, 1, 2]), tf.reduce_sum(tf.square(x_NHWC), [0, 1, 2])], 0
    )
    if all_reduce is not None:
        sums = tf.ensure_shape(all_reduce(sums), [1 + 2 * channels])
    count = tf.stop_gradient(sums[0])
    mean_C = sums[1 : 1 + channels] / count
    return count, mean_C, tf.maximum(sums[1 + channels :] / count - tf.square(mean_C), 0.0)


def _move(layer: keras.layers.BatchNormalization, moving_C: tf.Variable, now_C: tf.Tensor) -> None:
    moving_C.assign_sub((moving_C - tf.stop_gradient(now_C)) * (1.0 - layer.momentum))


def decoder_norm(kind: str, name: str, all_reduce: AllReduce | None) -> keras.layers.Layer:
    """A new norm layer for the pyramid and the decoder.

    Under `frozen` it is a group norm: no weights file holds statistics for these layers, and a batch norm that never
    learns any would normalise nothing.
    """
    if kind in ("group", "frozen"):
        return GroupNorm(name=name)
    if kind == "sync_batch":
        return SyncBatchNorm(all_reduce, name=name)
    return keras.layers.BatchNormalization(name=name)


def norm_in_place_of(
    batch_norm: keras.layers.BatchNormalization, kind: str, name: str, all_reduce: AllReduce | None
) -> keras.layers.Layer:
    """The layer that takes a backbone batch norm's place under a policy; it is not built yet.

    A group norm over the three colours of the input would remove the colour of the patch: such a norm (`bn_data` of
    the resnets) keeps its stored statistics instead.
    """
    config = {**batch_norm.get_config(), "name": name}
    if kind == "group" and batch_norm.moving_mean.shape[0] >= MIN_GROUP_CHANNELS:
        return GroupNorm(config["epsilon"], name=name)
    if kind in ("group", "frozen"):
        return FrozenBatchNorm.from_config(config)
    if kind == "sync_batch":
        return SyncBatchNorm(all_reduce, **config)
    return keras.layers.BatchNormalization.from_config(config)


def carry_over(batch_norm: keras.layers.BatchNormalization, norm: keras.layers.Layer) -> None:
    """Copy scale, shift and statistics from a batch norm to the layer in its place, as far as both have them."""
    for weight in ("gamma", "beta", "moving_mean", "moving_variance"):
        source, target = getattr(batch_norm, weight, None), getattr(norm, weight, None)
        if source is not None and target is not None:
            target.assign(source)
