"""The command line that starts ranks here: what this machine, its job and its MPI are, put together."""

from __future__ import annotations

import os
from collections.abc import Callable

from trainer.errors import LaunchError
from trainer.launch.commands import Layout, choose_launcher, mpi_of, mpirun_command, pmi_of, srun_command
from trainer.launch.plan import plan_node
from trainer.launch.slurm import Job, current_job, mpirun_version, srun_protocols, step_works
from trainer.launch.topology import my_topology


def launcher_command(
    ranks: int | None, launcher: str, say: Callable[[str], None], cores_per_rank: int | None = None
) -> list[str]:
    """srun or mpirun with its options, for this machine or for the Slurm job that this is.

    Args:
      ranks: on all nodes together; None: one per GPU, or per socket where there are none.
      launcher: auto, srun or mpirun.
      say: is told the plan.
      cores_per_rank: None: as many as there are.
    Raises:
      LaunchError: the ranks cannot be placed, or nothing can start them.
    """
    job, layout = current_job(os.environ), layout_here(ranks, cores_per_rank)
    say(layout.describe())
    mpi = mpi_of(mpirun_version())
    if launcher == "auto":
        protocol = pmi_of(mpi)
        launcher = choose_launcher(mpi, srun_protocols(), step_works(protocol)) if job else "mpirun"
    if launcher == "mpirun":
        return mpirun_command(layout, mpi)
    return srun_command(layout, pmi_of(mpi), _require_job(job).cpus_per_node)


def layout_here(ranks: int | None, cores_per_rank: int | None = None) -> Layout:
    """Ranks over the nodes of this Slurm job, or on this machine.

    Raises:
      LaunchError: they cannot be placed.
    """
    job, topology = current_job(os.environ), my_topology()
    num_nodes = job.num_nodes if job else 1
    if ranks is not None and (ranks < 1 or ranks % num_nodes):
        raise LaunchError(
            f"{ranks} ranks do not divide among {num_nodes} node(s)", where="--ranks", fix="leave --ranks out"
        )
    of_node = ranks // num_nodes if ranks else None
    return Layout(num_nodes, plan_node(topology, of_node, num_nodes=num_nodes, cores_per_rank=cores_per_rank), topology)


def _require_job(job: Job | None) -> Job:
    if job is None:
        raise LaunchError(
            "srun starts ranks within a job, and this is none",
            where="--launcher",
            fix="sbatch --nodes=N slurm/train.sbatch CONFIG",
        )
    return job
