"""A run that is repeated, killed, warned, or goes astray, on two real ranks."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from launch import mpirun, must_pass, start_mpirun, start_widefield, widefield
from safetensors.numpy import load_file
from tiny import write_config

from trainer.train.run_dir import read_events

FEW_STEPS = [
    {"patch_size": 64, "local_batch_size": 2, "steps": 8},
    {"patch_size": 96, "local_batch_size": 1, "steps": 4},
]
LARGE_STEPS = [{"patch_size": 128, "local_batch_size": 8, "steps": 12}]
"""Past the 200 MB from which TensorFlow rewrites a graph to save memory."""
NO_SCORES = {"max_patches": 1, "max_regions": 1, "figure_regions": 0}


def config_for(folder: Path, slides: Path, curriculum: object = FEW_STEPS, **training: object) -> Path:
    """Twelve steps, by default through two sizes, with all that has a state: dropout, averaging, a schedule."""
    settings = {
        "optimizer": {"learning_rate": 0.001, "schedule": "cosine", "warmup_steps": 3},
        "ema_decay": 0.9,
        "log_every_steps": 1,
        "checkpoint_every_steps": 3,
        **training,
    }
    folder.mkdir(exist_ok=True)
    return write_config(folder, slides, training=settings, curriculum=curriculum, evaluation=NO_SCORES)


def step_events(run: Path) -> list[dict[str, Any]]:
    return [e for e in read_events(run / "metrics.jsonl") if e["event"] == "step"]


def steps_done(run: Path) -> int:
    return max((e["step"] for e in step_events(run)), default=0)


def wait_for(condition: Callable[[], object], process: subprocess.Popen, timeout_s: float = 200) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < end
        time.sleep(0.02)


def ranks_of(process: subprocess.Popen) -> list[psutil.Process]:
    return [p for p in psutil.Process(process.pid).children(recursive=True) if "trainer" in p.cmdline()]


@pytest.fixture(scope="module")
def undisturbed(tiny_slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    must_pass(mpirun(2, "-m", "trainer", "train", config_for(folder, tiny_slides)))
    return folder / "run"


def assert_same_run(run: Path, undisturbed: Path, steps: int = 12) -> None:
    name = f"checkpoints/step-{steps:08d}.safetensors"
    ours, theirs = load_file(run / name), load_file(undisturbed / name)
    assert ours.keys() == theirs.keys()
    assert [n for n in ours if ours[n].tobytes() != theirs[n].tobytes()] == [], "the same bits"
    logged = [[(e["step"], e["loss"], e["learning_rate"]) for e in step_events(r)] for r in (run, undisturbed)]
    assert logged[0] == logged[1]
    assert len(logged[0]) == steps
    assert not list(run.rglob(".*.part"))


def train_through_kills(config: Path, run: Path, kill_at: list[int]) -> None:
    """Train; each time a step of `kill_at` is reached, kill -9 all ranks (or one, which must end all), then resume."""
    for number, step in enumerate(kill_at):
        arguments = ["--resume", run] if number else [config]
        process = start_mpirun(2, "-m", "trainer", "train", *arguments)
        wait_for(lambda step=step: steps_done(run) >= step, process)
        victims = ranks_of(process)
        assert len(victims) == 2
        for victim in victims[: 2 - number % 2]:
            os.kill(victim.pid, signal.SIGKILL)
        process.communicate(timeout=30)
        assert process.returncode != 0
    must_pass(mpirun(2, "-m", "trainer", "train", "--resume", run))


@pytest.mark.long
def test_the_same_run_twice_has_the_same_bits(tiny_slides: Path, tmp_path: Path) -> None:
    for name in ("once", "twice"):
        must_pass(mpirun(2, "-m", "trainer", "train", config_for(tmp_path / name, tiny_slides, LARGE_STEPS)))
    assert_same_run(tmp_path / "twice" / "run", tmp_path / "once" / "run")


@pytest.mark.long
def test_a_run_killed_at_a_random_step_ends_with_the_bits_of_an_undisturbed_one(
    tiny_slides: Path, undisturbed: Path, tmp_path: Path
) -> None:
    config = config_for(tmp_path / "killed", tiny_slides)
    train_through_kills(config, tmp_path / "killed" / "run", [random.randint(1, 10)])
    assert_same_run(tmp_path / "killed" / "run", undisturbed)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_run_killed_several_times_all_ranks_or_one_still_ends_with_the_same_bits(
    tiny_slides: Path, undisturbed: Path, tmp_path: Path
) -> None:
    config = config_for(tmp_path / "killed", tiny_slides)
    train_through_kills(config, tmp_path / "killed" / "run", sorted(random.sample(range(1, 11), 4)))
    assert_same_run(tmp_path / "killed" / "run", undisturbed)


PLATEAU_AND_MIXTURE = [
    {
        "patch_size": 64,
        "local_batch_size": 2,
        "plateau": {"every_steps": 2, "patience": 1, "min_delta": 1.0, "max_steps": 100},
    },
    {"sizes": {64: 0.5, 96: 0.5}, "local_batch_size": 1, "accumulate": 2, "steps": 4},
]
"""The second scoring is no better than the first by 1, so the first stage ends after 4 steps instead of 100."""


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_run_warned_while_it_scores_a_plateau_and_killed_in_a_mixture_ends_with_the_bits_of_an_undisturbed_one(
    tiny_slides: Path, tmp_path: Path
) -> None:
    undisturbed, run = tmp_path / "undisturbed" / "run", tmp_path / "disturbed" / "run"
    must_pass(mpirun(2, "-m", "trainer", "train", config_for(undisturbed.parent, tiny_slides, PLATEAU_AND_MIXTURE)))
    assert [s["steps"] for s in json.loads((undisturbed / "report.json").read_text())["stages"]] == [4, 4]

    process = start_mpirun(2, "-m", "trainer", "train", config_for(run.parent, tiny_slides, PLATEAU_AND_MIXTURE))
    wait_for(lambda: steps_done(run) >= 2, process)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output[-3000:]
    assert "after step 2 of" in output, "between the step and its score, or while it is scored"
    process = start_mpirun(2, "-m", "trainer", "train", "--resume", run)
    wait_for(lambda: steps_done(run) >= 6, process)
    for rank in ranks_of(process):
        os.kill(rank.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    must_pass(mpirun(2, "-m", "trainer", "train", "--resume", run))
    assert_same_run(run, undisturbed, steps=8)


def test_a_warned_run_saves_asks_to_be_requeued_and_goes_on_with_another_number_of_ranks(
    tiny_slides: Path, tmp_path: Path
) -> None:
    config, run = config_for(tmp_path / "warned", tiny_slides, FEW_STEPS[:1]), tmp_path / "warned" / "run"
    process = start_mpirun(2, "-m", "trainer", "train", config)
    wait_for(lambda: steps_done(run) >= 2, process)
    process.send_signal(signal.SIGUSR1)  # mpirun passes it on to its ranks, as Slurm does to srun's
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output[-3000:]
    assert output.count("stopped by a signal after step") == 1
    saved = max((run / "checkpoints").glob("step-*"))
    assert f"step-{steps_done(run):08d}" in saved.name, "the state after the last step is there"
    out = must_pass(widefield("train", "--resume", run))
    assert "it was saved on 2 rank(s), this run has 1" in out
    assert "Traceback" not in out
    assert len(json.loads((run / "report.json").read_text())["stages"]) == 1


@pytest.mark.long
def test_a_loss_that_is_not_finite_goes_back_on_all_ranks_and_a_lower_rate_gets_through(
    tiny_slides: Path, tmp_path: Path
) -> None:
    config, run = config_for(tmp_path / "astray", tiny_slides), tmp_path / "astray" / "run"
    wild = ["training.optimizer.learning_rate=1e30", "training.rollback_rate_factor=1e-33", "model.norm=frozen"]
    out = must_pass(mpirun(2, "-m", "trainer", "train", config, *wild))
    assert "back to step 0, rate times 1e-33" in out
    (batch,) = (run / "bad_batches").iterdir()
    rows = [line.split(",") for line in batch.read_text().splitlines()]
    assert rows[0] == ["rank", "epoch", "row", "slide", "x", "y", "size"]
    assert [(row[0], row[-1]) for row in rows[1:]] == [("0", "64"), ("0", "64"), ("1", "64"), ("1", "64")]
    assert steps_done(run) == 12
    again = widefield(
        "train", config, *wild, "training.rollbacks=2", "training.rollback_rate_factor=1.0", "--overwrite"
    )
    assert again.returncode == 2
    assert again.stdout.count("back to step 0") == 2 and "after 2 rollback(s)" in again.stderr
    assert "TrainingError" in again.stderr and "learning_rate" in again.stderr and "Traceback" not in again.stderr


@pytest.mark.long
def test_one_rank_killed_ends_the_others_within_30_seconds(tiny_slides: Path, tmp_path: Path) -> None:
    run = tmp_path / "run" / "run"
    process = start_mpirun(2, "-m", "trainer", "train", config_for(run.parent, tiny_slides, LARGE_STEPS))
    wait_for(lambda: steps_done(run) >= 1, process)
    os.kill(ranks_of(process)[1].pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "signal 9" in output, "mpirun says which rank was killed"
    assert not list(run.rglob(".*.part"))


@pytest.mark.long
def test_a_single_process_told_to_end_saves_and_asks_to_be_requeued(tiny_slides: Path, tmp_path: Path) -> None:
    run = tmp_path / "run" / "run"
    process = start_widefield("train", config_for(run.parent, tiny_slides, LARGE_STEPS))
    wait_for(lambda: steps_done(run) >= 1, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output[-3000:]
    saved = max((run / "checkpoints").glob("step-*"))
    assert f"step-{steps_done(run):08d}" in saved.name


@pytest.mark.long
def test_ranks_that_come_to_differ_are_stopped_and_the_one_that_differs_is_named(
    tiny_slides: Path, tmp_path: Path
) -> None:
    config = config_for(tmp_path / "run", tiny_slides, check_every_steps=2)
    done = mpirun(2, Path(__file__).with_name("differing_main.py"), config, "weights")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "rank 1 (" in done.stderr and "differ in weights from rank 0 after step 4" in done.stderr
    assert "Traceback" not in done.stderr
    done = mpirun(2, Path(__file__).with_name("differing_main.py"), config, "settings")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "differ in settings from rank 0 at the start" in done.stderr


@pytest.mark.long
def test_a_full_disk_costs_checkpoints_not_the_run(tiny_slides: Path, tmp_path: Path) -> None:
    config, run = config_for(tmp_path / "full", tiny_slides), tmp_path / "full" / "run"
    process = start_widefield("train", config)
    wait_for((run / "config.yaml").exists, process)
    process.kill()  # before its first checkpoint
    process.wait()
    out = must_pass(widefield("train", "--resume", run, "curriculum.0.steps=1", "curriculum.1.steps=1"))
    assert "starting from the beginning" in out

    small_files_only = 1 << 20  # bytes: records fit, checkpoints do not
    done = widefield("train", "--resume", run, "curriculum.1.steps=4", file_limit=small_files_only)
    assert "the newest is step-00000002.safetensors" in done.stdout
    assert steps_done(run) == 5, "training went on"
    assert done.returncode == 2, "but its weights are lost"
    assert "after step 5 could not be saved" in done.stderr and "make room" in done.stderr
    assert sorted(p.name for p in (run / "checkpoints").glob("step*"))[-1] == "step-00000002.safetensors"
    assert not list(run.rglob(".*.part"))

    must_pass(widefield("train", "--resume", run))
    stages = json.loads((run / "report.json").read_text())["stages"]
    assert [s["steps"] for s in stages] == [1, 4], "a stage that has become longer is scored at its new end"
    must_pass(widefield("train", "--resume", run))  # it is finished: nothing is left to do
    assert json.loads((run / "report.json").read_text())["stages"] == stages
