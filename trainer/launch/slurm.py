"""What Slurm says of the job this process is in, and what its srun can do."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from trainer.errors import LaunchError


@dataclass(frozen=True)
class Job:
    """An allocation, seen from its batch script."""

    job_id: str
    num_nodes: int
    cpus_per_node: int
    """Hardware threads as Slurm counts them, the same on every node."""


def current_job(environ: Mapping[str, str]) -> Job | None:
    """The job whose batch script (or salloc shell) this is; None outside of Slurm.

    Raises:
      LaunchError: the job's nodes are of unequal shape.
    """
    if "SLURM_JOB_ID" not in environ or "SLURM_JOB_NUM_NODES" not in environ:
        return None
    counts = cpus_of_nodes(environ.get("SLURM_JOB_CPUS_PER_NODE", "1"))
    if len(set(counts)) > 1:
        raise LaunchError(
            f"the job's nodes are of unequal shape ({', '.join(map(str, sorted(set(counts))))} CPUs): every step would "
            "wait for the smallest",
            where=f"job {environ['SLURM_JOB_ID']} on {environ.get('SLURM_JOB_NODELIST', 'its nodes')}",
            fix="ask for nodes of one kind: sbatch --constraint=... or --partition=..., with --exclusive",
        )
    return Job(environ["SLURM_JOB_ID"], int(environ["SLURM_JOB_NUM_NODES"]), counts[0])


def cpus_of_nodes(text: str) -> list[int]:
    """One number per node of Slurm's `2(x3),1`."""
    counts: list[int] = []
    for count, _, times in re.findall(r"(\d+)(\(x(\d+)\))?", text):
        counts += [int(count)] * int(times or 1)
    return counts


def srun_protocols() -> list[str]:
    """What `srun --mpi=list` names (pmix, pmi2, ...)."""
    done = _run(["srun", "--mpi=list"])
    words = re.findall(r"\b(pmi\w+|none|cray\w*|openmpi)\b", f"{done.stdout} {done.stderr}") if done else []
    return list(dict.fromkeys(words))


def step_works(protocol: str) -> bool:
    """Whether a step with `--mpi=PROTOCOL` starts in this job: a plugin that is listed may still not load."""
    done = _run(["srun", f"--mpi={protocol}", "--nodes=1", "--ntasks=1", "--cpus-per-task=1", "true"], timeout_s=60)
    return done is not None and done.returncode == 0


def mpirun_version() -> str:
    """What the mpirun on the PATH says of itself; empty where there is none."""
    done = _run(["mpirun", "--version"])
    return done.stdout if done else ""


def _run(command: list[str], timeout_s: float = 10) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
