"""What Slurm and the MPI here can do for each other."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

from trainer.doctor.finding import Finding
from trainer.errors import LaunchError
from trainer.launch.commands import choose_launcher, mpi_of, pmi_of


def srun_version() -> str | None:
    """What `srun --version` says; None where there is no srun, '' where it gives no answer."""
    if shutil.which("srun") is None:
        return None
    try:
        done = subprocess.run(["srun", "--version"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def slurm_findings(version: str | None, protocols: Sequence[str], mpi_text: str) -> list[Finding]:
    """What `widefield launch` would do within a Slurm job. No step is started.

    Args:
      version: what `srun --version` says; None where there is no srun, '' where it gives no answer.
      protocols: what `srun --mpi=list` names.
      mpi_text: version text of the MPI whose ranks are to start.
    """
    if version is None:
        return [Finding("Slurm", "ok", "no Slurm here")]
    if not version or not protocols:
        fix = "run the doctor on a login or compute node; if this is one, set SLURM_CONF"
        return [Finding("Slurm", "warning", "srun is installed but does not find its cluster", fix)]
    listed, mpi = f"{version}, srun --mpi={'|'.join(protocols)}", mpi_of(mpi_text)
    try:
        launcher = choose_launcher(mpi, protocols, step_works=True)
    except LaunchError as error:
        return [Finding("Slurm", "warning", f"{listed}: {error.what}", error.fix)]
    if launcher == "srun":
        how = f"srun --mpi={pmi_of(mpi)}" + (", or mpirun where no step with it starts" if mpi != "mpich" else "")
    else:
        how = "mpirun, as Slurm does not speak the MPI's protocol"
    return [Finding("Slurm", "ok", f"{listed}; ranks start with {how}")]
