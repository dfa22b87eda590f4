"""The training loss: weighted cross-entropy plus soft Dice, over the pixels that have a label."""

from __future__ import annotations

from trainer.config.schema import IGNORE_LABEL, LossConfig
from trainer.errors import ModelError
from trainer.models.keras import tf

DICE_SMOOTH = 1.0
"""Pixels added to both sides of the Dice ratio: a class of a few pixels moves the loss gently."""


def segmentation_loss(
    logits_BHWC: tf.Tensor, labels_BHW: tf.Tensor, config: LossConfig
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """The loss of a batch and its two terms before their weights.

    With v the pixels whose label y is not 255, p the softmax, c a class:

        cross_entropy = sum_v class_weight[y_v] (-log p_v[y_v]) / number of v
        dice          = 1 - mean over classes present in the batch of
                        (2 sum_v p_v[c] [y_v = c] + 1) / (sum_v p_v[c] + sum_v [y_v = c] + 1)

    A class that no label shows is left out of the mean: its ratio would say only how many pixels the batch has. Dice
    without squares in its denominator, summed over the batch: Drozdzal et al. 2016, arXiv 1608.04117; the smoothing
    is ours. A batch without a valid pixel has loss 0 and gradient 0.

    Args:
      logits_BHWC: any float type; all arithmetic is float32.
      labels_BHW: integer class ids; 255 is ignored, another id outside the classes is an error on the CPU.
    Returns:
      a float32 scalar, and {"cross_entropy", "dice"} as float32 scalars.
    Raises:
      ModelError: `class_weights` does not have one weight per class.
    """
    num_classes = logits_BHWC.shape[-1]
    weights = config.class_weights or (1.0,) * num_classes
    if len(weights) != num_classes:
        raise ModelError(
            f"{len(weights)} class weights for {num_classes} classes",
            where="training.loss.class_weights",
            fix="give one weight per class, in the order of data.classes",
        )
    logits_VC = tf.cast(tf.reshape(logits_BHWC, [-1, num_classes]), tf.float32)
    labels_V = tf.cast(tf.reshape(labels_BHW, [-1]), tf.int32)
    is_valid = tf.not_equal(labels_V, IGNORE_LABEL)
    classes_V = tf.where(is_valid, labels_V, 0)
    nll_V = tf.nn.sparse_softmax_cross_entropy_with_logits(classes_V, logits_VC)

    cross_entropy = _cross_entropy(nll_V, classes_V, is_valid, weights)
    dice = _dice(logits_VC, nll_V, classes_V, is_valid)
    total = config.cross_entropy * cross_entropy + config.dice * dice
    return total, {"cross_entropy": cross_entropy, "dice": dice}


def _cross_entropy(nll_V: tf.Tensor, classes_V: tf.Tensor, is_valid: tf.Tensor, weights: tuple[float, ...]):
    weight_V = tf.gather(tf.constant(weights, tf.float32), classes_V) * tf.cast(is_valid, tf.float32)
    num_valid = tf.reduce_sum(tf.cast(is_valid, tf.float32))
    return tf.math.divide_no_nan(tf.reduce_sum(weight_V * nll_V), num_valid)


def _dice(logits_VC: tf.Tensor, nll_V: tf.Tensor, classes_V: tf.Tensor, is_valid: tf.Tensor) -> tf.Tensor:
    """The probability of a pixel's own class is exp(-nll), so the overlap needs no one-hot copy of the labels."""
    num_classes = logits_VC.shape[-1]
    valid_V = tf.cast(is_valid, tf.float32)
    overlap_C = tf.math.unsorted_segment_sum(tf.exp(-nll_V) * valid_V, classes_V, num_classes)
    labelled_C = tf.math.unsorted_segment_sum(valid_V, classes_V, num_classes)
    predicted_C = tf.linalg.matvec(tf.nn.softmax(logits_VC), valid_V, transpose_a=True)
    ratio_C = (2.0 * overlap_C + DICE_SMOOTH) / (predicted_C + labelled_C + DICE_SMOOTH)
    is_present_C = tf.cast(labelled_C > 0, tf.float32)
    return tf.math.divide_no_nan(tf.reduce_sum(is_present_C * (1.0 - ratio_C)), tf.reduce_sum(is_present_C))
