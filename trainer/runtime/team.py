"""Ranks of which the first has work for all of them: arrays go out and come back, outside of any TensorFlow graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from mpi4py import MPI

Work = Callable[[np.ndarray], np.ndarray]


class Team:
    """This rank's team when every `size` consecutive ranks of COMM_WORLD form one. Made by all ranks together.

    Attributes:
      rank: this rank's place in the team.
    """

    def __init__(self, size: int) -> None:
        world = MPI.COMM_WORLD
        self._mpi = world.Split(world.Get_rank() // size, world.Get_rank())
        self.rank, self.size = self._mpi.Get_rank(), self._mpi.Get_size()

    def run(self, work: Work, parts: Sequence[np.ndarray], results: Sequence[np.ndarray]) -> None:
        """Have each rank do its work: what rank r makes of `parts[r]` is put into `results[r]`.

        On the first rank, while the others serve. Parts and results may be views of larger arrays.
        """
        others = range(1, self.size)
        for rank in others:
            part = np.ascontiguousarray(parts[rank])
            self._mpi.send((part.shape, part.dtype), rank)
            self._mpi.Send(part, rank)
        results[0][:] = work(parts[0])
        for rank in others:
            received = np.empty(results[rank].shape, results[rank].dtype)
            self._mpi.Recv(received, rank)
            results[rank][:] = received

    def serve(self, work: Work) -> None:
        """On the other ranks: do what the first one sends, until it dismisses them."""
        while (shape_and_type := self._mpi.recv(source=0)) is not None:
            part = np.empty(*shape_and_type)
            self._mpi.Recv(part, 0)
            self._mpi.Send(np.ascontiguousarray(work(part)), 0)

    def dismiss(self) -> None:
        """On the first rank: nothing more is to be done."""
        for rank in range(1, self.size):
            self._mpi.send(None, rank)
