"""Scaling studies on the virtual cluster, over networks of three speeds: results/virtual-cluster-PROCESSOR/LINK.

  sudo .venv/bin/python tools/bench_network.py [LINK ...]      unslowed, 1gbit, 100mbit; all of them take 45 minutes

Two hosts of one core each train DeepLabV3+ with ResNet-50, weak scaling, batch 1; on the unslowed network one host
alone too. On every link the performance model's inputs are measured in the same job, its predictions put beside. These
take the host's work from the unslowed study, which therefore comes first.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from virtual_cluster import Cluster, why_not

from trainer.bench.machine import folder_of, processor

ROOT = Path(__file__).resolve().parents[1]
OUT = Path("results") / f"virtual-cluster-{folder_of(processor())}"
LINKS = {
    "unslowed": (None, "veth between two network namespaces, as fast as memory"),
    "1gbit": ("1gbit", "veth, 1 Gbit/s (tc tbf)"),
    "100mbit": ("100mbit", "veth, 100 Mbit/s (tc tbf)"),
}
ALL, TWO = "none,fp16,bf16", "none,fp16"


@dataclass(frozen=True)
class Job:
    link: str
    nodes: int
    patch_size: int
    compressions: str = ALL
    data: str = "memory"
    effort: tuple[int, int] = (5, 3)
    """Repeats, and steps of each."""
    inputs: bool = True
    """Also measure what the model needs."""


JOBS = (
    Job("unslowed", 1, 256, "fp16", "memory,slides", inputs=False),
    Job("unslowed", 2, 256),
    Job("unslowed", 2, 256, "fp16", "slides", inputs=False),
    Job("unslowed", 1, 1024, "fp16", effort=(3, 2), inputs=False),
    Job("unslowed", 2, 1024, TWO, effort=(3, 2)),
    Job("1gbit", 2, 256),
    Job("1gbit", 2, 1024, TWO, effort=(3, 2)),
    Job("100mbit", 2, 256, effort=(2, 3)),
    Job("100mbit", 2, 1024, TWO, effort=(2, 2)),
)


def run(cluster: Cluster, job: Job) -> None:
    """Submit one job and wait for it; what it prints goes on."""
    rate, words = LINKS[job.link]
    cluster.limit(rate)
    repeats, steps = job.effort
    log = cluster.folder / "job.log"
    log.unlink(missing_ok=True)
    line = ["sbatch", "--wait", f"--nodes={job.nodes}", f"--output={log}", "slurm/scaling.sbatch"]
    line += ["configs/scaling.yaml", "--study", str(OUT / job.link), "--patch-sizes", str(job.patch_size)]
    line += ["--compressions", job.compressions, "--data", job.data, "--network", words]
    line += ["--warmup", "1", "--repeats", str(repeats), "--steps", str(steps)]
    line += ["--model-inputs"] if job.inputs else []
    print("$", *line, flush=True)
    done = cluster.run(*line, cwd=ROOT, timeout_s=3600)
    print(log.read_text() if log.exists() else done.stderr, flush=True)


def main() -> None:
    """Measure the links that the command line names, or all."""
    reason = why_not()
    if reason:
        sys.exit(f"no cluster here: {reason}")
    links = sys.argv[1:] or list(LINKS)
    if not (ROOT / "data/bench/training").exists():
        make = ["make-slides", "data/bench", "--train", "4", "--test", "1", "--size", "4096"]
        subprocess.run([sys.executable, "-m", "trainer", *make], cwd=ROOT, check=True)
    with Cluster() as cluster:
        for job in JOBS:
            if job.link in links:
                run(cluster, job)
    widefield = [sys.executable, "-m", "trainer", "scaling"]
    for link in links:
        subprocess.run([*widefield, "report", str(OUT / link)], cwd=ROOT, check=True)
        host = ["--host", str(OUT / "unslowed")]
        subprocess.run([*widefield, "model", str(OUT / link), *host], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
