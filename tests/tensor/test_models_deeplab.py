"""The whole network: sizes, precision, determinism, and the image-level branch at batch 1."""

import numpy as np
import pytest

from trainer.config.schema import LossConfig, ModelConfig
from trainer.models import build_model, segmentation_loss
from trainer.models.deeplab import Atrous
from trainer.models.keras import keras, tf
from trainer.models.layers import Classifier

SMALL = {"backbone": "resnet18", "aspp_channels": 32, "decoder_channels": 32}


def _build(num_classes=3, **config):
    return build_model(ModelConfig(**{**SMALL, **config}), num_classes)


def _patches(batch=1, size=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)


def _labels(batch, size, num_classes=3):
    return np.random.default_rng(1).integers(0, num_classes, (batch, size, size)).astype(np.uint8)


@pytest.fixture(scope="module")
def group_model():
    keras.utils.set_random_seed(1)
    return _build()


@pytest.mark.parametrize("shape", [(2, 64, 64), (1, 128, 128), (1, 80, 112)])
def test_the_same_weights_take_any_patch_size(group_model, shape):
    images = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    logits = group_model(images)
    assert logits.shape == (*shape, 3) and logits.dtype == tf.float32
    assert np.isfinite(logits).all() and np.std(logits) > 0


def test_uint8_and_float_images_give_the_same_logits(group_model):
    images = _patches()
    np.testing.assert_array_equal(group_model(images), group_model(images.astype("f4")))


def test_patches_of_a_batch_do_not_see_each_other_under_group_norm(group_model):
    images = _patches(batch=2)
    together, alone = group_model(images, training=False), group_model(images[:1], training=False)
    np.testing.assert_allclose(together[:1], alone, atol=1e-4)


