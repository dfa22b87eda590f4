"""The collectives Widefield needs, their single-process form, and work done by rank 0 for all.

Every collective is called by every rank in the same order. Arrays are summed; who wants a mean divides sums by counts
once, afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from trainer.errors import CommError

T = TypeVar("T")


class Comm(Protocol):
    rank: int
    world_size: int
    local_rank: int
    local_size: int

    def allreduce(self, values: np.ndarray) -> np.ndarray:
        """Sum over ranks of one array, same shape and dtype on each."""

    def broadcast(self, value: T) -> T:
        """Rank 0's object, on every rank."""

    def gather(self, value: T) -> list[T]:
        """Every rank's object in rank order, on every rank."""

    def barrier(self) -> None: ...

    def allreduce_gradients(self, gradients: Sequence[Any], compression: str, name: str = "gradients") -> list[Any]:
        """Mean over ranks of each float32 tensor, cast on the wire as `compression` says (none | fp16 | bf16).

        Inside a tf.function. What is called twice in one step has two names.
        """

    def allreduce_tensor(self, tensor: Any) -> Any:
        """Differentiable sum over ranks of a small float32 tensor, inside a tf.function."""

    def broadcast_variables(self, variables: Sequence[Any]) -> None:
        """Overwrite each variable by rank 0's."""

    def group(self, size: int) -> Group:
        """This rank's group when every `size` consecutive ranks form one. A collective when first asked for a size."""


class Group(Protocol):
    """Consecutive ranks that share one patch: each has a slab of its rows, the first one the uppermost."""

    rank: int
    """This rank's place in the group."""
    size: int

    def swap(self, up: Any, down: Any, name: str) -> tuple[Any, Any]:
        """Send `up` to the rank above and `down` to the one below; what they sent here, from above and from below.

        Inside a tf.function; without a gradient. All ranks of the group pass tensors of the same two shapes, and get
        from above one like `down`, from below one like `up`: zeros where there is no rank.
        """

    def sum(self, tensor: Any, name: str) -> Any:
        """Sum over the group of a small float32 tensor, inside a tf.function; without a gradient."""


class SingleComm:
    """One process: every collective is the identity."""

    rank, world_size, local_rank, local_size = 0, 1, 0, 1

    def allreduce(self, values: np.ndarray) -> np.ndarray:
        return values

    def broadcast(self, value: T) -> T:
        return value

    def gather(self, value: T) -> list[T]:
        return [value]

    def barrier(self) -> None:
        pass

    def allreduce_gradients(self, gradients: Sequence[Any], compression: str, name: str = "gradients") -> list[Any]:
        return list(gradients)

    def allreduce_tensor(self, tensor: Any) -> Any:
        return tensor

    def broadcast_variables(self, variables: Sequence[Any]) -> None:
        pass

    def group(self, size: int) -> Group:
        raise CommError(f"a single process cannot share a patch with {size - 1} others")


def on_root(comm: Comm, work: Callable[[], T]) -> T:
    """Do `work` on rank 0 and give its result, or raise its exception, on every rank: nobody waits for ever."""
    outcome: tuple[Any, Exception | None] = (None, None)
    if comm.rank == 0:
        try:
            outcome = (work(), None)
        except Exception as error:
            outcome = (None, error)
    value, failure = comm.broadcast(outcome)
    if failure is not None:
        raise failure
    return value
