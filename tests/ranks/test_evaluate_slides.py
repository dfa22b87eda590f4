"""`widefield evaluate --slides` as people start it: on ranks, and again in one process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from launch import mpirun, widefield


@pytest.fixture(scope="module")
def run(two_rank_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(two_rank_run, run)
    return run


@pytest.fixture(scope="module")
def data(tiny_slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide with tumour, one without, and one that cannot be read."""
    data = tmp_path_factory.mktemp("data")
    for name in ("normal_001.tif", "test_001.tif", "test_001.xml"):
        shutil.copy(next(tiny_slides.rglob(name)), data)
    (data / "test_002.tif").write_bytes(b"no slide")
    return data


def test_ranks_and_one_process_score_slides_alike_and_list_those_that_cannot_be_read(run: Path, data: Path) -> None:
    arguments = "evaluate", run, f"data.path={data}", "--slides", "all"
    done = mpirun(2, "-m", "trainer", *arguments)
    assert done.returncode == 2 and "test_002.tif" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert "slide AUC" in done.stdout and "FROC score" in done.stdout
    content = (run / "slides.json").read_bytes()
    report = json.loads(content)
    assert {row["slide"]: row["has_tumour"] for row in report["slides"]} == {
        "normal_001.tif": False,
        "test_001.tif": True,
    }
    assert [row["slide"] for row in report["slides"] if row["trained_on"]] == ["normal_001.tif"]
    assert [row["slide"] for row in report["failed"]] == ["test_002.tif"]
    page = (run / "slides.html").read_text()
    assert "test_002.tif: cannot be opened" in page
    for row in report["slides"]:
        assert (run / row["folder"] / "overview.png").exists() and f'href="{row["folder"]}/overview.png"' in page
        assert 0 < row["accuracy"] <= 1 and row["megapixels"] == pytest.approx(1, abs=0.1)

    again = widefield(*arguments)
    assert again.returncode == 2 and again.stdout.count("was finished before") == 2
    assert (run / "slides.json").read_bytes() == content
