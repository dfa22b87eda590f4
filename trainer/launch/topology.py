"""The shape of a node: hardware threads, cores, sockets, NUMA domains and GPUs.

The text form is that of `lscpu -p=CPU,CORE,SOCKET,NODE`, with a line `gpu,INDEX,NODE` for each GPU. So a node's shape
can be recorded there (`widefield doctor --topology`) and planned for on a laptop.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from trainer.errors import LaunchError

_NVIDIA = Path("/proc/driver/nvidia/gpus")
_PCI = Path("/sys/bus/pci/devices")


@dataclass(frozen=True, order=True)
class Cpu:
    """One hardware thread. `core` is unique on the node, not only in its socket."""

    socket: int
    numa: int
    core: int
    cpu: int


@dataclass(frozen=True)
class Topology:
    """A node, or the part of it that a process may use."""

    cpus: tuple[Cpu, ...]
    """Ordered by socket, NUMA domain, core and hardware thread."""
    gpu_numa: tuple[int, ...] = ()
    """NUMA domain of each GPU, by its index; -1 where the system does not know."""

    @property
    def sockets(self) -> tuple[int, ...]:
        return tuple(sorted({c.socket for c in self.cpus}))

    @property
    def num_cores(self) -> int:
        return len({c.core for c in self.cpus})

    def cores_of(self, socket: int) -> list[int]:
        """Physical cores of a socket, NUMA domain by NUMA domain."""
        return list(dict.fromkeys(c.core for c in self.cpus if c.socket == socket))

    def cpus_of(self, cores: Iterable[int]) -> tuple[int, ...]:
        """All hardware threads of some cores, ascending."""
        wanted = set(cores)
        return tuple(sorted(c.cpu for c in self.cpus if c.core in wanted))

    def restricted(self, cpus: Iterable[int]) -> Topology:
        """What is left of the node for a process that may use these hardware threads only."""
        allowed = set(cpus)
        return Topology(tuple(c for c in self.cpus if c.cpu in allowed), self.gpu_numa)

    def describe(self) -> str:
        """'2 sockets x 24 cores, 2 threads a core, 4 NUMA domains, 4 GPUs'."""
        cores = {len(self.cores_of(s)) for s in self.sockets}
        threads, num_cores = len(self.cpus), self.num_cores
        numa = len({c.numa for c in self.cpus})
        parts = [f"{_count(len(self.sockets), 'socket')} x {_count(max(cores), 'core')}"]
        if len(cores) > 1:
            parts = [f"{_count(len(self.sockets), 'socket')} with {' and '.join(map(str, sorted(cores)))} cores"]
        parts += [f"{threads // num_cores} threads a core"] if threads > num_cores else []
        parts += [f"{numa} NUMA domains"] if numa > len(self.sockets) else []
        parts += [_count(len(self.gpu_numa), "GPU")] if self.gpu_numa else []
        return ", ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")


def parse_topology(text: str, where: str = "lscpu") -> Topology:
    """A topology from its text form.

    Raises:
      LaunchError: a line is of another form, or there is no CPU; names `where`.
    """
    cpus, gpus = [], {}
    for line in text.splitlines():
        fields = line.split("#")[0].strip().split(",")
        if fields == [""]:
            continue
        try:
            if fields[0] == "gpu":
                _, index, numa = fields
                gpus[int(index)] = int(numa)
            else:
                cpu, core, socket, *node = (int(f) if f else 0 for f in fields[:4])
                cpus.append(Cpu(socket, node[0] if node else 0, core, cpu))
        except ValueError:
            raise LaunchError(
                f"'{line}' is neither CPU,CORE,SOCKET,NODE nor gpu,INDEX,NODE",
                where=where,
                fix="record the node with `widefield doctor --topology > FILE`",
            ) from None
    if not cpus:
        raise LaunchError("no CPU is listed", where=where, fix="record the node with `widefield doctor --topology`")
    return Topology(tuple(sorted(cpus)), tuple(gpus[i] for i in sorted(gpus)))


def format_topology(topology: Topology) -> str:
    """The text that `parse_topology` reads back."""
    lines = ["# CPU,CORE,SOCKET,NODE"]
    lines += [f"{c.cpu},{c.core},{c.socket},{c.numa}" for c in sorted(topology.cpus, key=lambda c: c.cpu)]
    return "\n".join([*lines, *(f"gpu,{i},{numa}" for i, numa in enumerate(topology.gpu_numa))]) + "\n"


@cache  # read once, before MPI starts: a process should not fork afterwards
def read_topology() -> Topology:
    """The whole of this node, from lscpu (/sys) and NVIDIA's driver. Without lscpu: all cores in one socket."""
    try:
        listed = subprocess.run(
            ["lscpu", "-p=CPU,CORE,SOCKET,NODE"], capture_output=True, text=True, check=True, timeout=20
        ).stdout
    except (OSError, subprocess.SubprocessError):
        listed = "\n".join(f"{i},{i},0,0" for i in range(os.cpu_count() or 1))
    return Topology(parse_topology(listed).cpus, _read_gpus())


def allowed_cpus() -> set[int]:
    """Hardware threads that this process may use; all where the system does not bind processes (macOS)."""
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def my_topology() -> Topology:
    """What this process may use of its node: a job or a container may have been given a part."""
    return read_topology().restricted(allowed_cpus())


def _read_gpus() -> tuple[int, ...]:
    """NUMA domains of the GPUs in the order of their PCI addresses, which is that of their indices."""
    addresses = sorted(p.name for p in _NVIDIA.iterdir()) if _NVIDIA.is_dir() else []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:  # Slurm sets it where a job was given some of the GPUs
        addresses = addresses[: len([v for v in visible.split(",") if v.strip()])]
    return tuple(_numa_of(address) for address in addresses)


def _numa_of(address: str) -> int:
    try:
        return int((_PCI / address.lower() / "numa_node").read_text())
    except (OSError, ValueError):
        return -1
