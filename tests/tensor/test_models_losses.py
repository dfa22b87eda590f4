"""The loss against the same formula in NumPy, and the pixels and batches that must not count."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.config.schema import LossConfig
from trainer.errors import ModelError
from trainer.models import segmentation_loss
from trainer.models.keras import tf


def _batch(seed=0, num_classes=3):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (2, 6, 5, num_classes)).astype("f4")
    labels = rng.integers(0, num_classes, (2, 6, 5)).astype(np.uint8)
    labels[0, :2] = 255
    return logits, labels


def _by_hand(logits, labels, class_weights):
    """Means over patches of both terms, pixel by pixel in float64."""
    terms = [_patch_by_hand(z.astype("f8"), y, class_weights) for z, y in zip(logits, labels, strict=True)]
    return np.mean(terms, axis=0)


def _patch_by_hand(logits, labels, class_weights):
    cross_entropy = 0.0
    num_classes = logits.shape[-1]
    overlap, predicted, labelled = np.zeros((3, num_classes))
    for z, y in zip(logits.reshape(-1, num_classes), labels.ravel(), strict=True):
        if y == 255:
            continue
        p = np.exp(z) / np.exp(z).sum()
        cross_entropy -= class_weights[y] * np.log(p[y])
        overlap[y] += p[y]
        predicted += p
        labelled[y] += 1
    present = labelled > 0
    ratio = (2 * overlap + 1) / (predicted + labelled + 1)
    return cross_entropy / labels.size, 1 - ratio[present].mean() if present.any() else 0.0


def _loss_and_gradient(logits, labels, config=None):
    z = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(z)
        loss, terms = segmentation_loss(z, tf.constant(labels), config or LossConfig())
    return loss, terms, tape.gradient(loss, z)


@pytest.mark.parametrize("class_weights", [(), (0.5, 2.0, 3.0)])
def test_both_terms_equal_the_formula_by_hand(class_weights):
    logits, labels = _batch()
    config = LossConfig(cross_entropy=0.7, dice=1.3, class_weights=class_weights)
    loss, parts = segmentation_loss(tf.constant(logits), tf.constant(labels), config)
    cross_entropy, dice = _by_hand(logits, labels, class_weights or (1.0,) * 3)
    np.testing.assert_allclose(parts["cross_entropy"], cross_entropy, rtol=1e-5)
    np.testing.assert_allclose(parts["dice"], dice, rtol=1e-5)
    np.testing.assert_allclose(loss, 0.7 * cross_entropy + 1.3 * dice, rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), ignored=st.lists(st.sampled_from([0.0, 0.3, 0.97, 1.0]), min_size=4, max_size=4))
def test_loss_and_gradient_of_a_batch_are_the_means_over_its_patches_alone(seed, ignored):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (4, 6, 5, 3)).astype("f4")
    labels = rng.integers(0, 3, (4, 6, 5)).astype(np.uint8)
    labels[rng.random(labels.shape) < np.reshape(ignored, (4, 1, 1))] = 255
    config = LossConfig(class_weights=(1.0, 2.0, 0.5))
    loss, _, gradient = _loss_and_gradient(logits, labels, config)
    alone = [_loss_and_gradient(logits[i : i + 1], labels[i : i + 1], config) for i in range(4)]
    np.testing.assert_allclose(loss, np.mean([a[0] for a in alone]), rtol=1e-6)
    np.testing.assert_allclose(gradient, np.concatenate([a[2] for a in alone]) / 4, rtol=1e-6, atol=1e-10)


def test_a_labelled_pixel_weighs_the_same_among_ignored_ones():
    logits, labels = _batch()
    sparse = np.full_like(labels, 255)
    sparse[:, 3] = labels[:, 3]
    config = LossConfig(dice=0.0)
    full, few = (_loss_and_gradient(logits, y, config)[2] for y in (labels, sparse))
    np.testing.assert_array_equal(few[:, 3], full[:, 3])


def test_a_term_without_weight_is_not_computed():
    for name, other in (("dice", "cross_entropy"), ("cross_entropy", "dice")):
        loss, terms, gradient = _loss_and_gradient(*_batch(), LossConfig(**{other: 0.0, name: 2.0}))
        assert terms.keys() == {name}
        np.testing.assert_allclose(loss, 2 * terms[name])
        assert np.any(gradient)


def test_a_large_patch_is_summed_without_losing_digits_and_to_the_same_bits_twice():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (1, 1024, 1024, 2)).astype("f4")
    labels = rng.integers(0, 2, (1, 1024, 1024)).astype(np.uint8)
    loss, terms, gradient = _loss_and_gradient(logits, labels)
    again, _, gradient_again = _loss_and_gradient(logits, labels)
    margins = np.diff(logits.astype("f8"), axis=-1)[..., 0] * (2.0 * labels - 1)
    np.testing.assert_allclose(terms["cross_entropy"], np.log1p(np.exp(-margins)).mean(), rtol=2e-6)
    assert float(loss) == float(again)
    np.testing.assert_array_equal(gradient, gradient_again)


@pytest.mark.parametrize("config", [LossConfig(), LossConfig(dice=0.0), LossConfig(cross_entropy=0.0)])
def test_a_logit_that_is_not_a_number_and_an_id_that_is_no_class_make_the_loss_nan(config):
    logits, labels = _batch()
    wrong_logit, wrong_label = logits.copy(), labels.copy()
    wrong_logit[1, 2, 2, 0], wrong_label[1, 2, 2] = np.nan, 3
    assert np.isnan(_loss_and_gradient(wrong_logit, labels, config)[0])
    assert np.isnan(_loss_and_gradient(logits, wrong_label, config)[0])


def test_a_class_that_no_label_shows_is_left_out_of_dice():
    logits, labels = _batch()
    labels[labels == 2] = 0
    _, parts = segmentation_loss(tf.constant(logits), tf.constant(labels), LossConfig())
    np.testing.assert_allclose(parts["dice"], _by_hand(logits, labels, (1.0,) * 3)[1], rtol=1e-5)


def test_gradients_equal_finite_differences():
    logits, labels = _batch()
    config = LossConfig(class_weights=(1.0, 2.0, 0.5))

    def loss_of(z):
        cross_entropy, dice = _by_hand(z, labels, config.class_weights)
        return cross_entropy + dice

    _, _, gradient = _loss_and_gradient(logits, labels, config)
    for at in [(0, 3, 1, 0), (1, 0, 0, 2), (1, 5, 4, 1), (0, 0, 0, 0)]:
        step = np.zeros_like(logits, "f8")
        step[at] = 1e-4
        difference = (loss_of(logits + step) - loss_of(logits - step)) / 2e-4
        np.testing.assert_allclose(gradient[at], difference, rtol=1e-3, atol=1e-7)


def test_ignored_pixels_change_neither_loss_nor_gradient():
    logits, labels = _batch()
    changed = np.where((labels == 255)[..., None], 50.0, logits).astype("f4")
    loss, _, gradient = _loss_and_gradient(logits, labels)
    loss_changed, _, gradient_changed = _loss_and_gradient(changed, labels)
    np.testing.assert_allclose(loss, loss_changed, rtol=1e-6)
    np.testing.assert_allclose(gradient, gradient_changed, atol=1e-7)
    assert not gradient.numpy()[labels == 255].any()


def test_a_batch_without_a_valid_pixel_has_no_loss_and_no_gradient():
    logits, labels = _batch()
    loss, terms, gradient = _loss_and_gradient(logits, np.full_like(labels, 255))
    assert float(loss) == float(terms["dice"]) == float(terms["cross_entropy"]) == 0.0
    np.testing.assert_array_equal(gradient, np.zeros_like(logits))


def test_extreme_logits_stay_finite():
    logits, labels = _batch()
    loss, _, gradient = _loss_and_gradient(logits * 1e4, labels)
    assert np.isfinite(loss) and np.isfinite(gradient).all()


def test_half_precision_logits_are_widened_first():
    logits, labels = _batch()
    narrow = tf.cast(logits, tf.bfloat16)
    loss, _ = segmentation_loss(narrow, tf.constant(labels), LossConfig())
    exact, _ = segmentation_loss(tf.cast(narrow, tf.float32), tf.constant(labels), LossConfig())
    assert loss.dtype == tf.float32 and float(loss) == float(exact)


def test_class_weights_of_another_number_are_refused():
    logits, labels = _batch()
    with pytest.raises(ModelError, match="2 class weights for 3 classes"):
        segmentation_loss(tf.constant(logits), tf.constant(labels), LossConfig(class_weights=(1.0, 2.0)))
