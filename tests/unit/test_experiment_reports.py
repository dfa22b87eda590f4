"""Reports of sweeps and cross-validations, from report.json files written by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from trainer.errors import RunError
from trainer.experiments.crossval import spread
from trainer.experiments.grid import NamedRun, fold_runs, sweep_runs
from trainer.experiments.plan import Experiment
from trainer.experiments.report import read_experiment, write_report

PLAN = {"stages": [{"sizes": {"64": 1.0}}, {"sizes": {"128": 1.0}}], "total_steps": 9, "world_size": 1}


def stage(miou: float | None, tumour: int, seconds: float, memory: float) -> dict[str, object]:
    dice = None if miou is None else miou + 0.1
    return {
        "common_miou": miou,
        "common_dice": dice,
        "common_auc": None,
        "common_accuracy": miou,
        "common_class_iou": {"normal": miou, "tumour": miou if tumour else 0.0},
        "common_class_dice": {"normal": dice, "tumour": dice if tumour else 0.0},
        "common_confusion": [[90, 10], [tumour, 0]],
        "peak_memory_gb": memory,
        "seconds": seconds,
    }


def finished(folder: Path, miou: float | None, tumour: int = 5) -> None:
    folder.mkdir(parents=True)
    events = [{"event": "start", "step": 0, **PLAN}, {"event": "end", "step": 9}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    stages = [stage(0.1, tumour, 10.0, 2.5), stage(miou, tumour, 32.0, 1.5)]
    report = {"classes": ["normal", "tumour"], "stages_planned": 2, "stages": stages}
    (folder / "report.json").write_text(json.dumps(report))


def stopped(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(json.dumps({"event": "start", "step": 0, **PLAN}) + "\n")


def sweep(folder: Path, *overrides: str) -> Experiment:
    return Experiment("sweep", folder, "widefield sweep x.yaml", tuple(sweep_runs(overrides)))


def crossval(folder: Path, runs: Sequence[NamedRun]) -> Experiment:
    return Experiment("crossval", folder, "widefield crossval x.yaml", tuple(runs))


def rows(markdown: Path) -> list[list[str]]:
    """Cells of every line of every table, headings included."""
    lines = [x for x in markdown.read_text().splitlines() if x.startswith("| ") and "---:" not in x]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_sweep_ranks_its_final_networks_and_names_what_is_not_finished(tmp_path: Path) -> None:
    experiment = sweep(tmp_path, "training.optimizer.learning_rate=[0.1,0.01]", "model.norm=[group,batch]")
    for run, miou in zip(experiment.runs, (0.5, 0.75, None, None), strict=True):
        if miou:
            finished(tmp_path / run.name, miou)
    stopped(tmp_path / experiment.runs[2].name)
    (tmp_path / "learning_rate=0.01,norm=batch.log").touch()
    page = write_report(experiment)
    head, *body = rows(page)
    assert head[:5] == ["learning_rate", "norm", "mIoU", "Dice", "AUC"]
    assert [row[:5] for row in body] == [
        ["0.1", "batch", "0.7500", "0.8500", "n/a"],
        ["0.1", "group", "0.5000", "0.6000", "n/a"],
    ]
    cost = dict(zip(head, body[0], strict=True))
    assert (cost["peak memory per rank (GB)"], cost["seconds"]) == ("2.50", "42")
    text = page.read_text()
    assert "2 of 4 runs" in text and "- learning_rate=0.01,norm=group: stopped" in text and "norm=batch: failed" in text
    assert "not scored on the same pixels" not in text
    assert Image.open(tmp_path / "sweep.png").size[0] > 500


def test_runs_scored_on_other_pixels_are_not_ranked_without_a_word(tmp_path: Path) -> None:
    experiment = sweep(tmp_path, "seed=[1,2]")
    for number, run in enumerate(experiment.runs, 5):
        finished(tmp_path / run.name, 0.5, tumour=number)
    assert "not scored on the same pixels" in write_report(experiment).read_text()


def test_a_report_is_written_anew_from_its_own_record(tmp_path: Path) -> None:
    experiment = sweep(tmp_path, "seed=[1,2]")
    page = write_report(experiment)
    assert "0 of 2 runs" in page.read_text() and not (tmp_path / "sweep.png").exists()
    finished(tmp_path / "seed=2", 0.625)
    page = write_report(read_experiment(tmp_path, "sweep"))
    assert rows(page)[1][:2] == ["2", "0.6250"] and "widefield sweep x.yaml" in page.read_text()
    runs = json.loads((tmp_path / "sweep.json").read_text())["runs"]
    assert [(r["run"]["settings"], r["state"]) for r in runs] == [({"seed": 1}, "waiting"), ({"seed": 2}, "finished")]
    with pytest.raises(RunError, match="no crossval was begun here"):
        read_experiment(tmp_path, "crossval")


def test_a_finished_run_without_a_whole_report_is_damaged_and_costs_no_other_its_row(tmp_path: Path) -> None:
    experiment = sweep(tmp_path, "seed=[1,2,3]")
    for run in experiment.runs:
        finished(tmp_path / run.name, 0.5)
    (tmp_path / "seed=1" / "report.json").unlink()
    (tmp_path / "seed=2" / "report.json").write_text('{"stages": [], "stages_planned": 2, "classes": []}')
    page = write_report(experiment)
    assert [row[0] for row in rows(page)] == ["seed", "3"]
    assert "- seed=1: damaged\n- seed=2: damaged" in page.read_text()


def test_folds_have_a_mean_and_a_sample_deviation_over_those_that_have_the_score(tmp_path: Path) -> None:
    experiment = crossval(tmp_path, fold_runs(4, ()))
    for run, miou in zip(experiment.runs, (0.5, 0.625, 0.75), strict=False):
        finished(tmp_path / run.name, miou)
    page = write_report(experiment)
    table = {row[0]: row[1:] for row in rows(page)}
    assert table["mIoU"] == ["0.6250", "0.1250", "3"] and table["AUC"] == ["n/a", "n/a", "0"]
    assert table["IoU of tumour"] == ["0.6250", "0.1250", "3"] and table["seconds"] == ["42", "0", "3"]
    assert table["[fold-3](fold-3/report.md)"][0] == "0.7500"
    assert "3 of 4 runs" in page.read_text() and "- fold-4: waiting" in page.read_text()
    assert "Warning" not in page.read_text()
    summary = json.loads((tmp_path / "crossval.json").read_text())["summary"]
    assert summary["scores"]["miou"] == {"mean": 0.625, "standard_deviation": 0.125, "n": 3}
    assert summary["classes"]["normal"]["dice"]["n"] == 3


def test_a_class_that_a_fold_cannot_score_is_warned_of_and_left_out_of_the_mean_of_its_class(tmp_path: Path) -> None:
    experiment = crossval(tmp_path, fold_runs(3, ()))
    for run, tumour in zip(experiment.runs, (5, 0, 5), strict=True):
        finished(tmp_path / run.name, 0.5, tumour)
    page = write_report(experiment)
    assert "**Warning:** fold-2 scored no pixel of tumour" in page.read_text()
    table = {row[0]: row[1:] for row in rows(page)}
    assert table["IoU of tumour"] == ["0.5000", "0.0000", "2"] and table["IoU of normal"][2] == "3"


def test_one_value_has_no_deviation() -> None:
    assert spread([0.5, None]) == {"mean": 0.5, "standard_deviation": None, "n": 1}
    assert spread([]) == {"mean": None, "standard_deviation": None, "n": 0}
