"""Collectives on Horovod: the only module that imports it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from trainer.config.schema import HorovodConfig
from trainer.errors import CommError
from trainer.quiet import quiet_stderr
from trainer.runtime.buckets import fill_buckets

try:
    with quiet_stderr():
        import horovod.tensorflow as hvd
        import tensorflow as tf
except ImportError as error:
    raise CommError(
        f"Horovod cannot be loaded: {error}",
        where="runtime.backend=horovod",
        fix="run `make setup` (or tools/build_horovod.sh), or use runtime.backend=mpi",
    ) from None

T = TypeVar("T")


class HorovodComm:
    def __init__(self, config: HorovodConfig | None = None, *, has_groups: bool = False) -> None:
        self._config = config or HorovodConfig()
        for name, value in horovod_environment(self._config).items():
            os.environ.setdefault(name, value)  # what a site or a user has set by hand wins
        if not hvd.mpi_built():
            raise CommError(
                "Horovod was built without MPI, so ranks that mpirun or srun starts would not find each other",
                where="runtime.backend=horovod",
                fix="build it again with mpicc on the PATH: tools/build_horovod.sh (or use runtime.backend=mpi)",
            )
        hvd.init(process_sets="dynamic" if has_groups else None)
        self._groups: dict[int, _HorovodGroup] = {}
        self.rank, self.world_size = hvd.rank(), hvd.size()
        self.local_rank, self.local_size = hvd.local_rank(), hvd.local_size()

    def allreduce(self, values: np.ndarray) -> np.ndarray:
        return hvd.allreduce(tf.constant(values), op=hvd.Sum).numpy()

    def broadcast(self, value: T) -> T:
        return hvd.broadcast_object(value, root_rank=0)

    def gather(self, value: T) -> list[T]:
        return hvd.allgather_object(value)

    def barrier(self) -> None:
        self.allreduce(np.zeros(1))  # Horovod 0.28's TensorFlow module exports no barrier

    def allreduce_gradients(self, gradients: Sequence[Any], compression: str, name: str = "gradients") -> list[Any]:
        codec = hvd.Compression.fp16 if compression == "fp16" else hvd.Compression.none
        if self._config.autotune and compression != "bf16":  # Horovod decides what travels together
            return [
                hvd.allreduce(g, op=hvd.Average, compression=codec, name=f"{name}_{i}") for i, g in enumerate(gradients)
            ]
        sizes = [4 * g.shape.num_elements() for g in gradients]
        reduced: list[Any] = [None] * len(sizes)
        for number, bucket in enumerate(fill_buckets(sizes, self._config.bucket_mb * 1e6)):
            tensors, label = [gradients[i] for i in bucket], f"{name}_{number}"
            if compression == "bf16":
                means = self._bf16_mean(tensors, label)
            else:
                means = hvd.grouped_allreduce(tensors, op=hvd.Average, compression=codec, name=label)
            for position, mean in zip(bucket, means, strict=True):
                reduced[position] = mean
        return reduced

    def _bf16_mean(self, gradients: Sequence[Any], name: str) -> list[Any]:
        """Horovod 0.28 knows no bfloat16, so its bits travel as uint16 in one flat buffer: an all-to-all brings every
        rank its slice of all, summed in float32, and an all-gather spreads the means. The bytes on the wire are those
        of a ring all-reduce."""
        sizes = [g.shape.num_elements() for g in gradients]
        share = -(-sum(sizes) // self.world_size)
        flat = tf.concat([tf.reshape(tf.cast(g, tf.bfloat16), [-1]) for g in gradients], axis=0)
        flat = tf.pad(flat, [[0, share * self.world_size - sum(sizes)]])
        slices, _ = hvd.alltoall(
            tf.bitcast(flat, tf.uint16), splits=tf.fill([self.world_size], share), name=f"{name}_slices"
        )
        slices = tf.cast(tf.bitcast(tf.reshape(slices, [self.world_size, share]), tf.bfloat16), tf.float32)
        mean = tf.cast(tf.reduce_sum(slices, axis=0) / self.world_size, tf.bfloat16)
        whole = tf.bitcast(hvd.allgather(tf.bitcast(mean, tf.uint16), name=f"{name}_means"), tf.bfloat16)
        parts = tf.split(whole[: sum(sizes)], sizes)
        return [tf.reshape(tf.cast(p, g.dtype), g.shape) for p, g in zip(parts, gradients, strict=True)]

    def allreduce_tensor(self, tensor: Any) -> Any:
        return hvd.allreduce(tensor, op=hvd.Sum)

    def broadcast_variables(self, variables: Sequence[Any]) -> None:
        hvd.broadcast_variables(variables, root_rank=0)

    def group(self, size: int) -> _HorovodGroup:
        if size not in self._groups:
            sets = {
                first: hvd.add_process_set(range(first, first + size))
                if size < self.world_size
                else hvd.global_process_set
                for first in range(0, self.world_size, size)
            }
            self._groups[size] = _HorovodGroup(sets[self.rank // size * size], self.rank % size, size)
        return self._groups[size]


class _HorovodGroup:
    def __init__(self, members: hvd.ProcessSet, rank: int, size: int) -> None:
        self._members, self.rank, self.size = members, rank, size
        self._zero = tf.Variable(0, trainable=False)
        """No optimiser knows it. TensorFlow runs what depends on constants alone while it prepares a graph, once: there
        a rank with nothing to send would wait for ever for one that is already computing."""

    def swap(self, up: Any, down: Any, name: str) -> tuple[Any, Any]:
        has_above, has_below = self.rank > 0, self.rank + 1 < self.size
        sent = [(self.rank - 1, up)] * has_above + [(self.rank + 1, down)] * has_below
        splits = [0] * self.size
        for receiver, tensor in sent:
            splits[receiver] = tensor.shape.num_elements()
        flat = tf.concat([tf.reshape(tensor, [-1]) for _, tensor in sent], 0)
        dtype = flat.dtype
        if dtype == tf.bfloat16:  # Horovod 0.28 knows no bfloat16
            flat = tf.bitcast(flat, tf.uint16)
        received, sizes = hvd.alltoall(
            flat, splits + self._zero, name=name, ignore_name_scope=True, process_set=self._members
        )
        if dtype == tf.bfloat16:
            received = tf.bitcast(received, dtype)
        # Nobody sends to itself. A zero that is known only then: TensorFlow would leave out an exchange in which this
        # rank only sends.
        zero = tf.cast(sizes[self.rank], dtype)
        from_above, from_below = tf.fill(down.shape, zero), tf.fill(up.shape, zero)
        size_above = down.shape.num_elements() if has_above else 0
        if has_above:
            from_above = tf.reshape(received[:size_above], down.shape)
        if has_below:
            from_below = tf.reshape(received[size_above:], up.shape)
        return from_above, from_below

    def sum(self, tensor: Any, name: str) -> Any:
        unknown = tensor + tf.cast(self._zero, tensor.dtype)
        return hvd.allreduce(unknown, op=hvd.Sum, name=name, ignore_name_scope=True, process_set=self._members)


def horovod_environment(config: HorovodConfig) -> dict[str, str]:
    """What Horovod reads when it starts. A bucket is neither split nor joined with another."""
    return {
        "HOROVOD_CYCLE_TIME": str(config.cycle_ms),
        "HOROVOD_FUSION_THRESHOLD": str(int(config.bucket_mb * 1e6)),
        "HOROVOD_AUTOTUNE": str(int(config.autotune)),
        "HOROVOD_DISABLE_GROUP_FUSION": str(int(not config.autotune)),
    }
