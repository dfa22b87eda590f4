"""Averaged weights: an exponential moving average of the trained ones, scored in their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from trainer.models.keras import keras, tf


class Averaged:
    """The moving average of a network's trainable weights, which starts at their present values.

    After step t: average <- d x average + (1 - d) x weight, with d = min(decay, (1 + t) / (10 + t)), so that the first
    steps are soon forgotten. Source: tf.train.ExponentialMovingAverage with `num_updates`. Batch norm's moving
    statistics are averages already, and stay as they are.
    """

    def __init__(self, model: keras.Model, decay: float) -> None:
        self._trained, self._decay = model.trainable_variables, decay
        # the name of a variable ends in ':0', which tf.Variable adds again
        self.variables = [
            tf.Variable(v.read_value(), trainable=False, name=v.name.removesuffix(":0")) for v in self._trained
        ]

    def update(self, step: tf.Tensor) -> None:
        """Take in the weights after `step` steps (scalar, 1 or more). For use inside a tf.function."""
        t = tf.cast(step, tf.float32)
        rest = 1.0 - tf.minimum(self._decay, (1.0 + t) / (10.0 + t))
        for average, trained in zip(self.variables, self._trained, strict=True):
            average.assign_add(rest * (trained - average))

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside it the network has the averaged weights; after it, however it ends, its own, to the last bit."""
        trained = [v.read_value() for v in self._trained]
        try:
            _assign(self._trained, self.variables)
            yield
        finally:
            _assign(self._trained, trained)


def _assign(variables: list[tf.Variable], values: list[tf.Tensor]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
