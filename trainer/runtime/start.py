"""Start this process's communicator, with the environment that MPI, Horovod and the thread pools must find."""

from __future__ import annotations

import os
import sys
import time
from typing import Literal, NoReturn

from trainer.config.schema import HorovodConfig
from trainer.errors import CommError
from trainer.launch.plan import Threads, plan_threads, rank_environment
from trainer.launch.topology import allowed_cpus, read_topology
from trainer.runtime.comm import Comm, SingleComm
from trainer.runtime.libraries import require_one_mpi
from trainer.runtime.world import World, detect_world

CPUS_AT_START = frozenset(allowed_cpus())
"""Hardware threads this process was bound to before anything of ours, MPI or Horovod could change it."""


def my_threads() -> Threads:
    """How this rank uses the cores it was bound to; of a node whose ranks nothing bound, its share."""
    world, node = detect_world(os.environ) or World(), read_topology()
    mine = node.restricted(CPUS_AT_START)
    if mine == node and world.local_size > 1:
        return Threads(max(1, node.num_cores // world.local_size), comm_cpu=None)
    return plan_threads(mine, world.world_size)


def start_comm(
    backend: Literal["horovod", "mpi"], horovod: HorovodConfig | None = None, *, has_groups: bool = False
) -> Comm:
    """The communicator of this process: the named backend under an MPI launcher, else a single process.

    Args:
      has_groups: `Comm.group` will be asked for fewer ranks than all; Horovod must be told before it starts.
    Raises:
      CommError: the backend cannot be loaded, or disagrees with the launcher about the number of ranks.
    """
    world = detect_world(os.environ)
    if world is None:
        return SingleComm()
    for name, value in rank_environment(my_threads(), world.local_size).items():
        os.environ.setdefault(name, value)  # what a site or a user has set wins
    comm: Comm
    if backend == "horovod":
        from trainer.runtime.comm_horovod import HorovodComm

        comm = HorovodComm(horovod, has_groups=has_groups)
    else:
        from trainer.runtime.comm_mpi import MpiComm

        comm = MpiComm(world.local_rank, world.local_size)
    if comm.world_size != world.world_size:
        raise CommError(
            f"the launcher started {world.world_size} ranks but {backend} sees {comm.world_size}",
            where=f"rank {world.rank}",
            fix="use the mpirun of the MPI that Horovod was built with (`make setup` puts it in .venv/bin); where srun "
            "and that MPI do not understand each other, WIDEFIELD_LAUNCHER=mpirun; `widefield doctor` says more",
        )
    require_one_mpi()
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
