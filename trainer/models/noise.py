"""The network's random layers: dropout of pixels' features, of channels, and of residual branches.

A mask is a function of the network's noise seed and the layer's own number, so a block that is computed a second time
draws the same mask. Whoever trains assigns the noise seed before each forward pass, from the run's seed, the rank and
the step, so a run that goes on from a checkpoint draws the masks that it would have drawn. Nothing here is random while
predicting.
"""

from __future__ import annotations

from typing import Literal

from trainer.models.keras import keras, tf

Unit = Literal["value", "channel", "patch"]


class NoiseSource:
    """One network's noise seed and the numbers of its random layers. Keras tracks neither: no checkpoint holds it."""

    def __init__(self) -> None:
        self.seed = tf.Variable([0, 0], trainable=False, dtype=tf.int32, name="noise_seed")
        self.num_layers = 0


def noise_seed(model: keras.Model) -> tf.Variable | None:
    """The int32 [2] variable that all masks of a network follow; None when it has no random layer."""
    return next((part.source.seed for part in model.submodules if isinstance(part, Noise)), None)


def with_noise(x_BHWC: tf.Tensor, rate: float, unit: Unit, source: NoiseSource, name: str) -> tf.Tensor:
    """The map behind a `Noise` layer, or the map itself at rate 0."""
    return Noise(rate, unit, source, name=name)(x_BHWC) if rate > 0 else x_BHWC


class Noise(keras.layers.Layer):
    """While training, parts of [B, H, W, C] become zero with probability `rate`; the others grow by 1 / (1 - rate).

    Args:
      rate: in (0, 1).
      unit: what is dropped as one. "value": each number (Srivastava et al. 2014). "channel": a channel of a patch
        (Tompson et al. 2015, arXiv 1411.4280). "patch": all of a patch (Huang et al. 2016, arXiv 1603.09382).
      source: of the network that the layer belongs to.
    """

    def __init__(self, rate: float, unit: Unit, source: NoiseSource, **kwargs) -> None:
        super().__init__(**kwargs)
        self.rate, self.unit, self.source = rate, unit, source
        self.number = source.num_layers
        source.num_layers += 1

    def call(self, x_BHWC, training=None):
        if not training:
            return x_BHWC
        batch, rows, columns, channels = tf.unstack(tf.shape(x_BHWC))
        shape = {
            "value": [batch, rows, columns, channels],
            "channel": [batch, 1, 1, channels],
            "patch": [batch, 1, 1, 1],
        }[self.unit]
        return x_BHWC * tf.cast(self.factor(shape), x_BHWC.dtype)

    def factor(self, shape) -> tf.Tensor:
        """What this step's units are multiplied by: float32, 0 or 1 / (1 - rate)."""
        drawn = tf.random.stateless_uniform(shape, tf.random.fold_in(self.source.seed, self.number))
        return tf.where(drawn < self.rate, 0.0, 1.0 / (1.0 - self.rate))
