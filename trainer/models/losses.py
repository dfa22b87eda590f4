"""The training loss: weighted cross-entropy plus soft Dice of each patch, averaged over patches."""

from __future__ import annotations

from trainer.config.schema import IGNORE_LABEL, LossConfig
from trainer.errors import ModelError
from trainer.models.keras import tf
from trainer.models.norms import AllReduce

DICE_SMOOTH = 1.0
"""Pixels added to both sides of the Dice ratio: a class of a few pixels moves the loss gently."""


def segmentation_loss(
    logits_BHWC: tf.Tensor, labels_BHW: tf.Tensor, config: LossConfig, sum_over_parts: AllReduce | None = None
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """The loss of a batch, and its terms before their weights.

    Both terms are means over patches of what each patch alone would give. So the gradient does not depend on how
    patches are spread over ranks and over accumulated passes: only means of equal batches are ever taken. Of one patch,
    with v its pixels whose label y is not 255, p the softmax, c a class:

        cross_entropy = sum_v class_weight[y_v] (-log p_v[y_v]) / (H W)
        dice          = 1 - mean over classes present in the patch of
                        (2 sum_v p_v[c] [y_v = c] + 1) / (sum_v p_v[c] + sum_v [y_v = c] + 1)

    The cross-entropy divides by all pixels, ignored ones too, so every labelled pixel of the data set weighs the same.
    Divided by the number of v, a patch with ten labelled pixels would weigh as much as a full one; divided by the
    number of v in the batch, a pixel's weight would depend on its neighbours there, and the mean over ranks would not
    be the loss of the whole.

    A class that no label of the patch shows is left out of Dice: its ratio would say only how many pixels there are.
    A patch without a valid pixel has loss 0 and gradient 0. Dice without squares in its denominator: Drozdzal et al.
    2016, arXiv 1608.04117, there over the batch; the smoothing is ours.

    Args:
      logits_BHWC: any float type; all arithmetic is float32.
      labels_BHW: integer class ids; 255 is ignored, any other id that is no class makes the loss NaN.
      sum_over_parts: where the batch holds a part of each patch, the sum over all its parts; every part's loss is then
        that of the whole patches.
    Returns:
      a float32 scalar, and of "cross_entropy" and "dice" those whose weight is not 0, as float32 scalars.
    Raises:
      ModelError: `class_weights` does not have one weight per class.
    """
    num_classes = logits_BHWC.shape[-1]
    class_weights = _class_weights(config, num_classes)
    has_dice = config.dice > 0
    sums_BC = _class_sums(logits_BHWC, labels_BHW, has_dice)
    num_pixels_BC = tf.fill(tf.shape(sums_BC[0]), tf.cast(tf.reduce_prod(tf.shape(labels_BHW)[1:]), tf.float32))
    if sum_over_parts:
        num_pixels_BC, *sums_BC = tf.unstack(sum_over_parts(tf.stack([num_pixels_BC, *sums_BC])))
    nll_BC, *dice_sums = sums_BC

    terms = {}
    if config.cross_entropy > 0:
        terms["cross_entropy"] = tf.reduce_mean(tf.linalg.matvec(nll_BC, class_weights)) / num_pixels_BC[0, 0]
    if has_dice:
        terms["dice"] = tf.reduce_mean(_dice(*dice_sums))
    total = tf.add_n([getattr(config, name) * term for name, term in terms.items()])
    is_known = tf.reduce_all((labels_BHW < num_classes) | (labels_BHW == IGNORE_LABEL))
    return tf.where(is_known, total, float("nan")), terms


def _class_weights(config: LossConfig, num_classes: int) -> tuple[float, ...]:
    weights = config.class_weights or (1.0,) * num_classes
    if len(weights) != num_classes:
        raise ModelError(
            f"{len(weights)} class weights for {num_classes} classes",
            where="training.loss.class_weights",
            fix="give one weight per class, in the order of data.classes",
        )
    return weights


def _dice(overlap_BC: tf.Tensor, predicted_BC: tf.Tensor, labelled_BC: tf.Tensor) -> tf.Tensor:
    ratio_BC = (2.0 * overlap_BC + DICE_SMOOTH) / (predicted_BC + labelled_BC + DICE_SMOOTH)
    is_present_BC = tf.cast(labelled_BC > 0, tf.float32)
    return tf.math.divide_no_nan(tf.reduce_sum(is_present_BC * (1.0 - ratio_BC), 1), tf.reduce_sum(is_present_BC, 1))


def _class_sums(logits_BHWC: tf.Tensor, labels_BHW: tf.Tensor, has_dice: bool) -> list[tf.Tensor]:
    """Sums over each patch, [B, C] float32: of -log p where c is the label; for Dice also of p there, p, and labels."""

    @tf.custom_gradient
    def row_sums(logits: tf.Tensor):
        return _row_sums(logits, labels_BHW, has_dice), lambda *grads: _row_sums_gradient(
            logits, labels_BHW, has_dice, grads
        )

    return [tf.reduce_sum(sums_BHC, 1) for sums_BHC in row_sums(logits_BHWC)]


# XLA makes one pass of each of these two, where TensorFlow would write a dozen arrays of the logits' size; and the
# backward pass starts from the logits again, so only they are kept. Measured at 1 x 2048 x 2048 px, 2 classes, forward
# and backward: 0.12 against 0.40 s of CPU time, 113 against 340 MiB; XLA itself takes 80 MiB once. The sums are over
# rows only, because XLA adds one number after the other on a CPU: over 4 M pixels in float32 that was wrong by 0.1 %.
@tf.function(jit_compile=True)
def _row_sums(logits_BHWC: tf.Tensor, labels_BHW: tf.Tensor, has_dice: bool) -> list[tf.Tensor]:
    labels_BHW1 = tf.cast(labels_BHW, tf.int32)[..., None]
    is_valid = labels_BHW1 != IGNORE_LABEL
    is_own = labels_BHW1 == tf.range(logits_BHWC.shape[-1])

    log_p = tf.nn.log_softmax(tf.cast(logits_BHWC, tf.float32))
    nll_BHC = tf.reduce_sum(tf.where(is_own, -log_p, 0.0), 2)
    if not has_dice:
        return [nll_BHC]
    p = tf.exp(log_p)
    overlap_BHC = tf.reduce_sum(tf.where(is_own, p, 0.0), 2)
    predicted_BHC = tf.reduce_sum(tf.where(is_valid, p, 0.0), 2)
    return [nll_BHC, overlap_BHC, predicted_BHC, tf.reduce_sum(tf.cast(is_own, tf.float32), 2)]


@tf.function(jit_compile=True)
def _row_sums_gradient(
    logits_BHWC: tf.Tensor, labels_BHW: tf.Tensor, has_dice: bool, grads: tuple[tf.Tensor, ...]
) -> tf.Tensor:
    with tf.GradientTape() as tape:
        tape.watch(logits_BHWC)
        sums = _row_sums(logits_BHWC, labels_BHW, has_dice)
    return tape.gradient(sums, logits_BHWC, output_gradients=list(grads))
