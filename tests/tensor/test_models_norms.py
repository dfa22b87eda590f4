"""Norm layers against Keras' own, and against what they promise at batch 1 and on several ranks."""

import numpy as np
import pytest

from trainer.models.keras import keras, tf
from trainer.models.norms import (
    FrozenBatchNorm,
    GroupNorm,
    SyncBatchNorm,
    carry_over,
    decoder_norm,
    norm_in_place_of,
    num_groups,
)


def _values(*shape, seed=0, mean=0.5):
    return tf.constant(np.random.default_rng(seed).normal(mean, 2.0, shape), tf.float32)


def _gradients(layer, x, dy, **kwargs):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, **kwargs)
        loss = tf.reduce_sum(tf.cast(y, tf.float32) * dy)
    return y, tape.gradient(loss, [x, layer.gamma, layer.beta])


def _draw_scale_and_shift(*layers):
    for weight in ("gamma", "beta"):
        value = _values(layers[0].gamma.shape[0], seed=len(weight))
        for layer in layers:
            getattr(layer, weight).assign(value)


@pytest.mark.parametrize(("channels", "groups"), [(3, 1), (16, 2), (24, 3), (48, 6), (64, 8), (144, 18), (256, 32)])
def test_groups_divide_the_channels_and_hold_at_least_eight(channels, groups):
    assert num_groups(channels) == groups


@pytest.mark.parametrize("shape", [(2, 5, 7, 64), (1, 8, 8, 48), (3, 4, 4, 256)])
def test_group_norm_equals_keras_in_values_and_gradients(shape):
    x, dy = _values(*shape), _values(*shape, seed=1, mean=0.0)
    ours, theirs = GroupNorm(epsilon=1e-3), keras.layers.GroupNormalization(num_groups(shape[-1]), epsilon=1e-3)
    ours.build(shape)
    theirs.build(shape)
    _draw_scale_and_shift(ours, theirs)
    y, gradients = _gradients(ours, x, dy)
    y_keras, gradients_keras = _gradients(theirs, x, dy)
    np.testing.assert_allclose(y, y_keras, atol=3e-6)
    for ours_, theirs_ in zip(gradients, gradients_keras, strict=True):
        np.testing.assert_allclose(ours_, theirs_, atol=1e-6 * max(1.0, float(tf.reduce_max(tf.abs(theirs_)))) * 4)


def test_group_norm_in_bfloat16_is_near_float32_and_keeps_float32_weights():
    x, dy = _values(2, 8, 8, 64), _values(2, 8, 8, 64, seed=1, mean=0.0)
    exact, narrow = GroupNorm(), GroupNorm(dtype="mixed_bfloat16")
    y, (dx, dgamma, _) = _gradients(exact, x, dy)
    y_narrow, (dx_narrow, dgamma_narrow, _) = _gradients(narrow, tf.cast(x, tf.bfloat16), dy)
    assert (y_narrow.dtype, narrow.gamma.dtype, dgamma_narrow.dtype) == (tf.bfloat16, tf.float32, tf.float32)
    np.testing.assert_allclose(tf.cast(y_narrow, tf.float32), y, atol=0.03)
    np.testing.assert_allclose(tf.cast(dx_narrow, tf.float32), dx, atol=0.03)
    np.testing.assert_allclose(dgamma_narrow, dgamma, rtol=0.03, atol=0.3)