def test_an_equal_seed_gives_equal_weights():
    keras.utils.set_random_seed(7)
    first = _build(norm="batch").get_weights()
    keras.utils.set_random_seed(7)
    for a, b in zip(first, _build(norm="batch").get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("norm", ["group", "batch", "sync_batch", "frozen"])
def test_every_norm_policy_trains_every_weight_at_batch_one(norm):
    model = _build(norm=norm, output_stride=8, dropout=0.0)
    with tf.GradientTape() as tape:
        loss, _ = segmentation_loss(model(_patches(), training=True), _labels(1, 64), LossConfig())
    gradients = tape.gradient(loss, model.trainable_variables)
    without = [v.name for v, g in zip(model.trainable_variables, gradients, strict=True) if g is None]
    assert not without
    assert all(np.isfinite(tf.convert_to_tensor(g)).all() for g in gradients)


def test_a_few_steps_at_batch_one_learn_one_patch():
    images = _patches(size=64)
    images[:, :, 32:] //= 4  # the right half is darker and another class
    labels = np.zeros((1, 64, 64), np.uint8)
    labels[:, :, 32:] = 1
    model = _build(num_classes=2, dropout=0.0)
    optimizer = keras.optimizers.Adam(1e-3)
    optimizer.build(model.trainable_variables)  # else the first step is traced twice

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss, _ = segmentation_loss(model(images, training=True), labels, LossConfig())
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    losses = [float(step()) for _ in range(12)]
    assert losses[-1] < 0.6 * losses[0]


# --- The trap of FACTS.md: a norm after global pooling at batch 1 -----------------------------------------------------


def _spread_over_patches(branch, features):
    """How much the branch's output at batch 1 differs between two patches."""
    return float(tf.reduce_max(tf.abs(branch(features[:1]) - branch(features[1:]))))


def test_the_image_level_branch_depends_on_the_patch_at_batch_one():
    model = _build(norm="batch")
    deepest = model.get_layer("aspp_image_mean").input
    image_level = keras.Model(deepest, model.get_layer("aspp_image").output)
    features = tf.constant(np.random.default_rng(0).uniform(0, 3, (2, 4, 4, 512)), tf.float32)
    assert _spread_over_patches(lambda x: image_level(x, training=True), features) > 0.01


def test_batch_norm_in_the_image_level_branch_would_not():
    convolution, norm = keras.layers.Conv2D(32, 1, use_bias=False), keras.layers.BatchNormalization()

    def with_batch_norm(x):
        return norm(convolution(tf.reduce_mean(x, [1, 2], keepdims=True)), training=True)

    features = tf.constant(np.random.default_rng(0).uniform(0, 3, (2, 4, 4, 512)), tf.float32)
    assert _spread_over_patches(with_batch_norm, features) < 1e-6


# --- Precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "norm"), [("mixed_bfloat16", "group"), ("mixed_float16", "sync_batch")])
def test_mixed_precision_keeps_weights_and_logits_float32(policy, norm):
    keras.mixed_precision.set_global_policy(policy)
    model = _build(backbone="mobilenetv2", norm=norm, dropout=0.0)
    with tf.GradientTape() as tape:
        logits = model(_patches(batch=2), training=True)
        loss, _ = segmentation_loss(logits, _labels(2, 64), LossConfig())
    gradients = tape.gradient(loss, model.trainable_variables)
    assert logits.dtype == loss.dtype == tf.float32
    assert {w.dtype for w in model.weights} == {tf.float32} == {g.dtype for g in gradients}
    assert model.get_layer("aspp_concat").output.dtype == policy.removeprefix("mixed_")
    assert np.isfinite(loss) and all(np.isfinite(tf.convert_to_tensor(g)).all() for g in gradients)


@pytest.mark.parametrize(("narrow", "tolerance"), [("float32", 1e-6), ("bfloat16", 0.01)])
def test_the_classifier_has_float32_logits_of_a_narrow_map_and_the_gradients_of_a_convolution(narrow, tolerance):
    x = tf.cast(tf.random.stateless_normal([2, 8, 8, 16], [1, 2]), narrow)
    dy = tf.random.stateless_normal([2, 8, 8, 3], [3, 4])
    ours, theirs = Classifier(3, 1), keras.layers.Conv2D(3, 1)
    results = []
    for layer, inputs in ((ours, x), (theirs, tf.cast(x, tf.float32))):
        layer.build(x.shape)
        layer.set_weights(ours.get_weights())
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            y = layer(inputs)
        results.append((y, *tape.gradient(y, [inputs, layer.kernel, layer.bias], dy)))
    assert results[0][0].dtype == tf.float32 and results[0][1].dtype == narrow
    np.testing.assert_allclose(results[0][0], results[1][0], atol=1e-6)
    for found, expected in zip(results[0][1:], results[1][1:], strict=True):
        error = tf.norm(tf.cast(found, tf.float32) - expected) / tf.norm(expected)
        assert float(error) <= tolerance


def test_mixed_bfloat16_is_near_float32():
    model = _build()
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    narrow = _build()
    narrow.set_weights(model.get_weights())
    exact, near = model(_patches()).numpy(), narrow(_patches()).numpy()
    assert np.abs(near - exact).mean() < 0.1 * exact.std()


@pytest.mark.parametrize(("rate", "shape"), [(6, (4, 4)), (6, (6, 6)), (6, (7, 6)), (12, (6, 12)), (12, (16, 16))])
def test_taps_that_are_left_out_lie_in_the_padding(rate, shape):
    """Values and all gradients are those of Keras' layer, where only the middle tap is on the map and where not."""
    rng = np.random.default_rng(2)
    x = tf.constant(rng.normal(size=(2, *shape, 8)), tf.float32)
    ours, keras_layer = (
        kind(3, padding="same", dilation_rate=rate, use_bias=False) for kind in (Atrous, keras.layers.DepthwiseConv2D)
    )
    results = []
    for layer in (keras_layer, ours):
        layer.build(x.shape)
        layer.set_weights([rng.normal(size=(3, 3, 8, 1))] if layer is keras_layer else keras_layer.get_weights())
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            loss = tf.reduce_sum(y**3)
        results.append([y, *tape.gradient(loss, [x, *layer.weights])])
    for expected, got in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_a_small_map_is_not_enlarged_for_taps_that_it_cannot_reach():
    layer = Atrous(3, padding="same", dilation_rate=6, use_bias=False)

    def operations(side):
        spec = tf.TensorSpec((1, side, side, 8), tf.float32)
        return {o.type for o in tf.function(layer).get_concrete_function(spec).graph.get_operations()}

    assert "SpaceToBatchND" in operations(8) and "SpaceToBatchND" not in operations(6)
