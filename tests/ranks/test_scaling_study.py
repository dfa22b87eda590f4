"""A scaling study on this machine, as a user starts it. (Over hosts: tests/slurm.)"""

from __future__ import annotations

import json
from pathlib import Path

from launch import widefield
from tiny import write_config

from trainer.scaling.study import read_study

WISH = ["--patch-sizes", "64", "--warmup", "1", "--repeats", "2", "--steps", "2", "--compressions", "fp16"]


def test_a_launch_that_fails_leaves_failed_runs_and_says_why(tmp_path: Path) -> None:
    """There are no slides; the points that need none were not reached."""
    config = write_config(tmp_path, tmp_path / "nowhere")
    study = tmp_path / "box" / "weak"
    done = widefield("scaling", "run", config, *WISH, "--ranks", "2", "--data", "slides", "--study", study)
    assert done.returncode == 2
    assert "measuring failed with 2 ranks (status 2)" in done.stderr
    (run,) = read_study(study).failed
    assert "nowhere" in run.record.error
    assert "MPI_ABORT" not in run.record.error
    assert run.record.command.endswith("--ranks 2")
    assert widefield("scaling", "report", study).returncode == 0
    assert "status 2" in (study / "README.md").read_text()


def test_two_ranks_are_measured_with_a_core_each(tmp_path: Path) -> None:
    config = write_config(tmp_path, tmp_path / "nowhere")
    study = tmp_path / "box" / "weak"
    line = [*WISH, "--ranks", "2", "--cores-per-rank", "1", "--data", "memory", "--study", study]
    done = widefield("scaling", "run", config, *line)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = read_study(study).done
    assert run.steps is not None
    assert run.steps.shape == (2, 2, 2)
    assert (run.record.cores_per_rank, run.point.num_nodes) == (1, 1)
    affinity = json.loads((study / run.point.name / "affinity.json").read_text())
    assert affinity["problems"] == []
    assert [len(r["cores"]) for r in affinity["ranks"]] == [1, 1]
    assert (study / "README.md").exists()


def test_a_wish_that_means_nothing_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path, tmp_path)
    for wish, said in (
        (["--mode", "strong", "--global-batch", "3", "--ranks", "2"], "3 does not divide by 2"),
        (["--warmup", "0"], "the first step traces"),
        (["--ranks", "64"], "64 ranks are more than"),
    ):
        done = widefield("scaling", "run", config, "--study", tmp_path / "s", *wish)
        assert done.returncode == 2
        assert said in done.stderr
