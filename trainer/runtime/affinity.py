"""Where ranks really run, read after start-up on each of them, and what is wrong with that.

What the launcher was told, what it did, and what MPI and Horovod left of it are three things (Horovod issues #2295
and #2804), and a wrong placement costs factors without a word.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, groupby
from pathlib import Path
from typing import Any

from trainer.launch.plan import YIELD
from trainer.launch.ranges import ranges
from trainer.launch.topology import allowed_cpus, read_topology

_TASKS = Path("/proc/self/task")


@dataclass(frozen=True)
class Placement:
    """One rank, as it is in effect."""

    rank: int
    host: str
    local_rank: int
    cpus: tuple[int, ...]
    """Hardware threads that the process may run on."""
    cpus_at_start: tuple[int, ...]
    """The same before MPI and Horovod started."""
    thread_cpus: tuple[int, ...]
    """Hardware threads that any thread of the process may run on; Horovod's own thread may be bound apart."""
    cores: tuple[int, ...]
    sockets: tuple[int, ...]
    numa: tuple[int, ...]
    node_cores: int
    """Physical cores of the whole node."""
    node_sockets: int
    intra_op_threads: int
    inter_op_threads: int
    comm_cpu: int | None
    """Hardware thread that Horovod's thread was asked to stay on."""
    mpi_yields: bool
    gpu: str | None
    """The GPU this rank uses, as the driver counts."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def my_placement(
    rank: int,
    local_rank: int,
    cpus_at_start: Iterable[int],
    intra_op_threads: int,
    inter_op_threads: int,
    gpu: str | None = None,
) -> Placement:
    """This process's placement, read from the kernel now."""
    node, cpus = read_topology(), allowed_cpus()
    mine = node.restricted(cpus)
    comm_cpu = os.environ.get("HOROVOD_THREAD_AFFINITY", "").split(",")[0]
    return Placement(
        rank=rank,
        host=socket.gethostname(),
        local_rank=local_rank,
        cpus=tuple(sorted(cpus)),
        cpus_at_start=tuple(sorted(cpus_at_start)),
        thread_cpus=tuple(sorted(cpus.union(*_masks_of_threads()))),
        cores=tuple(sorted({c.core for c in mine.cpus})),
        sockets=mine.sockets,
        numa=tuple(sorted({c.numa for c in mine.cpus})),
        node_cores=len({c.core for c in node.cpus}),
        node_sockets=len(node.sockets),
        intra_op_threads=intra_op_threads,
        inter_op_threads=inter_op_threads,
        comm_cpu=int(comm_cpu) if comm_cpu.isdigit() else None,
        mpi_yields=os.environ.get(YIELD) == "1",
        gpu=gpu,
    )


def gpu_of(rank: int, index: int, visible: str) -> str:
    """The GPU of a rank, as the driver counts them.

    Args:
      index: the one it was given, as TensorFlow counts them.
      visible: CUDA_VISIBLE_DEVICES.
    """
    names = [name for name in visible.split(",") if name]
    if len(names) == 1:  # a job manager may give each rank another GPU under the same number
        return f"{names[0]} given to rank {rank}"
    return names[index] if index < len(names) else str(index)


def _masks_of_threads() -> Iterator[set[int]]:
    for task in _TASKS.iterdir() if _TASKS.is_dir() else ():
        try:
            yield os.sched_getaffinity(int(task.name))
        except ProcessLookupError:  # it has ended meanwhile
            continue


def problems_of(placements: Sequence[Placement]) -> list[str]:
    """What makes ranks slow each other down, worst first; empty where the placement is right. Pure.

    A single rank has nobody to disturb and nothing to be checked for but its own threads.
    """
    problems: list[str] = []
    for host, group in groupby(sorted(placements, key=lambda p: (p.host, p.rank)), key=lambda p: p.host):
        ranks = list(group)
        problems += _shared_cores(host, ranks)
        problems += _shared_gpus(host, ranks)
        if len(placements) > 1:
            problems += _wide_ranks(host, ranks)
        problems += _too_many_threads(host, ranks)
        problems += _moved(host, ranks)
    return problems + _unequal(placements)


def _shared_cores(host: str, ranks: Sequence[Placement]) -> list[str]:
    pairs = [(a, b) for a, b in combinations(ranks, 2) if set(a.cores) & set(b.cores)]
    if not pairs:
        return []
    names = sorted({p.rank for pair in pairs for p in pair})
    shared = set.union(*(set(a.cpus) & set(b.cpus) or {*a.cpus, *b.cpus} for a, b in pairs))
    return [f"{host}: ranks {ranges(names)} share cores (CPUs {ranges(shared)}): each waits while the other computes"]


def _shared_gpus(host: str, ranks: Sequence[Placement]) -> list[str]:
    gpus = [p.gpu for p in ranks if p.gpu is not None]
    twice = sorted({g for g in gpus if gpus.count(g) > 1})
    return [f"{host}: {len(gpus)} ranks use {len(set(gpus))} GPUs; shared: {', '.join(twice)}"] if twice else []


def _wide_ranks(host: str, ranks: Sequence[Placement]) -> list[str]:
    wide = [p for p in ranks if len(p.sockets) > 1]
    if not wide:
        return []
    return [
        f"{host}: rank(s) {ranges(p.rank for p in wide)} run on sockets {ranges(wide[0].sockets)}: memory of the other "
        "socket is slow to reach"
    ]


def _too_many_threads(host: str, ranks: Sequence[Placement]) -> list[str]:
    return [
        f"{host}: rank {p.rank} computes with {p.intra_op_threads} threads on {len(p.cpus)} hardware threads"
        for p in ranks
        if p.intra_op_threads > len(p.cpus)
    ]


def _moved(host: str, ranks: Sequence[Placement]) -> list[str]:
    return [
        f"{host}: rank {p.rank} was bound to CPUs {ranges(p.cpus_at_start)}, and MPI or Horovod moved it to "
        f"{ranges(p.cpus)} when it started"
        for p in ranks
        if p.cpus != p.cpus_at_start
    ]


def _unequal(placements: Sequence[Placement]) -> list[str]:
    cores = {len(p.cores): p for p in placements}
    if len(cores) < 2:
        return []
    few, many = cores[min(cores)], cores[max(cores)]
    return [
        f"rank {few.rank} on {few.host} has {len(few.cores)} core(s) and rank {many.rank} on {many.host} "
        f"{len(many.cores)}: every step waits for the slowest"
    ]


def idle_cores(placements: Sequence[Placement]) -> str | None:
    """A remark where ranks leave most of a node's cores without work, as mpirun's default binding does."""
    for host, group in groupby(sorted(placements, key=lambda p: (p.host, p.rank)), key=lambda p: p.host):
        ranks = list(group)
        used = set().union(*(p.cores for p in ranks))
        if len(ranks) > 1 and len(used) <= ranks[0].node_cores // 2:
            return f"{host}: {len(ranks)} ranks use {len(used)} of {ranks[0].node_cores} cores"
    return None


def table(placements: Sequence[Placement]) -> str:
    """One line per rank, for people."""
    rows = [("rank", "host", "CPUs", "socket", "NUMA", "threads", "all-reduce on", "MPI waits by", "GPU")]
    for p in placements:
        comm = "shared cores" if p.comm_cpu is None else f"CPU {p.comm_cpu}"
        rows.append(
            (
                str(p.rank),
                p.host,
                ranges(p.cpus),
                ranges(p.sockets),
                ranges(p.numa),
                f"{p.intra_op_threads} + {p.inter_op_threads}",
                comm,
                "yielding" if p.mpi_yields else "spinning",
                p.gpu or "-",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