@pytest.mark.parametrize("narrow", [tf.bfloat16, tf.float16])
def test_group_norm_of_a_narrow_map_is_the_float32_result_rounded(narrow):
    x, dy = (tf.cast(_values(2, 16, 12, 64, seed=seed), narrow) for seed in (0, 1))
    layer = GroupNorm()
    layer.build(x.shape)
    _draw_scale_and_shift(layer)
    y, (dx, dgamma, dbeta) = _gradients(layer, tf.cast(x, tf.float32), tf.cast(dy, tf.float32))
    narrow_layer = GroupNorm(dtype=f"mixed_{narrow.name}")
    narrow_layer.build(x.shape)
    _draw_scale_and_shift(narrow_layer)
    y_narrow, (dx_narrow, dgamma_narrow, dbeta_narrow) = _gradients(narrow_layer, x, tf.cast(dy, tf.float32))
    digit = float(np.finfo(np.float16).eps if narrow == tf.float16 else 2.0**-7)  # between 1 and the next number
    np.testing.assert_allclose(tf.cast(y_narrow, tf.float32), y, rtol=0.501 * digit, atol=1e-5)
    size = float(tf.reduce_max(tf.abs(dx)))
    np.testing.assert_allclose(tf.cast(dx_narrow, tf.float32), dx, rtol=digit, atol=0.1 * digit * size)
    np.testing.assert_allclose(dgamma_narrow, dgamma, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(dbeta_narrow, dbeta, rtol=1e-5, atol=1e-4)


def test_group_norm_keeps_its_digits_on_a_large_map():
    """A float32 sum over all pixels, as Keras' own layer has, is off by 2e-5 here."""
    x = _values(1, 512, 512, 8)
    layer = GroupNorm(epsilon=0.0)
    exact = x.numpy().astype("f8")
    exact = (exact - exact.mean()) / exact.std()
    np.testing.assert_allclose(layer(x), exact, atol=3e-6)


def test_group_norm_does_not_need_to_know_sizes_when_it_is_traced():
    layer, x = GroupNorm(), _values(3, 6, 5, 16)
    layer.build(x.shape)
    traced = tf.function(layer, input_signature=[tf.TensorSpec([None, None, None, 16])])
    np.testing.assert_allclose(traced(x), layer(x), atol=1e-6)


def test_group_norm_works_inside_a_recomputed_block():
    layer, x = GroupNorm(), _values(1, 4, 4, 16)
    layer.build(x.shape)

    @tf.function
    def gradients(block):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(block(x) ** 3)
        return tape.gradient(loss, layer.trainable_variables)

    for kept, recomputed in zip(gradients(layer), gradients(tf.recompute_grad(layer)), strict=True):
        np.testing.assert_allclose(kept, recomputed, rtol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_sync_batch_norm_of_one_process_equals_batch_norm(training):
    shape = (3, 6, 5, 8)
    x, dy = _values(*shape), _values(*shape, seed=1, mean=0.0)
    ours, theirs = SyncBatchNorm(), keras.layers.BatchNormalization()
    ours.build(shape)
    theirs.build(shape)
    _draw_scale_and_shift(ours, theirs)
    y, gradients = _gradients(ours, x, dy, training=training)
    y_keras, gradients_keras = _gradients(theirs, x, dy, training=training)
    np.testing.assert_allclose(y, y_keras, atol=5e-6)
    for ours_, theirs_ in zip(gradients, gradients_keras, strict=True):
        np.testing.assert_allclose(ours_, theirs_, atol=1e-4)
    np.testing.assert_allclose(ours.moving_mean, theirs.moving_mean, atol=1e-6)
    np.testing.assert_allclose(ours.moving_variance, theirs.moving_variance, atol=1e-5)


def test_sync_batch_norm_over_two_ranks_equals_batch_norm_of_the_joint_batch():
    x, dy = _values(4, 6, 6, 8), _values(4, 6, 6, 8, seed=1, mean=0.0)
    mine, other = x[:1], x[1:]  # ranks may hold batches of different sizes
    others_sums = tf.concat(
        [[float(3 * 6 * 6)], tf.reduce_sum(other, [0, 1, 2]), tf.reduce_sum(other**2, [0, 1, 2])], axis=0
    )
    ours, theirs = SyncBatchNorm(lambda sums: sums + others_sums), keras.layers.BatchNormalization()
    y, (dx, _, _) = _gradients(ours, mine, dy[:1], training=True)
    # the joint batch, with a loss on this rank's part only: the gradient flows through the shared statistics
    y_joint, (dx_joint, _, _) = _gradients(theirs, x, tf.concat([dy[:1], 0 * dy[1:]], 0), training=True)
    np.testing.assert_allclose(y, y_joint[:1], atol=5e-6)
    np.testing.assert_allclose(dx, dx_joint[:1], atol=5e-6)
    np.testing.assert_allclose(ours.moving_variance, theirs.moving_variance, atol=1e-5)


def test_frozen_batch_norm_never_updates_its_statistics_but_trains_scale_and_shift():
    layer, x = FrozenBatchNorm(), _values(2, 4, 4, 8)
    y, (_, dgamma, dbeta) = _gradients(layer, x, tf.ones_like(x), training=True)
    np.testing.assert_allclose(y, x / np.sqrt(1.001), rtol=1e-5)
    np.testing.assert_array_equal(layer.moving_mean, np.zeros(8))
    assert float(tf.norm(dgamma)) > 0 and float(tf.norm(dbeta)) > 0
    assert len(layer.trainable_weights) == 2


@pytest.mark.parametrize(
    ("kind", "channels", "expected"),
    [
        ("group", 16, GroupNorm),
        ("group", 3, FrozenBatchNorm),
        ("batch", 16, keras.layers.BatchNormalization),
        ("batch", 3, keras.layers.BatchNormalization),
        ("sync_batch", 16, SyncBatchNorm),
        ("frozen", 16, FrozenBatchNorm),
    ],
)
def test_a_backbone_norm_is_replaced_by_policy_and_keeps_its_weights(kind, channels, expected):
    old = keras.layers.BatchNormalization(epsilon=2e-5)
    old(_values(1, 4, 4, channels))
    old.set_weights([np.arange(channels, dtype="f4") + i for i in range(4)])
    new = norm_in_place_of(old, kind, "new", None)
    new(_values(1, 4, 4, channels))
    carry_over(old, new)
    assert type(new) is expected and new.epsilon == 2e-5 and new.name == "new"
    for weight, source in zip(new.get_weights(), old.get_weights(), strict=False):
        np.testing.assert_array_equal(weight, source)


@pytest.mark.parametrize("layer", [GroupNorm(epsilon=0.1), FrozenBatchNorm(momentum=0.5), SyncBatchNorm(center=False)])
def test_norm_layers_can_be_rebuilt_from_their_config(layer):
    assert type(layer).from_config(layer.get_config()).get_config() == layer.get_config()


def test_the_decoder_has_group_norm_where_the_backbone_is_frozen():
    assert isinstance(decoder_norm("frozen", "n", None), GroupNorm)
