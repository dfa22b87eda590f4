"""The job scripts on a real Slurm: two hosts of a core each, and one host of two sockets."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file
from virtual_cluster import Cluster, pmix_library

from trainer.scaling.study import read_study

STEPS = [{"patch_size": 64, "local_batch_size": 2, "steps": 8}]
SETTINGS = {
    "training": {"optimizer": {"learning_rate": 0.001, "schedule": "cosine"}, "ema_decay": 0.9, "log_every_steps": 1},
    "curriculum": STEPS,
    "evaluation": {"max_patches": 1, "max_regions": 1, "figure_regions": 0},
}
Configure = Callable[..., Path]
JOB_S = 400
ENDED = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED")


def sbatch(cluster: Cluster, project: Path, *arguments: str | Path, **environ: str) -> tuple[int, str]:
    """Submit, wait for the end; exit status and all that the job's scripts have printed."""
    line = ["sbatch", "--wait", *map(str, arguments)]
    done = cluster.run(*line, cwd=project, timeout_s=JOB_S, WIDEFIELD_SITE="virtual", **environ)
    return done.returncode, done.stderr + log_of(project)


def log_of(project: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(project.glob("*.log")))


def field(cluster: Cluster, job: str, name: str) -> str:
    """What `scontrol show job` says of one field."""
    shown = cluster.run("scontrol", "show", "job", job).stdout
    return re.search(rf"\b{name}=(\S+)", shown)[1]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + JOB_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(1)


def affinity(run: Path) -> dict[str, Any]:
    return json.loads((run / "affinity.json").read_text())


def last_weights(run: Path) -> dict[str, bytes]:
    arrays = load_file(run / "checkpoints" / "step-00000008.safetensors")
    return {name: array.tobytes() for name, array in arrays.items()}


@pytest.fixture(scope="module")
def finished(cluster: Cluster, shared_slides: Path) -> dict[str, Path]:
    """Runs that other tests look at: name -> run directory."""
    return {}


def test_a_submitted_job_trains_across_two_hosts_and_writes_a_report(
    cluster: Cluster, project: Path, configure: Configure, finished: dict[str, Path]
) -> None:
    config = configure(**SETTINGS)
    line = [sys.executable, "-m", "trainer", "submit", str(config), "--nodes", "2", "--site", "virtual", "--time", "10"]
    done = cluster.run(*line, cwd=project, timeout_s=JOB_S, SBATCH_WAIT="1")
    assert done.returncode == 0, done.stdout + done.stderr + log_of(project)
    assert "sbatch --nodes=2 --time=10 slurm/train.sbatch" in done.stdout

    report = json.loads((project / "run" / "report.json").read_text())
    assert [(r["rank"], r["host"], r["cpus"]) for r in report["ranks"]] == [(0, "uno1", [0]), (1, "uno2", [1])]
    assert len(report["stages"]) == 1
    assert (project / "run" / "report.md").exists()
    assert affinity(project / "run")["problems"] == []
    assert "+ srun --mpi=pmix --nodes=2" in log_of(project)
    finished["undisturbed"] = project / "run"


def test_a_job_at_its_time_limit_is_requeued_and_ends_with_the_weights_of_an_undisturbed_one(
    cluster: Cluster, project: Path, configure: Configure, finished: dict[str, Path]
) -> None:
    """On one host of two sockets, where each rank must be on its own: the weights do not know the difference."""
    line = ["--partition=sockets", "--time=2", "--signal=B:USR1@90", "slurm/train.sbatch"]  # Slurm counts in minutes
    done = cluster.run("sbatch", *line, str(configure(**SETTINGS)), cwd=project, WIDEFIELD_SITE="virtual")
    job = done.stdout.split()[-1]
    wait_for(lambda: int(field(cluster, job, "Restarts")) > 0)
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=10")
    wait_for(lambda: field(cluster, job, "JobState") in ENDED)
    log = log_of(project)
    assert field(cluster, job, "JobState") == "COMPLETED", log
    assert "state saved, back into the queue" in log
    assert "attempt 2" in log
    assert "resuming after step" in log

    places = affinity(project / "run")
    assert places["problems"] == []
    assert [(r["sockets"], r["cpus"]) for r in places["ranks"]] == [([0], [0]), ([1], [1])]
    assert "--cpu-bind=sockets" in log
    ours, theirs = last_weights(project / "run"), last_weights(finished["undisturbed"])
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


