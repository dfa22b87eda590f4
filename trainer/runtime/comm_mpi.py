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
