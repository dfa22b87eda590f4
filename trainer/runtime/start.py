"""Start this process's communicator, with the environment MPI and the thread pools must find."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import MutableMapping
from typing import Literal, NoReturn

from trainer.config.schema import HorovodConfig
from trainer.errors import CommError
from trainer.runtime.comm import Comm, SingleComm
from trainer.runtime.world import detect_world, threads_per_rank


def my_threads(environ: MutableMapping[str, str] | None = None) -> int:
    """Compute threads this rank should use, from its CPU affinity and the ranks it shares the node with."""
    world = detect_world(os.environ if environ is None else environ)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return threads_per_rank(cpus, os.cpu_count() or 1, world.local_size if world else 1)


def start_comm(backend: Literal["horovod", "mpi"], horovod: HorovodConfig | None = None) -> Comm:
    """The communicator of this process: the named backend under an MPI launcher, else a single process.

    Raises:
      CommError: the backend cannot be loaded, or disagrees with the launcher about the number of ranks.
    """
    world = detect_world(os.environ)
    if world is None:
        return SingleComm()
    if my_threads() == 1:
        # A rank with one core shares it with MPI's progress loop: spinning there cost 40-60 % of a step, yielding
        # nothing measurable (FACTS.md). MPI reads this at initialisation.
        os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
    comm: Comm
    if backend == "horovod":
        from trainer.runtime.comm_horovod import HorovodComm

        comm = HorovodComm(horovod)
    else:
        from trainer.runtime.comm_mpi import MpiComm

        comm = MpiComm(world.local_rank, world.local_size)
    if comm.world_size != world.world_size:
        raise CommError(
            f"the launcher started {world.world_size} ranks but {backend} sees {comm.world_size}",
            where=f"rank {world.rank}",
            fix="use the mpirun of the MPI that Horovod was built with (`make setup` puts it in .venv/bin)",
        )
    return comm


def stop_all_ranks(message: str, code: int) -> NoReturn:
    """Print one rank's last words and end every rank with exit status `code`.

    Where all ranks fail alike (a misspelt key), each would print the same: so rank 0 speaks at once and ends the
    others, which wait a moment in case it does.
    """
    world = detect_world(os.environ)
    if world is None or world.world_size == 1:
        print(message, file=sys.stderr, flush=True)
        sys.exit(code)
    if world.rank > 0:
        time.sleep(min(1.0 + 0.5 * world.rank, 10.0))
    print(f"[rank {world.rank}/{world.world_size} {os.uname().nodename}] {message}", file=sys.stderr, flush=True)
    _abort(code)


def _abort(code: int) -> NoReturn:
    try:
        import mpi4py

        mpi4py.rc.initialize = False  # never start MPI only to stop it
        from mpi4py import MPI

        if MPI.Is_initialized() and not MPI.Is_finalized():
            MPI.COMM_WORLD.Abort(code)
    finally:
        os._exit(code)  # without MPI the launcher ends the others when one exits with an error
