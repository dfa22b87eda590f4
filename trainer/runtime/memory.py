"""How much memory a rank may take."""

from __future__ import annotations

import ctypes
from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")


def rank_memory_bytes(configured_gb: float | None, local_size: int) -> int:
    """What was configured for one rank, else its share of what this node, or the job's cgroup on it, has."""
    if configured_gb is not None:
        return int(configured_gb * 1e9)
    return min([psutil.virtual_memory().total, *_cgroup_limits()]) // local_size


def give_back_free_memory() -> None:
    """Hand free memory that the C library keeps between blocks in use back to the system; where there is glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def _cgroup_limits() -> list[int]:
    """Limits in bytes of this process's cgroup and those above it, in both versions of Linux's cgroups."""
    files = []
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        number, controllers, path = line.split(":", 2)
        folder, name = (_CGROUPS, "memory.max") if number == "0" else (_CGROUPS / "memory", "memory.limit_in_bytes")
        if number == "0" or controllers == "memory":
            own = Path(path.lstrip("/"))
            files += [folder / parent / name for parent in (own, *own.parents)]
    return [int(text) for text in map(_read, files) if text.isdigit()]


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
