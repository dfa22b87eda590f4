"""`widefield runs`: what the files of runs tell, whatever state they are in, without TensorFlow."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pytest
from launch import must_pass, run_python
from tiny import write_config

from trainer.cli import runs as command
from trainer.errors import RunError
from trainer.train.run_dir import MetricsFile, claim_run
from trainer.train.runs import is_held, list_runs

START = {
    "total_steps": 60,
    "stages": [{"sizes": {"64": 1.0}, "steps": 20}, {"sizes": {"128": 0.3, "512": 0.7}, "steps": 40}],
    "world_size": 4,
}


def make_run(path: Path, *events: tuple[str, dict[str, Any]], age_s: int = 0) -> Path:
    path.mkdir(parents=True)
    config = write_config(path, Path("slides"))
    config.rename(path / "config.yaml")
    metrics = MetricsFile(path / "metrics.jsonl", 0)
    for event, fields in events:
        metrics.write(event, **fields)
    metrics.close()
    written = path.stat().st_mtime - age_s
    os.utime(path / "metrics.jsonl", (written, written))
    return path


def start() -> tuple[str, dict[str, Any]]:
    return "start", {"step": 0, **START}


def step(number: int, stage: int, speed: float) -> tuple[str, dict[str, Any]]:
    return "step", {"step": number, "stage": stage, "loss": 1.0, "megapixels_per_second": speed}


def stage(number: int, end_step: int, miou: float | None) -> tuple[str, dict[str, Any]]:
    return "stage", {"step": end_step, "stage": number, "result": {"common_miou": miou}}


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args(arguments))
    return capsys.readouterr().out


def test_a_stopped_run_says_where_it_stopped_and_its_best_score(tmp_path: Path) -> None:
    scored = ("score", {"step": 30, "stage": 1, "common_miou": 0.81})
    make_run(tmp_path / "a" / "b", start(), step(20, 0, 2.0), stage(0, 20, 0.7), scored, step(31, 1, 3.5))
    (run,) = list_runs(tmp_path)
    assert (run.name, run.state, run.world_size) == ("a/b", "stopped", 4)
    assert (run.stage, run.num_stages, run.patch_sizes) == (2, 2, (128, 512))
    assert (run.step, run.total_steps, run.megapixels_per_second, run.best_common_miou) == (31, 60, 3.5, 0.81)


def test_a_run_is_running_while_its_directory_is_claimed_and_looking_leaves_it_claimable(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", start())
    lock = claim_run(path, resume=True, overwrite=False)
    assert list_runs(tmp_path)[0].state == "running"
    os.close(lock)
    assert list_runs(tmp_path)[0].state == "stopped"
    assert not is_held(path)
    os.close(claim_run(path, resume=True, overwrite=False))


def test_a_run_is_finished_once_its_last_weights_are_saved_and_one_without_scores_has_none(tmp_path: Path) -> None:
    scored = (start(), stage(0, 20, None), stage(1, 60, None))
    make_run(tmp_path / "unsaved", *scored, age_s=60)
    make_run(tmp_path / "saved", *scored, ("end", {"step": 60}))
    saved, unsaved = list_runs(tmp_path)
    assert (saved.state, saved.stage, saved.best_common_miou) == ("finished", 2, None)
    assert unsaved.state == "stopped"


def test_runs_are_found_at_any_depth_the_latest_first_and_nothing_within_a_run(tmp_path: Path) -> None:
    make_run(tmp_path / "old", start(), age_s=500)
    make_run(tmp_path / "sweep" / "new", start())
    make_run(tmp_path / "sweep" / "middle", start(), age_s=50)
    make_run(tmp_path / "old" / "checkpoints" / "copy", start())
    (tmp_path / "no_run").mkdir()
    assert [run.name for run in list_runs(tmp_path)] == ["sweep/new", "sweep/middle", "old"]
    assert [run.name for run in list_runs(tmp_path / "old")] == ["."]


@pytest.mark.parametrize(
    "content",
    [
        b'{"step": 3}\n',
        b"[1, 2]\n",
        b"\xff\xfe\x00",
        b'{"event": "step", "step": 3, "stage": 9}\n',
    ],
)
def test_a_damaged_run_is_listed_as_such_beside_the_others(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "good", start())
    (make_run(tmp_path / "bad") / "metrics.jsonl").write_bytes(content)
    by_name = {run.name: run for run in list_runs(tmp_path)}
    assert by_name["good"].state == "stopped"
    assert by_name["bad"].state == "damaged" and "metrics.jsonl" in by_name["bad"].problem
    assert "damaged" in printed(capsys, str(tmp_path))


def test_a_last_line_cut_short_by_a_crash_is_no_damage(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", start(), step(10, 0, 2.0))
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "step", "st')
    assert list_runs(tmp_path)[0].step == 10


def test_the_list_is_aligned_text_where_there_is_no_terminal_and_json_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "first", start(), step(31, 1, 3.456))
    make_run(tmp_path / "a_longer_name", age_s=60)
    heading, first, second = printed(capsys, str(tmp_path)).splitlines()
    assert first.split()[:8] == ["first", "stopped", "2/2", "128+512", "31/60", "-", "3.46", "4"]
    assert second.split()[:5] == ["a_longer_name", "stopped", "-/-", "-", "-/-"]
    assert heading.index("state") == first.index("stopped") == second.index("stopped")
    listed = json.loads(printed(capsys, str(tmp_path), "--json"))
    assert [run["name"] for run in listed] == ["first", "a_longer_name"]
    assert listed[0]["patch_sizes"] == [128, 512]


def test_a_folder_without_runs_and_one_that_is_not_there_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no runs" in printed(capsys, str(tmp_path))
    with pytest.raises(RunError, match="no such folder"):
        printed(capsys, str(tmp_path / "missing"))


def test_listing_runs_does_not_load_tensorflow() -> None:
    code = "import sys, trainer.cli.runs, trainer.train.runs; print('tensorflow' in sys.modules)"
    assert must_pass(run_python("-c", code)).strip() == "False"
