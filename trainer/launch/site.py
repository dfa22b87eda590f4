"""A site's own lines: partition, modules, the shape of its nodes. A file of NAME=value that shells can source too."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import LaunchError, nearest
from trainer.launch.topology import Cpu, Topology

SITES = Path("slurm/sites")
REQUIRED = {
    "SBATCH_PARTITION": "the partition that jobs go to",
    "WIDEFIELD_SETUP": "shell commands that make python and mpirun available, such as 'module load openmpi'",
    "WIDEFIELD_LAUNCHER": "auto, srun or mpirun",
    "WIDEFIELD_SOCKETS_PER_NODE": "sockets of a node",
    "WIDEFIELD_CORES_PER_SOCKET": "physical cores of a socket",
    "WIDEFIELD_GPUS_PER_NODE": "GPUs of a node, 0 where there are none",
    "WIDEFIELD_LOCAL_DIR": "a folder on the node's own disk, for staged patches",
}
_NUMBERS = ("WIDEFIELD_SOCKETS_PER_NODE", "WIDEFIELD_CORES_PER_SOCKET", "WIDEFIELD_GPUS_PER_NODE")
LAUNCHERS = ("auto", "srun", "mpirun")


@dataclass(frozen=True)
class Site:
    name: str
    variables: dict[str, str]
    """All of the file, SBATCH_* included, which sbatch reads as its options."""

    @property
    def topology(self) -> Topology:
        """The shape that its nodes are said to have."""
        sockets, cores, gpus = (int(self.variables[name]) for name in _NUMBERS)
        cpus = tuple(Cpu(s, s, s * cores + c, s * cores + c) for s in range(sockets) for c in range(cores))
        return Topology(cpus, (-1,) * gpus)


def read_site(name: str, folder: Path = SITES) -> Site:
    """The site `slurm/sites/NAME.env`.

    Raises:
      LaunchError: there is none, a line is not NAME=value, or a value is missing or out of range.
    """
    path = folder / f"{name}.env"
    if not path.exists():
        known = sorted(p.stem for p in folder.glob("*.env"))
        raise LaunchError(
            "no such site", where=str(path), fix=f"{nearest(name, known)}  (or copy one of them and change its lines)"
        )
    variables = _parse(path)
    missing = [key for key in REQUIRED if not variables.get(key)]
    if missing:
        raise LaunchError(
            f"{missing[0]} is missing: {REQUIRED[missing[0]]}" + (f" ({len(missing) - 1} more)" * (len(missing) > 1)),
            where=str(path),
            fix=f"add the line {missing[0]}=...",
        )
    for key in _NUMBERS:
        least = 0 if key == "WIDEFIELD_GPUS_PER_NODE" else 1
        if not variables[key].isdecimal() or int(variables[key]) < least:
            raise LaunchError(f"{key}={variables[key]} is not a number, {least} or more", where=str(path))
    if variables["WIDEFIELD_LAUNCHER"] not in LAUNCHERS:
        raise LaunchError(
            f"WIDEFIELD_LAUNCHER={variables['WIDEFIELD_LAUNCHER']} is unknown",
            where=str(path),
            fix=f"one of {', '.join(LAUNCHERS)}",
        )
    return Site(name, variables)


def _parse(path: Path) -> dict[str, str]:
    variables: dict[str, str] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        place = f"{path}, line {number}"
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise LaunchError(f"cannot be read: {error}", where=place, fix="close the quote") from None
        if not words:
            continue
        key, sign, value = words[0].partition("=")
        if len(words) > 1 or not sign or not key.isidentifier():
            raise LaunchError(f"'{line}' is not NAME=value", where=place, fix="quote values with spaces: NAME='a b'")
        variables[key] = os.path.expandvars(value)
    return variables
