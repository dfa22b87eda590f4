"""A sweep and a cross-validation as a user starts them, and starts them again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from launch import must_pass, widefield
from tiny import write_config

from trainer.config import load_config
from trainer.patches.index import read_index

QUICK = {
    # of all backbones, the one that TensorFlow traces fastest
    "model": {"backbone": "vgg16", "aspp_channels": 8, "decoder_channels": 8},
    "training": {"optimizer": {"name": "sgd", "learning_rate": 0.01}, "loss": {"dice": 0.0}},
    "curriculum": [{"patch_size": 32, "local_batch_size": 1, "steps": 1}],
    "evaluation": {"max_patches": 1, "max_regions": 4, "figure_regions": 0},
}


@pytest.fixture
def config_file(tiny_slides: Path, tmp_path: Path) -> Path:
    return write_config(tmp_path, tiny_slides, **QUICK)


def written(folder: Path) -> dict[str, int]:
    """When each file of the runs was last written: their configurations, events, checkpoints, reports, logs."""
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.parent != folder} | {
        str(p): p.stat().st_mtime_ns for p in folder.glob("*.log")
    }


def test_a_sweep_trains_each_run_once_and_ranks_them(config_file: Path) -> None:
    command = ["sweep", config_file, "training.optimizer.learning_rate=[0.01,0.001]"]
    assert "2/2 learning_rate=0.001: finished in" in must_pass(widefield(*command))
    folder = config_file.parent / "run-sweep"
    runs = json.loads((folder / "sweep.json").read_text())["runs"]
    assert [r["state"] for r in runs] == ["finished", "finished"]
    assert all(0 <= r["scores"]["miou"] <= 1 and r["scores"]["seconds"] > 0 for r in runs)
    best = max(runs, key=lambda r: r["scores"]["miou"])["run"]["name"]
    assert best in next(x for x in (folder / "sweep.md").read_text().splitlines() if "report.md" in x)
    assert (folder / "sweep.png").stat().st_size > 5000

    before = written(folder)
    said = must_pass(widefield(*command))
    assert "1/2 learning_rate=0.01: is finished" in said and "2/2 learning_rate=0.001: is finished" in said
    assert written(folder) == before


@pytest.mark.long  # test-slurm has a cross-validation as an array
def test_a_crossvalidation_trains_each_fold_once_from_patches_that_were_found_once(config_file: Path) -> None:
    command = ["crossval", config_file, "--folds", "2"]
    must_pass(widefield(*command))
    folder = config_file.parent / "run-crossval"
    indices = [read_index(folder / f"fold-{k}" / "index.parquet") for k in (1, 2)]
    sides = {s.slide.name: [next(x.split for x in i.slides if x.slide == s.slide) for i in indices]
             for s in indices[0].slides}  # fmt: skip
    assert sides.pop("test_001.tif") == ["test", "test"]
    assert len(sides) == 3 and all(sorted(side) == ["train", "val"] for side in sides.values())
    assert len(list((folder / "index.parts").iterdir())) == 4, "one file for each slide"
    second = load_config(folder / "fold-2" / "config.yaml")
    assert (second.split.fold, second.split.folds) == (2, 2)
    summary = json.loads((folder / "crossval.json").read_text())["summary"]
    assert summary["scores"]["miou"]["n"] == 2 and summary["classes"]["normal"]["iou"]["n"] == 2
    assert "| mIoU |" in (folder / "crossval.md").read_text()

    before = written(folder)
    assert "2/2 fold-2: is finished" in must_pass(widefield(*command))
    assert written(folder) == before
