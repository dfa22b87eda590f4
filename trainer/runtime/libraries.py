"""Which MPI libraries this process has loaded: two of them is a classic, and neither knows the other's ranks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from trainer.errors import CommError

_MAPS = Path("/proc/self/maps")
_LIBRARY = re.compile(r"/lib(?:mpi|mpich|mpi_[a-z]+|mpi_abi)\.so[.\d]*$")


def mpi_libraries(mapped: Iterable[str]) -> list[str]:
    """Paths of MPI's own libraries among mapped files, each once."""
    return sorted({path for path in mapped if _LIBRARY.search(path)})


def loaded_mpi_libraries() -> list[str]:
    """Of this process; empty where the system does not tell (macOS)."""
    if not _MAPS.exists():
        return []
    return mpi_libraries(line.split(maxsplit=5)[-1].strip() for line in _MAPS.read_text().splitlines() if "/" in line)


def require_one_mpi(found: list[str] | None = None) -> None:
    """Refuse to go on with two MPIs in one process.

    Raises:
      CommError: names both.
    """
    found = loaded_mpi_libraries() if found is None else found
    if len(found) > 1:
        raise CommError(
            f"two MPI libraries are loaded, and each counts ranks for itself: {' and '.join(found)}",
            where="mpi4py and Horovod",
            fix="build both with the same mpicc: with the site's modules loaded, rm -rf .venv && make setup MPI=system",
        )
