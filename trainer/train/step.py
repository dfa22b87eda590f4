"""One optimiser step on every rank: forward, backward, all-reduce, apply once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trainer.config.schema import LossConfig, OptimizerConfig, TrainingConfig
from trainer.models.keras import keras, tf
from trainer.models.losses import segmentation_loss
from trainer.runtime.comm import Comm

Step = Callable[[Any, Any], Any]


def make_optimizer(config: OptimizerConfig, precision: str) -> keras.optimizers.Optimizer:
    """Adam, AdamW or SGD; under mixed_float16 with dynamic loss scaling."""
    common: dict[str, Any] = {"learning_rate": config.learning_rate, "jit_compile": False}
    optimizer = {
        "adam": lambda: keras.optimizers.Adam(epsilon=config.epsilon, **common),
        "adamw": lambda: keras.optimizers.AdamW(epsilon=config.epsilon, weight_decay=config.weight_decay, **common),
        "sgd": lambda: keras.optimizers.SGD(momentum=config.momentum, **common),
    }[config.name]()
    return keras.mixed_precision.LossScaleOptimizer(optimizer) if precision == "mixed_float16" else optimizer


def make_train_step(
    model: keras.Model, optimizer: keras.optimizers.Optimizer, config: TrainingConfig, comm: Comm
) -> Step:
    """A compiled function (images [B, P, P, 3] uint8, labels [B, P, P] uint8) -> this rank's loss, float32 scalar.

    Gradients are averaged over ranks while still loss-scaled, so that fp16 on the wire keeps small ones. A value that
    overflows on one rank is infinite on all after the sum, so all ranks skip the same step.
    """
    scaled = isinstance(optimizer, keras.mixed_precision.LossScaleOptimizer)
    statistics = [v for v in model.non_trainable_variables if v.dtype == tf.float32]
    loss_config: LossConfig = config.loss

    @tf.function(reduce_retracing=False)
    def train_step(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss, _ = segmentation_loss(model(images, training=True), labels, loss_config)
            target = optimizer.get_scaled_loss(loss) if scaled else loss
        gradients = tape.gradient(target, model.trainable_variables)
        gradients = comm.allreduce_gradients(gradients, config.compression)
        if scaled:
            gradients = optimizer.get_unscaled_gradients(gradients)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        if comm.world_size > 1 and statistics:  # moving averages of batch norm: the one state that is not a gradient's
            for variable, mean in zip(statistics, comm.allreduce_gradients(statistics, "none"), strict=True):
                variable.assign(mean)
        return loss

    return train_step


def allreduce_bytes(model: keras.Model, compression: str) -> int:
    """Bytes of gradient that one rank hands to the all-reduce in one step."""
    width = 4 if compression == "none" else 2
    return width * sum(v.shape.num_elements() for v in model.trainable_variables)
