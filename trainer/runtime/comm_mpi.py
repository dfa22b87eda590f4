"""Collectives on mpi4py alone: for work without TensorFlow (`index`), and for training where there is no Horovod."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from mpi4py import MPI

T = TypeVar("T")


class MpiComm:
    def __init__(self, local_rank: int = 0, local_size: int = 1) -> None:
        self._mpi = MPI.COMM_WORLD
        self._groups: dict[int, _MpiGroup] = {}
        self.rank, self.world_size = self._mpi.Get_rank(), self._mpi.Get_size()
        self.local_rank, self.local_size = local_rank, local_size

    def allreduce(self, values: np.ndarray) -> np.ndarray:
        total = np.empty_like(values)
        self._mpi.Allreduce(np.ascontiguousarray(values), total, op=MPI.SUM)
        return total

    def broadcast(self, value: T) -> T:
        return self._mpi.bcast(value, root=0)

    def gather(self, value: T) -> list[T]:
        return self._mpi.allgather(value)

    def barrier(self) -> None:
        self._mpi.Barrier()

    def allreduce_gradients(self, gradients: Sequence[Any], compression: str, name: str = "gradients") -> list[Any]:
        """One flat buffer: each rank sums its slice in float32 (all-to-all), then all gather the slices."""
        import tensorflow as tf

        wire = {"none": np.float32, "fp16": np.float16, "bf16": tf.bfloat16.as_numpy_dtype}[compression]
        flat = tf.concat([tf.reshape(tf.cast(g, tf.float32), [-1]) for g in gradients], axis=0)
        mean = tf.numpy_function(lambda a: self._mean(a, wire), [flat], tf.float32)
        mean.set_shape(flat.shape)
        parts = tf.split(mean, [g.shape.num_elements() for g in gradients])
        return [tf.reshape(tf.cast(p, g.dtype), g.shape) for p, g in zip(parts, gradients, strict=True)]

    def _mean(self, flat: np.ndarray, wire: Any) -> np.ndarray:
        share = -(-flat.size // self.world_size)
        send = np.zeros(share * self.world_size, wire)
        send[: flat.size] = flat.astype(wire)
        received = np.empty_like(send)
        self._mpi.Alltoall([send.view(np.uint8), MPI.BYTE], [received.view(np.uint8), MPI.BYTE])
        total = received.reshape(self.world_size, share).astype(np.float32).sum(axis=0)
        mine = (total / self.world_size).astype(wire)
        everyone = np.empty_like(send)
        self._mpi.Allgather([mine.view(np.uint8), MPI.BYTE], [everyone.view(np.uint8), MPI.BYTE])
        return everyone[: flat.size].astype(np.float32)

    def allreduce_tensor(self, tensor: Any) -> Any:
        import tensorflow as tf

        @tf.custom_gradient
        def summed(x: Any) -> Any:
            def reduce(t: Any) -> Any:
                out = tf.numpy_function(self.allreduce, [t], t.dtype)
                out.set_shape(t.shape)
                return out

            return reduce(x), reduce

        return summed(tensor)

    def broadcast_variables(self, variables: Sequence[Any]) -> None:
        for variable in variables:
            variable.assign(self._mpi.bcast(variable.numpy(), root=0))

    def group(self, size: int) -> _MpiGroup:
        if size not in self._groups:
            self._groups[size] = _MpiGroup(self._mpi.Split(self.rank // size, self.rank))
        return self._groups[size]


class _MpiGroup:
    def __init__(self, members: MPI.Comm) -> None:
        self._mpi = members
        self.rank, self.size = members.Get_rank(), members.Get_size()

    def swap(self, up: Any, down: Any, name: str) -> tuple[Any, Any]:
        import tensorflow as tf

        from_above, from_below = tf.numpy_function(self._swap, [up, down], [down.dtype, up.dtype], name=name)
        return tf.ensure_shape(from_above, down.shape), tf.ensure_shape(from_below, up.shape)

    def _swap(self, up: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        above = self.rank - 1 if self.rank > 0 else MPI.PROC_NULL
        below = self.rank + 1 if self.rank + 1 < self.size else MPI.PROC_NULL
        from_above, from_below = np.zeros_like(down), np.zeros_like(up)
        self._mpi.Sendrecv(_bytes(up), above, recvbuf=_bytes(from_below), source=below)
        self._mpi.Sendrecv(_bytes(down), below, recvbuf=_bytes(from_above), source=above)
        return from_above, from_below

    def sum(self, tensor: Any, name: str) -> Any:
        import tensorflow as tf

        return tf.ensure_shape(tf.numpy_function(self._sum, [tensor], tensor.dtype, name=name), tensor.shape)

    def _sum(self, values: np.ndarray) -> np.ndarray:
        total = np.empty_like(values)
        self._mpi.Allreduce(np.ascontiguousarray(values), total, op=MPI.SUM)
        return total


def _bytes(array: np.ndarray) -> list[Any]:
    return [np.ascontiguousarray(array).view(np.uint8).reshape(-1), MPI.BYTE]
