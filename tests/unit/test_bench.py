from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from PIL import Image

from trainer.bench.memory_report import write_report
from trainer.bench.points import Point, Setting
from trainer.cli.bench import parse_sizes
from trainer.errors import DataError


def point(patch_size: int, recompute: str, **changes: object) -> Point:
    setting = Setting(patch_size=patch_size, batch=1, precision="float32", recompute=recompute, backbone="resnet50")
    return Point(setting=setting, **{"modelled_gb": 2.2, "measured_gb": 2.0, "step_s": 0.5, **changes})


POINTS = [
    point(256, "none"),
    point(256, "blocks", step_s=0.65),
    point(2048, "none", measured_gb=None, step_s=None, not_measured="needs more than the 9.0 GB that were free"),
]


def test_the_report_says_error_cost_of_recomputing_and_what_was_not_measured(tmp_path: Path) -> None:
    write_report(POINTS, tmp_path / "new", "widefield bench memory")
    rows = [line for line in (tmp_path / "new" / "README.md").read_text().splitlines() if line.startswith("| 2")]
    assert rows == [
        "| 256 | float32 | none | 2.00 | 2.20 | +10.0% | 0.50 | 1.00 |",
        "| 256 | float32 | blocks | 2.00 | 2.20 | +10.0% | 0.65 | 1.30 |",
        "| 2048 | float32 | none | not measured: needs more than the 9.0 GB that were free | 2.20 |  |  |  |",
    ]
    result = json.loads((tmp_path / "new" / "bench.json").read_text())
    assert [p["measured_gb"] for p in result["points"]] == [2.0, 2.0, None]
    assert Image.open(tmp_path / "new" / "memory.png").width > 400
    assert len(list((tmp_path / "new").iterdir())) == 3  # nothing half-written is left


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="-o"):
        write_report(POINTS, tmp_path / "file", "")


def test_sizes_are_checked_before_anything_is_built() -> None:
    assert parse_sizes("256,512") == (256, 512)
    for text in ("", "256;512", "100", "16", "-32"):
        with pytest.raises(argparse.ArgumentTypeError, match="multiples of 16"):
            parse_sizes(text)
