"""Where this process stands among the ranks, as arithmetic on what the launcher said. No MPI is started here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    """One rank's place: `0 <= rank < world_size`, `0 <= local_rank < local_size` on its node."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1


_LAUNCHERS = (
    # (rank, world size, local rank, local size): Open MPI's mpirun; MPICH, Intel MPI and Cray's; srun --mpi=pmix
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("PMIX_RANK", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
)


def detect_world(environ: Mapping[str, str]) -> World | None:
    """The rank layout a launcher put into the environment; None when no launcher started this process.

    `SLURM_PROCID` alone does not count: a batch script has it too, without being a rank.
    """
    for rank, world_size, local_rank, local_size in _LAUNCHERS:
        if rank in environ and world_size in environ:
            return World(
                int(environ[rank]),
                int(environ[world_size]),
                int(environ.get(local_rank, 0)),
                _first_number(environ.get(local_size, "1")),
            )
    return None


def _first_number(text: str) -> int:
    """Slurm writes tasks per node as `2(x4),1`; the first number is right for every node but perhaps the last."""
    digits = text.split("(")[0].split(",")[0]
    return int(digits) if digits.isdigit() else 1
