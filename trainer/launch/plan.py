"""Which cores, how many threads and which GPU each rank of a node gets. Pure: numbers in, numbers out."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.errors import LaunchError
from trainer.launch.topology import Topology

SPARE_CORE_FROM = 8
"""Cores per rank from which one is left to the thread that exchanges gradients: it then costs an eighth or less. Below,
that thread shares the cores and yields while it waits, which on one core cost nothing measurable (spinning there cost
40-60 % of the step, shared/FACTS.md). Between the two nothing was measured."""


YIELD = "OMPI_MCA_mpi_yield_when_idle"
"""Variable by which Open MPI learns to yield while it waits."""

TCP_FLAGS = "OMPI_MCA_btl_tcp_flags"
"""Variable by which Open MPI learns how to send large messages over TCP. Its default, `put`, queues one whole: a rank's
leave for the other to send waits behind it, and messages go one way at a time (docs/distributed.md)."""


@dataclass(frozen=True)
class Threads:
    """How one rank uses its cores."""

    intra_op: int
    """TensorFlow's threads within an operation."""
    comm_cpu: int | None
    """Hardware thread for Horovod's background thread; None: it shares the others'."""

    @property
    def mpi_yields(self) -> bool:
        """Whether MPI gives the core away while it waits, instead of spinning on it."""
        return self.comm_cpu is None


@dataclass(frozen=True)
class RankPlan:
    """One rank's place on its node."""

    local_rank: int
    sockets: tuple[int, ...]
    cpus: tuple[int, ...]
    num_cores: int
    threads: Threads
    gpu: int | None


def plan_threads(topology: Topology, world_size: int) -> Threads:
    """Threads of one rank, from the CPUs it may use, all of which `topology` holds.

    Args:
      world_size: ranks of the run; a single one exchanges nothing.
    """
    cores = [core for socket in topology.sockets for core in topology.cores_of(socket)]
    if world_size == 1 or len(cores) < SPARE_CORE_FROM:
        return Threads(len(cores), None)
    return Threads(len(cores) - 1, topology.cpus_of(cores[-1:])[0])


def plan_node(
    topology: Topology, num_ranks: int | None = None, *, num_nodes: int = 1, cores_per_rank: int | None = None
) -> tuple[RankPlan, ...]:
    """Places for the ranks of one node: sockets are filled evenly, no rank crosses one, no core is shared.

    Args:
      num_ranks: ranks on this node; None: one per GPU where there are GPUs, else one per socket.
      num_nodes: nodes of this shape in the run; a run of one rank has nothing to exchange.
      cores_per_rank: None: as many as there are. A single rank with fewer than the node has stays on one socket.
    Raises:
      LaunchError: more ranks than cores, or a number that does not divide among the sockets.
    """
    sockets, num_gpus = topology.sockets, len(topology.gpu_numa)
    ranks = num_ranks or num_gpus or len(sockets)
    if ranks == 1 and cores_per_rank is None:
        return (_rank(topology, 0, sockets, [c for s in sockets for c in topology.cores_of(s)], num_nodes),)
    if ranks > 1 and ranks % len(sockets):
        better = max(len(sockets), ranks - ranks % len(sockets))
        raise LaunchError(
            f"{ranks} ranks do not divide among {len(sockets)} sockets: one would cross a socket or have fewer cores",
            where=topology.describe(),
            fix=f"use {better} or {better + len(sockets)} ranks",
        )
    per_socket = max(1, ranks // len(sockets))
    fewest = min(len(topology.cores_of(s)) for s in sockets)
    needed = per_socket * (cores_per_rank or 1)
    if needed > fewest:
        each = f" of {cores_per_rank} cores" if cores_per_rank else ""
        raise LaunchError(
            f"{ranks} ranks{each} are more than the {topology.num_cores} cores here, and ranks that share one wait",
            where=topology.describe(),
            fix=f"use at most {fewest // (cores_per_rank or 1) * len(sockets)} ranks on this node",
        )
    share = fewest // per_socket

    def cores(local_rank: int) -> list[int]:
        first = local_rank % per_socket * share
        return topology.cores_of(sockets[local_rank // per_socket])[first:][: cores_per_rank or share]

    places = [((sockets[r // per_socket],), cores(r)) for r in range(ranks)]
    return tuple(_rank(topology, r, socket, mine, ranks * num_nodes) for r, (socket, mine) in enumerate(places))


def _rank(topology: Topology, local_rank: int, sockets: tuple[int, ...], cores: list[int], world_size: int) -> RankPlan:
    cpus = topology.cpus_of(cores)
    num_gpus = len(topology.gpu_numa)
    return RankPlan(
        local_rank=local_rank,
        sockets=sockets,
        cpus=cpus,
        num_cores=len(cores),
        threads=plan_threads(topology.restricted(cpus), world_size),
        gpu=local_rank % num_gpus if num_gpus else None,
    )


def rank_environment(threads: Threads, local_size: int) -> dict[str, str]:
    """Variables that one rank's libraries read when they start.

    Sources: OMP/KMP as on the poster's launch line (shared/FACTS.md) and in Intel's guide to TensorFlow on CPUs; they
    steer OpenMP, which TensorFlow's own wheels do not use. HOROVOD_THREAD_AFFINITY is a list with one entry per local
    rank, of which each reads its own (horovod/common/common.cc).
    """
    environment = {
        "OMP_NUM_THREADS": str(threads.intra_op),
        "KMP_BLOCKTIME": "0",
        "KMP_AFFINITY": "granularity=fine,compact,1,0",
        YIELD: str(int(threads.mpi_yields)),
        TCP_FLAGS: "send,inplace",
    }
    if threads.comm_cpu is not None:
        environment["HOROVOD_THREAD_AFFINITY"] = ",".join([str(threads.comm_cpu)] * local_size)
    return environment