def test_a_wrong_binding_stops_the_run_before_it_has_cost_anything(
    cluster: Cluster, project: Path, configure: Configure
) -> None:
    step = ["srun", "--partition=sockets", "--nodes=1", "--ntasks=2", "--mpi=pmix", "--cpu-bind=none"]
    line = [*step, sys.executable, "-m", "trainer", "train", str(configure(**SETTINGS))]
    done = cluster.run(*line, cwd=project, timeout_s=120)
    assert done.returncode == 2
    assert done.stderr.count("AffinityError") == 1
    assert "duo: ranks 0-1 share cores (CPUs 0-1)" in done.stderr
    assert "duo: rank(s) 0-1 run on sockets 0-1" in done.stderr
    assert "widefield launch" in done.stderr
    assert not (project / "run").exists()


def test_nodes_of_unequal_shape_are_refused(cluster: Cluster, project: Path, configure: Configure) -> None:
    status, log = sbatch(
        cluster, project, "--partition=mixed", "--nodes=2", "slurm/train.sbatch", configure(**SETTINGS)
    )
    assert status == 2
    assert "the job's nodes are of unequal shape (1, 2 CPUs)" in log


def test_an_array_extracts_every_slide_once(cluster: Cluster, project: Path, configure: Configure) -> None:
    config = configure(**SETTINGS)
    store = ["stores.kind=hdf5", f"stores.path={project / 'patches'}"]
    status, log = sbatch(cluster, project, "--array=0-1", "slurm/extract.sbatch", config, *store)
    assert status == 0, log
    again = [sys.executable, "-m", "trainer", "extract", str(config), *store, "--workers", "1"]
    done = subprocess.run(again, cwd=project, env=cluster.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("patch index") or "0 slides, 0 files" in done.stdout
    assert "0 slides, 0 files" in done.stdout, "all of it was there"


def test_an_array_trains_the_folds_of_a_crossvalidation_each_by_a_task_of_its_own(
    cluster: Cluster, project: Path, configure: Configure
) -> None:
    widefield = [sys.executable, "-m", "trainer", "crossval"]
    submit = [str(configure(**SETTINGS)), "--folds", "2", "--submit", "virtual", "--time", "10"]
    done = cluster.run(*widefield, *submit, cwd=project, timeout_s=JOB_S, SBATCH_WAIT="1")
    assert done.returncode == 0, done.stdout + done.stderr + log_of(project)
    assert "sbatch --array=0-1 --nodes=1 --time=10 slurm/experiment.sbatch" in done.stdout
    folder = project / "run-crossval"
    assert cluster.run(*widefield, "--report", str(folder), cwd=project).returncode == 0
    record = json.loads((folder / "crossval.json").read_text())
    assert [r["state"] for r in record["runs"]] == ["finished", "finished"], log_of(project)
    assert record["summary"]["scores"]["miou"]["n"] == 2
    assert len(list((folder / "index.parts").iterdir())) == 4, "the tasks found the patches of each slide once"
    again = cluster.run(*widefield, *submit, cwd=project, SBATCH_WAIT="1")
    assert "all runs are finished" in again.stdout and "sbatch" not in again.stdout


def test_a_run_is_scored_again_by_a_job(cluster: Cluster, project: Path, finished: dict[str, Path]) -> None:
    status, log = sbatch(cluster, project, "--nodes=2", "slurm/evaluate.sbatch", finished["undisturbed"])
    assert status == 0, log
    rows = json.loads((finished["undisturbed"] / "evaluation.json").read_text())
    report = json.loads((finished["undisturbed"] / "report.json").read_text())
    assert [r["common_miou"] for r in rows] == [s["common_miou"] for s in report["stages"]]


def test_slides_are_predicted_and_scored_by_a_job_of_two_nodes(
    cluster: Cluster, project: Path, finished: dict[str, Path]
) -> None:
    run = finished["undisturbed"]
    status, log = sbatch(cluster, project, "--nodes=2", "slurm/evaluate.sbatch", run, "--slides")
    assert status == 0, log
    rows = json.loads((run / "slides.json").read_text())["slides"]
    assert [row["slide"] for row in rows] == ["test_001.tif"]
    assert (run / rows[0]["folder"] / "summary.json").exists()


def test_an_array_predicts_every_slide_once_also_when_a_task_is_broken_off(
    cluster: Cluster, project: Path, shared_slides: Path, finished: dict[str, Path]
) -> None:
    slides, out = sorted(shared_slides.glob("**/*.tif"))[:3], project / "predictions"
    line = ["--array=0-1", "slurm/predict.sbatch", finished["undisturbed"], *slides, "-o", out, "--tile", "128"]
    done = cluster.run("sbatch", *map(str, line), cwd=project, WIDEFIELD_SITE="virtual")
    job = done.stdout.split()[-1]
    wait_for(lambda: "of them are predicted" in log_of(project))
    cluster.run("scancel", "--batch", "--signal=USR1", f"{job}_0")  # as Slurm does before the time limit
    wait_for(lambda: len(list(out.glob("*/summary.json"))) == len(slides) == 3)
    wait_for(lambda: field(cluster, f"{job}_0", "JobState") in ENDED)
    log = log_of(project)
    assert field(cluster, f"{job}_0", "JobState") == "COMPLETED", log
    assert log.count("state saved, back into the queue") == 1, log
    assert log.count("results:") == len(slides), log


def test_mpirun_starts_the_ranks_where_srun_cannot_load_pmix(cluster: Cluster, project: Path) -> None:
    """The library that Slurm's plugin loads is hidden from this job: `srun --mpi=list` still names it."""
    hidden = f"mount --bind /dev/null {pmix_library()} && widefield launch --dry-run configs/x.yaml"
    job = f"source slurm/job.sh; unshare --mount bash -c '{hidden}'"
    script = project / "hidden.sbatch"
    script.write_text(f"#!/bin/bash\n#SBATCH --output=hidden.log\nset -eu\n{job}\n")
    status, log = sbatch(cluster, project, "--partition=sockets", "--exclusive", script)
    assert status == 0, log
    assert "+ mpirun -np 2 --map-by ppr:1:package --bind-to package" in log


def test_ranks_that_mpirun_starts_in_a_job_are_bound_to_their_sockets(cluster: Cluster, project: Path) -> None:
    launcher = "$(widefield launch --launcher mpirun --dry-run x.yaml 2>&1 | sed -n 's/^+ \\(.*package\\) .*/\\1/p')"
    show = """python -c 'import os; print(sorted(os.sched_getaffinity(0)))'"""
    script = project / "mpirun.sbatch"
    script.write_text(f"#!/bin/bash\n#SBATCH --output=mpirun.log\nset -eu\nsource slurm/job.sh\n{launcher} {show}\n")
    status, log = sbatch(cluster, project, "--partition=sockets", "--exclusive", script)
    assert status == 0, log
    assert sorted(line for line in log.splitlines() if line.startswith("[")) == ["[0]", "[1]"]


def test_a_job_without_a_configuration_says_so(cluster: Cluster, project: Path) -> None:
    status, log = sbatch(cluster, project, "slurm/train.sbatch")
    assert status == 2
    assert "no configuration" in log


def test_a_study_over_one_and_two_nodes_gives_its_figures(
    cluster: Cluster, project: Path, configure: Configure
) -> None:
    config = str(configure(curriculum=STEPS))
    widefield = [sys.executable, "-m", "trainer", "scaling"]
    wish = ["--compressions", "none,fp16", "--data", "memory", "--warmup", "1", "--repeats", "2", "--steps", "2"]
    submit = ["submit", config, "--nodes", "1,2", "--site", "virtual", "--study", "results/virtual/weak", *wish]
    done = cluster.run(*widefield, *submit, "--model-inputs", cwd=project, timeout_s=JOB_S, SBATCH_WAIT="1")
    assert done.returncode == 0, done.stdout + done.stderr + log_of(project)
    for action in ("report", "model"):
        done = cluster.run(*widefield, action, "results/virtual/weak", cwd=project)
        assert done.returncode == 0, done.stderr

    study = read_study(project / "results/virtual/weak")
    assert {(r.point.num_nodes, r.record.hosts) for r in study.runs} == {(1, ("uno1",)), (2, ("uno1", "uno2"))}
    assert len(study.done) == 1 + 2
    assert all(r.record.command.startswith(f"sbatch --nodes={r.point.num_nodes} slurm/") for r in study.runs)
    sent = {r.point.compression: r.record.allreduce_bytes_per_step for r in study.done if r.point.num_nodes == 2}
    assert sent["none"] - 8 == 2 * (sent["fp16"] - 8), "fp16 halves the bytes of gradients; 8 are the loss"
    folder = project / "results/virtual/weak"
    figures = ["figures/weak-efficiency.png", "figures/weak-throughput.svg", "model/checked.png"]
    assert all((folder / name).stat().st_size > 5000 for name in figures)
    assert "modelled" not in (folder / "README.md").read_text().split("## How to read it")[0].replace(
        "nothing is modelled", ""
    )
