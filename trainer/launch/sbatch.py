"""Handing a job script to Slurm with a site's lines."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from trainer.errors import LaunchError
from trainer.launch.site import Site


def check_script(name: str) -> Path:
    """slurm/NAME.sbatch, which must be submitted from the folder that holds it.

    Raises:
      LaunchError: it is not here.
    """
    script = Path("slurm") / f"{name}.sbatch"
    if not script.exists():
        raise LaunchError("no such job script here", where=str(script), fix="run this in Widefield's own folder")
    return script


def submit(script: Path, options: Sequence[str], arguments: Sequence[str], site: Site, *, dry_run: bool) -> None:
    """Show the sbatch line and run it. Partition, account and the like are SBATCH_* variables, which sbatch reads.

    Raises:
      LaunchError: there is no sbatch, or it refuses the job.
    """
    gpus = [f"--gpus-per-node={n}"] if (n := site.variables["WIDEFIELD_GPUS_PER_NODE"]) != "0" else []
    line = ["sbatch", *options, *gpus, str(script), *arguments]
    environment = {"WIDEFIELD_SITE": site.name, **site.variables}
    shown = {k: v for k, v in environment.items() if k == "WIDEFIELD_SITE" or k.startswith("SBATCH_")}
    print("+", *(f"{key}={shlex.quote(value)}" for key, value in shown.items()), shlex.join(line), flush=True)
    if dry_run:
        return
    try:
        done = subprocess.run(line, env={**os.environ, **environment}, check=False)
    except OSError:
        raise LaunchError(
            "there is no sbatch here",
            where="submit",
            fix="run it on a login node of the cluster; on one machine: widefield launch CONFIG",
        ) from None
    if done.returncode:
        raise LaunchError(f"refused the job (status {done.returncode})", where="sbatch", fix="see its message above")
