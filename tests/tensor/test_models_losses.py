"""The loss against the same formula in NumPy, and the pixels and batches that must not count."""

import numpy as np
import pytest

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
    cross_entropy, num_valid = 0.0, 0
    num_classes = logits.shape[-1]
    overlap, predicted, labelled = np.zeros((3, num_classes))
    for z, y in zip(logits.reshape(-1, num_classes).astype("f8"), labels.ravel(), strict=True):
        if y == 255:
            continue
        p = np.exp(z) / np.exp(z).sum()
        cross_entropy -= class_weights[y] * np.log(p[y])
        num_valid += 1
        overlap[y] += p[y]
        predicted += p
        labelled[y] += 1
    present = labelled > 0
    ratio = (2 * overlap + 1) / (predicted + labelled + 1)
    return cross_entropy / num_valid, 1 - ratio[present].mean()


@pytest.mark.parametrize("class_weights", [(), (0.5, 2.0, 3.0)])
def test_both_terms_equal_the_formula_by_hand(class_weights):
    logits, labels = _batch()
    config = LossConfig(cross_entropy=0.7, dice=1.3, class_weights=class_weights)
    loss, parts = segmentation_loss(tf.constant(logits), tf.constant(labels), config)
    cross_entropy, dice = _by_hand(logits, labels, class_weights or (1.0,) * 3)
    np.testing.assert_allclose(parts["cross_entropy"], cross_entropy, rtol=1e-5)
    np.testing.assert_allclose(parts["dice"], dice, rtol=1e-5)
    np.testing.assert_allclose(loss, 0.7 * cross_entropy + 1.3 * dice, rtol=1e-5)


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

    with tf.GradientTape() as tape:
        z = tf.constant(logits)
        tape.watch(z)
        loss, _ = segmentation_loss(z, tf.constant(labels), config)
    gradient = tape.gradient(loss, z).numpy()
    for at in [(0, 3, 1, 0), (1, 0, 0, 2), (1, 5, 4, 1), (0, 0, 0, 0)]:
        step = np.zeros_like(logits, "f8")
        step[at] = 1e-4
        difference = (loss_of(logits + step) - loss_of(logits - step)) / 2e-4
        np.testing.assert_allclose(gradient[at], difference, rtol=1e-3, atol=1e-7)


def test_ignored_pixels_change_neither_loss_nor_gradient():
    logits, labels = _batch()
    changed = np.where((labels == 255)[..., None], 50.0, logits).astype("f4")
    results = []
    for values in (logits, changed):
        z = tf.constant(values)
        with tf.GradientTape() as tape:
            tape.watch(z)
            loss, _ = segmentation_loss(z, tf.constant(labels), LossConfig())
        results.append((loss.numpy(), tape.gradient(loss, z).numpy()))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-6)
    np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-7)
    assert not results[0][1][labels == 255].any()


def test_a_batch_without_a_valid_pixel_has_no_loss_and_no_gradient():
    logits, labels = _batch()
    z = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(z)
        loss, parts = segmentation_loss(z, tf.fill(labels.shape, tf.constant(255, tf.uint8)), LossConfig())
    assert float(loss) == float(parts["dice"]) == float(parts["cross_entropy"]) == 0.0
    np.testing.assert_array_equal(tape.gradient(loss, z), np.zeros_like(logits))


def test_extreme_logits_stay_finite():
    logits, labels = _batch()
    z = tf.constant(logits * 1e4)
    with tf.GradientTape() as tape:
        tape.watch(z)
        loss, _ = segmentation_loss(z, tf.constant(labels), LossConfig())
    assert np.isfinite(loss) and np.isfinite(tape.gradient(loss, z)).all()


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
