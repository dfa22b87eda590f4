"""The main job on two real Horovod ranks: what ranks must agree on, and how they stop."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
from launch import mpirun, must_pass, widefield
from tiny import write_config

from trainer.train.runs import list_runs

REPLICAS = Path(__file__).with_name("replicas_main.py")


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.norm=group", "training.compression=fp16"),
        ("model.norm=sync_batch", "training.compression=bf16", "training.precision=mixed_bfloat16"),
        pytest.param(("model.norm=batch", "training.compression=none"), marks=pytest.mark.long),
        pytest.param(("model.norm=frozen", "training.compression=fp16"), marks=pytest.mark.long),
        pytest.param(("model.norm=group", "training.compression=fp16", "runtime.backend=mpi"), marks=pytest.mark.long),
    ],
    ids=lambda o: " ".join(x.split("=")[1] for x in o) if isinstance(o, tuple) else None,
)
def test_replicas_are_bit_equal_after_the_broadcast_and_after_every_step(
    tiny_slides: Path, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    config = write_config(tmp_path, tiny_slides)
    out = must_pass(mpirun(2, REPLICAS, config, *overrides))
    assert sorted(line for line in out.splitlines() if line.startswith("rank")) == ["rank 0 ok", "rank 1 ok"]


def test_a_run_leaves_its_whole_record(two_rank_run: Path) -> None:
    report = json.loads((two_rank_run / "report.json").read_text())
    assert (report["world_size"], report["compression"], report["precision"]) == (2, "fp16", "float32")
    assert [s["patch_size"] for s in report["stages"]] == [64, 160]
    for stage in report["stages"]:
        for key in ("val_accuracy", "val_miou", "val_dice", "val_auc", "common_miou", "common_auc"):
            assert 0 <= stage[key] <= 1
        assert stage["common_megapixels"] == pytest.approx(5 * 160 * 160 / 1e6), "the same pixels for every size"
        assert stage["peak_memory_gb"] > 0.1
        assert stage["megapixels_per_second"] > 0
        assert 0 <= stage["data_wait_fraction"] < 1
    assert [r["rank"] for r in report["ranks"]] == [0, 1]
    assert all(r["cpus"] and r["threads"] >= 1 for r in report["ranks"])
    events = [json.loads(x) for x in (two_rank_run / "metrics.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events if e["event"] == "stage"] == [4, 7]
    for name in ("report.md", "config.yaml", "index.parquet", "figures/curves.png", "figures/regions.png"):
        assert (two_rank_run / name).stat().st_size > 100, name
    (board,) = (two_rank_run / "tensorboard").glob("events*")
    shown = board.read_bytes()
    for name in ("loss", "learning_rate", "megapixels_per_second", "data_wait_fraction", "compute_fraction"):
        assert f"train/{name}".encode() in shown
    for tag in ("train/allreduce_fraction", "train/peak_memory_gb", "evaluate_64px/common_miou", "predictions/region0"):
        assert tag.encode() in shown
    (listed,) = list_runs(two_rank_run)
    assert (listed.state, listed.stage, listed.step, listed.world_size) == ("finished", 2, 7, 2)
    assert listed.best_common_miou == max(s["common_miou"] for s in report["stages"])
    assert not list(two_rank_run.rglob(".*.part*")), "nothing half-written stays"


def test_evaluation_on_two_ranks_equals_one_process_and_the_report(two_rank_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(two_rank_run, run)
    # as many threads as each of the two ranks has: a sum split over other threads differs in its last bit
    must_pass(widefield("evaluate", run, "runtime.intra_op_threads=1"))
    alone = json.loads((run / "evaluation.json").read_text())
    must_pass(mpirun(2, "-m", "trainer", "evaluate", run))
    together = json.loads((run / "evaluation.json").read_text())
    assert alone == together
    report = json.loads((run / "report.json").read_text())
    for row, stage in zip(together, report["stages"], strict=True):
        for key in ("val_confusion", "common_confusion", "common_miou", "common_auc", "val_auc"):
            assert row[key] == stage[key], key
    must_pass(widefield("evaluate", run, "--trained-weights"))
    assert json.loads((run / "evaluation.json").read_text())[-1]["val_auc"] != alone[-1]["val_auc"]


def test_the_index_is_the_same_file_on_one_two_and_three_ranks(tiny_slides: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, tiny_slides)
    must_pass(widefield("index", config, "-o", tmp_path / "1.parquet"))
    for n in (2, 3):
        must_pass(mpirun(n, "-m", "trainer", "index", config, "-o", tmp_path / f"{n}.parquet"))
        assert (tmp_path / f"{n}.parquet").read_bytes() == (tmp_path / "1.parquet").read_bytes()


def test_a_mistake_is_said_once_and_ends_all_ranks_with_status_2(tiny_slides: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, tiny_slides)
    done = mpirun(2, "-m", "trainer", "train", config, "model.backbon=resnet50")
    assert done.returncode == 2
    assert (done.stdout + done.stderr).count("did you mean 'backbone'?") == 1
    assert "Traceback" not in done.stdout + done.stderr


def test_a_slide_that_breaks_in_mid_training_names_itself_and_stops_all_ranks(
    tiny_slides: Path, tmp_path: Path
) -> None:
    slides = tmp_path / "slides"
    shutil.copytree(tiny_slides, slides)
    config = write_config(tmp_path, slides)
    must_pass(widefield("index", config, "-o", tmp_path / "run" / "index.parquet"))
    broken = slides / "training" / "tumor" / "tumor_001.tif"
    content = bytearray(broken.read_bytes())
    size = len(content)
    third = size // 3
    content[third : 2 * third] = bytes(third)  # the same length, so that the index still fits; its tiles are gone
    broken.write_bytes(content)
    started = time.monotonic()
    done = mpirun(2, "-m", "trainer", "train", config, "curriculum.0.steps=200", "split.val_fraction=0.34")
    output = done.stdout + done.stderr
    assert done.returncode == 2, output[-3000:]
    assert "tumor_001.tif" in output
    assert "Traceback" not in output
    assert time.monotonic() - started < 120
