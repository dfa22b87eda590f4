"""The command line that starts ranks where the plan wants them: `srun` or `mpirun`. Pure text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trainer.errors import LaunchError
from trainer.launch.plan import RankPlan
from trainer.launch.topology import Topology

Mpi = Literal["openmpi5", "openmpi4", "mpich", "unknown"]
Launcher = Literal["srun", "mpirun"]


def mpi_of(version_text: str) -> Mpi:
    """The MPI whose `mpirun --version` this is. Intel's and Cray's are MPICH's kin."""
    found = re.search(r"\(Open(?: MPI|RTE)\) (\d+)|Open MPI\D* (\d+)\.", version_text)
    if found:
        return "openmpi5" if int(found[1] or found[2]) >= 5 else "openmpi4"
    return "mpich" if re.search(r"HYDRA|MPICH|Intel\(R\) MPI", version_text) else "unknown"


def pmi_of(mpi: Mpi) -> str:
    """What `srun --mpi=` this MPI speaks."""
    return "pmi2" if mpi == "mpich" else "pmix"


def choose_launcher(mpi: Mpi, slurm_speaks: Sequence[str], step_works: bool) -> Launcher:
    """srun where Slurm speaks the MPI's own protocol and a step with it starts; else Open MPI's mpirun.

    Args:
      slurm_speaks: the names that `srun --mpi=list` gives.
      step_works: whether `srun --mpi=... true` has ended well: the list also names what cannot be loaded.
    Raises:
      LaunchError: neither can start this MPI's ranks across nodes.
    """
    protocol = pmi_of(mpi)
    if step_works and any(name == protocol or name.startswith(f"{protocol}_v") for name in slurm_speaks):
        return "srun"
    if mpi in ("openmpi4", "openmpi5"):
        return "mpirun"
    raise LaunchError(
        f"srun cannot start ranks of this MPI here: it needs --mpi={protocol}, and `srun --mpi=list` gives "
        f"{', '.join(slurm_speaks) or 'nothing'}" + ("" if step_works else ", with which no step starts"),
        where="srun",
        fix=f"ask for Slurm's {protocol} plugin, or use Open MPI, whose mpirun needs neither",
    )


@dataclass(frozen=True)
class Layout:
    """Ranks over nodes of one shape."""

    num_nodes: int
    ranks: tuple[RankPlan, ...]
    """Of one node."""
    node: Topology

    @property
    def world_size(self) -> int:
        return self.num_nodes * len(self.ranks)

    @property
    def per_socket(self) -> int:
        return max(1, len(self.ranks) // len(self.node.sockets))

    @property
    def fills_sockets(self) -> bool:
        """Whether each rank has one socket, and all of it."""
        cores = min(len(self.node.cores_of(s)) for s in self.node.sockets)
        return len(self.ranks) == len(self.node.sockets) and self.ranks[0].num_cores == cores

    @property
    def fills_node(self) -> bool:
        """Whether one rank has the whole node."""
        return len(self.ranks) == 1 and self.ranks[0].num_cores == self.node.num_cores

    def describe(self) -> str:
        """The plan in a line."""
        rank = self.ranks[0]
        place = "a GPU" if rank.gpu is not None else "a socket" if self.fills_sockets else "cores of one socket"
        place = "a node" if len(rank.sockets) > 1 else place
        spare = "one core left to Horovod" if rank.threads.comm_cpu is not None else "Horovod shares them"
        return (
            f"{self.num_nodes} node(s) of {self.node.describe()}: {self.world_size} rank(s), each on {place}: "
            f"{rank.num_cores} core(s), {rank.threads.intra_op} thread(s), {spare}"
        )


def srun_command(layout: Layout, protocol: str, cpus_per_node: int) -> list[str]:
    """`srun ...` up to the program. One rank per socket is bound to it, others to their cores.

    Args:
      cpus_per_node: as Slurm counts them: hardware threads or cores, as the site has set it up.
    """
    return [
        "srun",
        f"--mpi={protocol}",
        f"--nodes={layout.num_nodes}",
        f"--ntasks={layout.world_size}",
        f"--ntasks-per-node={len(layout.ranks)}",
        f"--cpus-per-task={cpus_per_node * layout.ranks[0].num_cores // layout.node.num_cores}",
        f"--cpu-bind={'sockets' if layout.fills_sockets else 'cores'}",
        "--distribution=block:block",
        # a rank that ends first, with 75 say, must not cost the others their last seconds, nor may they wait for ever
        "--kill-on-bad-exit=0",
        "--wait=60",
    ]


def mpirun_command(layout: Layout, mpi: Mpi) -> list[str]:
    """`mpirun ...` of Open MPI up to the program.

    Raises:
      LaunchError: it is another MPI's.
    """
    if mpi not in ("openmpi4", "openmpi5"):
        raise LaunchError(
            "the mpirun on the PATH is not Open MPI's, and only its options are known here",
            where="mpirun --version",
            fix="start the ranks yourself, one per socket, each bound to it: mpirun ... python -m trainer train CONFIG",
        )
    socket = "package" if mpi == "openmpi5" else "socket"
    command = ["mpirun", "-np", str(layout.world_size)]
    if layout.fills_node:
        return [*command, "--map-by", "ppr:1:node", "--bind-to", "none"]
    if layout.fills_sockets:
        return [*command, "--map-by", f"ppr:1:{socket}", "--bind-to", socket]
    cores = layout.ranks[0].num_cores
    return [*command, "--map-by", f"ppr:{layout.per_socket}:{socket}:PE={cores}", "--bind-to", "core"]
