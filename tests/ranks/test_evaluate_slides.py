"""`widefield evaluate --slides` as people start it: on ranks, again, and with a slide that cannot be read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from launch import mpirun, must_pass, widefield


@pytest.fixture(scope="module")
def run(two_rank_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose slides were predicted and scored on two ranks."""
    run = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(two_rank_run, run)
    out = must_pass(mpirun(2, "-m", "trainer", "evaluate", run, "--slides", "all"))
    assert "FROC score" in out and "slide AUC" in out
    return run


def test_ranks_predict_and_score_slides_and_one_process_finds_the_same(run: Path) -> None:
    content = (run / "slides.json").read_bytes()
    report = json.loads(content)
    assert report["failed"] == []
    assert {row["slide"] for row in report["slides"]} == {
        "normal_001.tif", "test_001.tif", "tumor_001.tif", "tumor_002.tif"
    }  # fmt: skip
    assert report["slide_auc"]["with_tumour"] == 3
    for row in report["slides"]:
        folder = run / row["folder"]
        assert (folder / "overview.png").exists() and 0 <= row["accuracy"] <= 1
        tumour = sum(row["confusion"][1])
        assert (tumour > 0) == row["has_tumour"] == ("normal" not in row["slide"])
    page = (run / "slides.html").read_text()
    assert all(f'href="{row["folder"]}/overview.png"' in page for row in report["slides"])
    said = must_pass(widefield("evaluate", run, "--slides", "all"))
    assert said.count("was finished before") == 4
    assert (run / "slides.json").read_bytes() == content


def test_a_slide_that_cannot_be_read_is_listed_and_the_others_are_scored(
    run: Path, tiny_slides: Path, tmp_path: Path
) -> None:
    shutil.copy(tiny_slides / "testing" / "images" / "test_001.tif", tmp_path)
    shutil.copy(next(tiny_slides.rglob("test_001.xml")), tmp_path)
    (tmp_path / "test_002.tif").write_bytes(b"no slide")
    done = widefield("evaluate", run, f"data.path={tmp_path}", "--slides", "all", "--predictions", run / "slides")
    assert done.returncode == 2 and "test_002.tif" in done.stderr and "Traceback" not in done.stderr
    report = json.loads((run / "slides.json").read_text())
    assert [row["slide"] for row in report["slides"]] == ["test_001.tif"]
    assert [row["slide"] for row in report["failed"]] == ["test_002.tif"]
    assert report["slide_auc"]["auc"] is None
    assert "test_002.tif" in (run / "slides.html").read_text()
