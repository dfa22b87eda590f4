"""The order of the examination: programs first (a process should not fork once MPI has started), ranks last."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer import __version__
from trainer.config import Config
from trainer.config.schema import RuntimeConfig
from trainer.doctor.data import read_config, slide_findings
from trainer.doctor.finding import Finding, from_error, join_nodes
from trainer.doctor.node import gpu_findings, node_findings
from trainer.doctor.processor import processor_findings, read_processor
from trainer.doctor.ranks import bandwidth_finding, gather_placements, placement_findings, time_allreduce
from trainer.doctor.slurm import slurm_findings, srun_version
from trainer.doctor.software import horovod_findings, mpi_findings, versions_findings
from trainer.doctor.storage import storage_findings
from trainer.errors import CommError, WidefieldError
from trainer.launch.slurm import mpirun_version, srun_protocols
from trainer.launch.topology import my_topology, read_topology
from trainer.runtime import Comm, World, detect_world, start_comm
from trainer.runtime.libraries import loaded_mpi_libraries
from trainer.runtime.versions import (
    HorovodBuild,
    horovod_build,
    mpi_library,
    tensorflow_build,
)


def examine(config_path: str | None, overrides: Sequence[str]) -> list[Finding]:
    """Look at everything: this process, or all ranks of a launcher. All ranks get the same findings.

    Raises:
      WidefieldError: on a rank other than 0, which tells the same as a finding, ranks cannot be joined.
    """
    world = detect_world(os.environ)
    place = world or World()
    srun, protocols, mpirun_text = srun_version(), srun_protocols(), mpirun_version()
    config, findings = _data_and_disk(config_path, overrides, place)
    findings += node_findings(read_topology(), my_topology(), is_rank=world is not None)
    runtime = config.runtime if config else RuntimeConfig()
    comm: Comm | None = None
    try:
        tensorflow = tensorflow_build()
    except CommError as error:
        return [*findings, from_error("versions", error)]
    try:
        comm = start_comm(runtime.backend, runtime.horovod)
    except WidefieldError as error:
        if place.rank > 0:
            raise
        findings.append(from_error("ranks", error))
    num_gpus = len(read_topology().gpu_numa)
    horovod, library = _horovod(), mpi_library()  # mpi4py loads after Horovod has started MPI
    findings += versions_findings(__version__, platform.python_version(), tensorflow)
    findings += processor_findings(
        read_processor(),
        has_onednn=tensorflow.has_onednn,
        onednn_setting=os.environ.get("TF_ENABLE_ONEDNN_OPTS"),
        precision=config.training.precision if config else None,
        uses_gpu=tensorflow.num_gpus > 0,
    )
    findings += gpu_findings(num_gpus, tensorflow)
    beside_python = (Path(sys.executable).parent / "mpirun").exists()
    findings += mpi_findings(
        shutil.which("mpirun"), mpirun_text, library, loaded_mpi_libraries(), beside_python, world is not None
    )
    findings += horovod_findings(horovod, runtime, num_gpus)
    findings += slurm_findings(srun, protocols, mpirun_text or library or "")
    if world is None or comm is None:
        return findings
    return [*_of_all_nodes(comm, findings), *_ranks(comm, runtime, tensorflow.num_gpus)]


def _data_and_disk(
    config_path: str | None, overrides: Sequence[str], place: World
) -> tuple[Config | None, list[Finding]]:
    """The configuration where one is given and valid; data and disk as the first rank of each node finds them."""
    config, findings = read_config(config_path, overrides, place.world_size) if config_path else (None, [])
    if place.local_rank == 0:
        findings += slide_findings(config.data, config.index.max_unreadable_fraction) if config else []
        findings += storage_findings(config.output if config else None, place.local_size)
    return config, findings


def _of_all_nodes(comm: Comm, findings: list[Finding]) -> list[Finding]:
    """Rank 0's findings and where other nodes differ; one rank of each node speaks for it."""
    reports = comm.gather((platform.node(), findings) if comm.local_rank == 0 else None)
    return join_nodes([report for report in reports if report])


def _ranks(comm: Comm, runtime: RuntimeConfig, num_gpus: int) -> list[Finding]:
    placements = gather_placements(comm, runtime, num_gpus, os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    findings = placement_findings(placements, stops=runtime.affinity == "stop")
    if comm.world_size > 1:
        findings.append(bandwidth_finding(time_allreduce(comm), comm.world_size))
    return findings


def _horovod() -> HorovodBuild | CommError:
    try:
        return horovod_build()
    except CommError as error:
        return error
