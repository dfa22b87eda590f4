"""Is there room on disk and in memory, and does the file system lock files?"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

import psutil

from trainer.doctor.finding import Finding
from trainer.runtime.memory import rank_memory_bytes

SHARED = Path("/dev/shm")
LEAST_SHARED_BYTES = 256 << 20
"""Open MPI's ranks of a node exchange through it. Chosen, not measured; containers often have 64 MiB."""
LEAST_DISK_BYTES = 5 << 30
"""Room for a dozen checkpoints: 26.7 M parameters (ResNet-50) with Adam's two moments are 0.32 GB."""
LEAST_MEMORY_BYTES = 2 << 30
"""For each rank. Chosen, not measured: below it no network of use trains."""


def storage_findings(output: Path | None, local_size: int) -> list[Finding]:
    """Space and memory of this node now.

    Args:
      output: run directory that is to be written; need not exist.
      local_size: ranks on this node.
    """
    findings = [memory_finding(psutil.virtual_memory().available, rank_memory_bytes(None, local_size), local_size)]
    if SHARED.is_dir():
        findings.append(
            space_finding(
                "shared memory", str(SHARED), _free(SHARED), LEAST_SHARED_BYTES,
                "remove what ended jobs left there, or start the container with --shm-size=1g",
            )
        )  # fmt: skip
    scratch = Path(tempfile.gettempdir())
    findings.append(
        space_finding("disk", f"TMPDIR {scratch}", _free(scratch), LEAST_DISK_BYTES, "export TMPDIR=/a/larger/folder")
    )
    return [*findings, *(_output_findings(output) if output else [])]


def memory_finding(available_bytes: int, rank_bytes: int, local_size: int) -> Finding:
    """How much is free, and what a rank may plan with.

    Args:
      rank_bytes: a rank's share of all that node or job has.
    """
    ranks = f" ({local_size} ranks here)" if local_size > 1 else ""
    free_bytes = min(available_bytes, rank_bytes * local_size)  # a job may be given less than the node has
    text = f"{_size(free_bytes)} free; a rank's share of all is {_size(rank_bytes)}{ranks}"
    if free_bytes < LEAST_MEMORY_BYTES * local_size:
        return Finding("memory", "warning", text, "end other programs, or start fewer ranks")
    return Finding("memory", "ok", text)


def space_finding(topic: str, where: str, free_bytes: int, least_bytes: int, fix: str) -> Finding:
    """A file system's free space; a warning below `least_bytes`."""
    if free_bytes >= least_bytes:
        return Finding(topic, "ok", f"{where}: {_size(free_bytes)} free")
    return Finding(topic, "warning", f"{where}: {_size(free_bytes)} free, less than {_size(least_bytes)}", fix)


def lock_finding(folder: Path, has_locks: bool) -> Finding:
    if has_locks:
        return Finding("locks", "ok", f"{folder}: files can be locked")
    return Finding(
        "locks",
        "warning",
        f"{folder}: no file locks, so nothing keeps two runs from writing the same run directory",
        "give each run its own output=; on Lustre, have the site mount it with -o flock",
    )


def has_locks(folder: Path) -> bool:
    """Whether `trainer.locking` would lock a file there: tried on one without a name."""
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def _output_findings(output: Path) -> list[Finding]:
    folder = next(p for p in (output.absolute(), *output.absolute().parents) if p.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        return [Finding("disk", "error", f"output {output}: {folder} cannot be written", "output=SOME/OTHER/DIR")]
    space = space_finding(
        "disk", f"output {output}", _free(folder), LEAST_DISK_BYTES, "free some, or output=SOME/OTHER/DISK"
    )
    try:
        return [space, lock_finding(folder, has_locks(folder))]
    except OSError as error:  # a quota, a full disk
        return [space, Finding("disk", "error", f"output {output}: no file can be made: {error}", "output=OTHER/DIR")]


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"
