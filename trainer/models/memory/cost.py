"""A training pass as a graph with concrete shapes: forward, loss and backward, traced and never run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from trainer.config.schema import LossConfig
from trainer.models.halos import slabs
from trainer.models.keras import keras, tf
from trainer.models.losses import segmentation_loss
from trainer.models.memory.flops import convolution_flops
from trainer.models.memory.liveness import peak_live_bytes
from trainer.models.spatial import Slab, training_forward


@dataclass(frozen=True)
class PassCost:
    """What one forward and backward pass takes."""

    live_bytes: int
    """Most bytes of tensors alive at a time, the finished gradients of weights apart."""
    num_operations: int
    flops: float
    """Floating-point operations of its convolutions; a multiply-add is two."""


_KNOWN: WeakKeyDictionary[keras.Model, dict[tuple[int, int, bool, int], PassCost]] = WeakKeyDictionary()


def pass_cost(model: keras.Model, patch_size: int, batch: int, recompute: bool, spatial: int = 1) -> PassCost:
    """The cost of a pass over [batch, patch_size, patch_size] pixels, or over the dearest slab where `spatial` ranks
    share them; remembered per network; seconds, not minutes.

    Batches from 4 are extrapolated from 2 and 3: all that depends on the batch is proportional to it, and a traced
    network grows with its batch.
    """
    known = _KNOWN.setdefault(model, {})
    key = (patch_size, batch, recompute, spatial)
    if key not in known:
        known[key] = _extrapolated(model, *key) if batch > 3 else _traced(model, *key)
    return known[key]


def flops_per_pass(
    model: keras.Model, patch_size: int, batch: int, *, recompute: bool = False, spatial: int = 1
) -> float:
    """Floating-point operations of one pass's convolutions: forward, backward, and what is computed again."""
    return pass_cost(model, patch_size, batch, recompute, spatial).flops


def _extrapolated(model: keras.Model, patch_size: int, batch: int, recompute: bool, spatial: int) -> PassCost:
    two, three = (pass_cost(model, patch_size, b, recompute, spatial) for b in (2, 3))

    def at(name: str) -> float:
        return getattr(two, name) + (batch - 2) * (getattr(three, name) - getattr(two, name))

    return PassCost(int(at("live_bytes")), int(at("num_operations")), at("flops"))


def _traced(model: keras.Model, patch_size: int, batch: int, recompute: bool, spatial: int = 1) -> PassCost:
    rank = 1 if spatial > 2 else 0  # of three and more the second has two neighbours
    rows = slabs(patch_size, spatial)[rank]
    slab = Slab(_Alone(rank, spatial), rows) if spatial > 1 else None
    forward = training_forward(model, slab, recompute=recompute)

    def training_pass(images: tf.Tensor, labels: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            loss, _ = segmentation_loss(forward(images), labels, LossConfig(), slab.sum if slab else None)
        return tape.gradient(loss, model.trainable_variables)

    shape = (batch, rows.stop - rows.start, patch_size)
    traced = tf.function(training_pass, autograph=False).get_concrete_function(
        tf.TensorSpec((*shape, 3), tf.uint8), tf.TensorSpec(shape, tf.uint8)
    )
    operations = _needed(traced.graph, traced.outputs)
    return PassCost(peak_live_bytes(operations), len(operations), convolution_flops(operations))


@dataclass
class _Alone:
    """A group whose other ranks are not there: what it says is as large as what they would."""

    rank: int
    size: int

    def swap(self, up: Any, down: Any, name: str) -> tuple[Any, Any]:
        return tf.identity(down), tf.identity(up)

    def sum(self, tensor: Any, name: str) -> Any:
        return tf.identity(tensor)


def _needed(graph: tf.Graph, outputs: Iterable[tf.Tensor]) -> list[tf.Operation]:
    """The operations that outputs need, in the order in which they were made; TensorFlow drops the others.

    The outputs themselves (`Identity` of each gradient, all made last) are left out: a gradient that waits to be
    applied is counted apart.
    """
    needed: set[tf.Operation] = set()
    waiting = [*(source.op for tensor in outputs for source in tensor.op.inputs), *graph.control_outputs]
    while waiting:
        operation = waiting.pop()
        if operation not in needed:
            needed.add(operation)
            waiting += [*(tensor.op for tensor in operation.inputs), *operation.control_inputs]
    return [operation for operation in graph.get_operations() if operation in needed]
