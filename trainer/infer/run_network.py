"""The network of a run directory, by TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from trainer.config import Config
from trainer.infer.run_recipe import recipe_of, scored_checkpoint
from trainer.models import build_model
from trainer.models.keras import keras, tf
from trainer.train.checkpoint import load_scored_weights


class RunNetwork:
    """The weights that scored best, or those of the newest checkpoint where none was scored.

    Raises:
      RunError, CheckpointError: no checkpoint, or one of another architecture.
    """

    def __init__(self, config: Config, run: Path) -> None:
        checkpoint = scored_checkpoint(run)
        self.recipe = recipe_of(config, checkpoint)
        self._probabilities = probabilities_by(partial(read_model(config, checkpoint), training=False))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self._probabilities(images)


def read_model(config: Config, checkpoint: Path) -> keras.Model:
    """The network with the weights that its scores are of, in Keras' global precision."""
    model = build_model(config.model, len(config.data.classes), read_weights=False)
    load_scored_weights(checkpoint, model)
    return model


def probabilities_by(logits: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[np.ndarray], np.ndarray]:
    """A compiled function from images uint8 [B, H, W, 3] to probabilities float32 [B, H, W, C]."""

    @tf.function(reduce_retracing=False)
    def probabilities(images: tf.Tensor) -> tf.Tensor:
        return tf.nn.softmax(tf.cast(logits(images), tf.float32))

    return lambda images: probabilities(tf.constant(images)).numpy()
