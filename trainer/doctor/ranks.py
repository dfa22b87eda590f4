"""Where started ranks are, and how fast they sum: the only checks that need several ranks. Collectives, all of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from trainer.config.schema import RuntimeConfig
from trainer.doctor.finding import Finding
from trainer.runtime import Comm
from trainer.runtime.affinity import Placement, gpu_of, idle_cores, my_placement, problems_of
from trainer.runtime.start import CPUS_AT_START, my_threads

SECONDS_OF = {4 << 10: 0.3, 1 << 20: 0.6, 32 << 20: 1.1}
"""Bytes of an all-reduce -> seconds it is repeated for; two in all."""
SLOW_BYTES_PER_S = 0.1e9
"""Bus bandwidth from which it is no longer a warning: 1 Gbit/s Ethernet is a little above."""
_GRADIENT_BYTES = 100e6
"""About those of a ResNet-50 in float32, to say what a bandwidth means."""


def gather_placements(comm: Comm, runtime: RuntimeConfig, num_gpus: int, visible_gpus: str) -> list[Placement]:
    """Where all ranks are, as training would find them.

    Args:
      num_gpus: GPUs that TensorFlow can use in this rank.
      visible_gpus: CUDA_VISIBLE_DEVICES.
    """
    threads = runtime.intra_op_threads or my_threads().intra_op
    gpu = gpu_of(comm.rank, comm.local_rank % num_gpus, visible_gpus) if num_gpus else None
    return comm.gather(my_placement(comm.rank, comm.local_rank, CPUS_AT_START, threads, 1, gpu))


def placement_findings(placements: Sequence[Placement], *, stops: bool) -> list[Finding]:
    """What is wrong with where ranks are.

    Args:
      stops: whether training refuses to start like this (runtime.affinity=stop).
    """
    fix = "start ranks with `widefield launch CONFIG`, which binds each to cores of its own"
    findings = [Finding("placement", "error" if stops else "warning", p, fix) for p in problems_of(placements)]
    if remark := idle_cores(placements):
        findings.append(Finding("placement", "warning", remark, "`widefield launch CONFIG` shares out all of them"))
    return findings or [Finding("placement", "ok", _summary(placements))]


def _summary(placements: Sequence[Placement]) -> str:
    first, num_nodes = placements[0], len({p.host for p in placements})
    waits = "yielding" if first.mpi_yields else "spinning"
    return (
        f"{len(placements)} rank(s) on {num_nodes} node(s), {len(first.cores)} core(s) and {first.intra_op_threads} "
        f"thread(s) each, none shared; MPI waits by {waits}"
    )


def time_allreduce(comm: Comm) -> dict[int, float]:
    """Seconds of one all-reduce of float32 in host memory by its bytes: the slowest rank's mean."""
    return {num_bytes: _time_one_size(comm, num_bytes, budget) for num_bytes, budget in SECONDS_OF.items()}


def _time_one_size(comm: Comm, num_bytes: int, budget_s: float) -> float:
    values = np.zeros(num_bytes // 4, np.float32)
    _repeat(comm, values, 1)  # the first of a size sets up buffers
    repeats = comm.broadcast(max(1, int(budget_s / _repeat(comm, values, 1))))
    return max(comm.gather(_repeat(comm, values, repeats))) / repeats


def _repeat(comm: Comm, values: np.ndarray, repeats: int) -> float:
    comm.barrier()
    start_s = time.perf_counter()
    for _ in range(repeats):
        comm.allreduce(values)
    return time.perf_counter() - start_s


def bandwidth_finding(seconds: Mapping[int, float], world_size: int) -> Finding:
    """Latency of the smallest and bandwidth of the larger sums.

    Bus bandwidth is what a ring sends over each link, 2 (N - 1) / N of the bytes, and so can be compared between
    numbers of ranks and with the hardware (NVIDIA's nccl-tests, doc/PERFORMANCE.md).
    """
    small, middle, large = sorted(seconds)
    rate = large / seconds[large]
    bus = rate * 2 * (world_size - 1) / world_size
    text = (
        f"{world_size} ranks: {seconds[small] * 1e6:.0f} us for {small >> 10} KiB; "
        f"{middle / seconds[middle] / 1e9:.2f} GB/s at {middle >> 20} MiB; "
        f"{rate / 1e9:.2f} GB/s at {large >> 20} MiB (bus {bus / 1e9:.2f} GB/s)"
    )
    if bus >= SLOW_BYTES_PER_S:
        return Finding("all-reduce", "ok", text)
    return Finding(
        "all-reduce",
        "warning",
        f"{text}; 100 MB of gradients would take {_GRADIENT_BYTES / rate:.1f} s in each step",
        "let MPI use the fast network (site's MPI: make setup MPI=system), or training.compression=fp16 and "
        "a larger local_batch_size",
    )
