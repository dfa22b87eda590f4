"""Peak memory of one rank, part by part."""

from __future__ import annotations

from dataclasses import dataclass, fields

from trainer.models.keras import keras
from trainer.models.memory.cost import pass_cost

# Four constants, fitted to fresh processes on TensorFlow 2.21, Linux, x86-64: ResNet-18 and -50 and MobileNetV2, 256 to
# 1024 px, batch 1 to 4 (2026-11-21). They are the same for all networks.
PROCESS_BYTES = 630_000_000
"""Python, TensorFlow and what training imports (0.6 GB), before there is a network."""
WEIGHT_BYTES = 2_350_000
"""Per trainable tensor, whatever its size: Keras' layer and that of the published network, and the graph in which
the optimiser changes it."""
OPERATION_BYTES = 20_000
"""Per operation of the traced pass: its graph in Python and C++, the optimised copy, its kernels."""
ALLOCATOR_FACTOR = 1.13
"""Memory taken per byte in use: free blocks of TensorFlow's allocator are not always where the next tensor fits."""


@dataclass(frozen=True)
class PeakMemory:
    """Predicted bytes of one rank at its peak."""

    process: int
    """The program, its libraries, and the compiled step."""
    weights: int
    gradients: int
    optimizer: int
    """The optimiser's slots."""
    ema: int
    """Averaged weights."""
    accumulators: int
    """Sums of gradients over the passes of a step."""
    all_reduce: int
    """Gradients on their way to and from the other ranks."""
    activations: int
    """Tensors of a pass that are alive at a time: activations, their gradients, scratch."""
    checkpoint: int
    """The copy of weights, slots and averages that rank 0 writes in the background."""

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def peak_memory(
    model: keras.Model,
    patch_size: int,
    batch: int,
    *,
    recompute: bool,
    optimizer_slots: int,
    ema: bool,
    accumulate: bool,
    world_size: int,
    checkpoints: bool,
    spatial: int = 1,
) -> PeakMemory:
    """What one rank needs at its peak while training; the network is traced, which takes seconds, and not run.

    Args:
      model: built under the precision policy that it will be trained with.
      patch_size: width and height in pixels.
      batch: patches per rank and forward pass.
      recompute: the pass is that of `recomputing(model)`.
      optimizer_slots: variables that the optimiser keeps per weight: 2 for Adam, 1 for momentum.
      ema: averaged weights are kept.
      accumulate: a step has several passes.
      checkpoints: some are written meanwhile.
      spatial: ranks that share each patch.
    """
    cost = pass_cost(model, patch_size, batch, recompute, spatial)
    trainable, frozen = (
        sum(v.shape.num_elements() * v.dtype.size for v in variables)
        for variables in (model.trainable_variables, model.non_trainable_variables)
    )
    slots, averages = optimizer_slots * trainable, trainable * ema
    return PeakMemory(
        process=PROCESS_BYTES + WEIGHT_BYTES * len(model.trainable_variables) + OPERATION_BYTES * cost.num_operations,
        weights=trainable + frozen,
        gradients=trainable,
        optimizer=slots,
        ema=averages,
        accumulators=trainable * accumulate,
        all_reduce=2 * trainable * (world_size > 1),
        activations=int(ALLOCATOR_FACTOR * cost.live_bytes),
        checkpoint=(trainable + frozen + slots + averages) * checkpoints,
    )


def predicted_peak_bytes(model: keras.Model, patch_size: int, batch: int, **settings) -> int:
    """The total of `peak_memory`, which explains the arguments."""
    return peak_memory(model, patch_size, batch, **settings).total
