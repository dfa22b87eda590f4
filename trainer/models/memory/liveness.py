"""Which tensors of a graph are alive at the same time, and how many bytes that is.

The graph is swept in the order in which it was made: TensorFlow on one scheduling thread runs it nearly so. Three
things that it does to a graph change memory and are done here too: equal operations become one (a float32 copy made in
the forward pass then lives until the backward pass wants the same copy), views share the memory of what they view, and
elementwise operations write over an input that nobody else will read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.models.keras import tf

_VIEWS = {"Identity", "IdentityN", "Reshape", "Squeeze", "ExpandDims", "StopGradient", "PreventGradient"}
_NOT_OURS = {"Placeholder", "ReadVariableOp", "Const"}
"""Their outputs are not made in the pass: the batch, weights, small constants."""
_IN_PLACE = {
    *("Add", "AddN", "AddV2", "BiasAdd", "Exp", "Mul", "Neg", "RealDiv", "Rsqrt", "SelectV2", "Square", "Sub"),
    *("Relu", "Relu6", "Relu6Grad", "ReluGrad", "Sigmoid", "SigmoidGrad", "Softmax", "Tanh", "FusedBatchNormV3"),
}


@dataclass(frozen=True)
class Step:
    """One operation in terms of buffers."""

    kind: str
    reads: frozenset[int]
    makes: tuple[int, ...]


def peak_live_bytes(operations: Sequence[tf.Operation]) -> int:
    """Most bytes alive at a time while the operations run in this order; what nothing reads is gone at once.

    Args:
      operations: of one graph, each after those it needs. Tensors of unknown shape count nothing.
    """
    buffers = _Buffers()
    steps = [step for operation in operations if (step := buffers.step(operation))]
    return max(_live_bytes(steps, buffers.sizes), default=0)


def _live_bytes(steps: Sequence[Step], sizes: dict[int, int]) -> Iterator[int]:
    """Bytes alive while each step runs."""
    last_reader = {buffer: at for at, step in enumerate(steps) for buffer in (*step.makes, *step.reads)}
    dying = defaultdict(list)
    for buffer, at in last_reader.items():
        dying[at].append(buffer)
    live = 0
    for at, step in enumerate(steps):
        live += sum(sizes[b] for b in step.makes)
        overwritten = step.kind in _IN_PLACE and any(
            b in step.reads and sizes[b] == sizes[step.makes[0]] for b in dying[at]
        )
        yield live - (sizes[step.makes[0]] if overwritten else 0)
        live -= sum(sizes[b] for b in dying[at])


class _Buffers:
    """Numbers the buffers of a graph; tensors that share memory have one number."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        self._buffer: dict[Any, int | None] = {}
        self._same: dict[Any, Any] = {}
        """Tensor -> the first one that is computed from the same values in the same way."""
        self._first: dict[Any, tf.Operation] = {}

    def of(self, tensor: tf.Tensor) -> int | None:
        """None for what is not made in the pass."""
        return self._buffer[self._same[tensor.ref()]]

    def step(self, operation: tf.Operation) -> Step | None:
        """Enter an operation; None when it makes nothing that was not there."""
        first = self._first.setdefault(self._recipe(operation), operation)
        if first is not operation:
            self._same |= {a.ref(): b.ref() for a, b in zip(operation.outputs, first.outputs, strict=True)}
            return None
        reads = frozenset(b for x in operation.inputs if (b := self.of(x)) is not None)
        for place, tensor in enumerate(operation.outputs):
            self._same[tensor.ref()] = tensor.ref()
            self._buffer[tensor.ref()] = self._place(operation, place, tensor)
        makes = tuple(b for x in operation.outputs if (b := self.of(x)) is not None and b not in reads)
        return Step(operation.type, reads, makes) if reads or makes else None

    def _place(self, operation: tf.Operation, place: int, tensor: tf.Tensor) -> int | None:
        if operation.type in _NOT_OURS:
            return None
        if operation.type in _VIEWS or _is_whole(operation):
            return self.of(
                operation.inputs[min(place, len(operation.inputs) - 1) if operation.type == "IdentityN" else 0]
            )
        number = len(self.sizes)
        self.sizes[number] = (tensor.shape.num_elements() or 0) * tensor.dtype.size
        return number

    def _recipe(self, operation: tf.Operation) -> Any:
        """Equal for operations that compute the same; an operation with a state or no result is like no other."""
        if operation.op_def.is_stateful or operation.type == "Placeholder" or not operation.outputs:
            return operation.name
        attributes = operation.node_def.attr
        return (
            operation.type,
            tuple(self._same[x.ref()] for x in operation.inputs),
            frozenset(c.name for c in operation.control_inputs),
            tuple((k, attributes[k].SerializeToString()) for k in sorted(attributes) if not k.startswith("_")),
        )


def _is_whole(operation: tf.Operation) -> bool:
    """Stacking one tensor and taking a batch of one apart copy nothing."""
    if operation.type == "Pack":
        return len(operation.inputs) == 1
    return operation.type == "Unpack" and len(operation.outputs) == 1
