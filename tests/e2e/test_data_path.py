"""A real slide with a QuPath drawing, from file to trained network through every part of the data path."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import yaml
from launch import mpirun, must_pass, widefield

from trainer.config import Config

LESIONS = {"Tumor": [(300, 300, 900, 1500)], "Stroma": [(1000, 1500, 1900, 2700)], "Note": [(10, 10, 60, 60)]}


def geojson(path: Path) -> Path:
    """Rectangles with QuPath's classifications, and a point, which is no area."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]]},
            "properties": {"objectType": "annotation", "classification": {"name": group, "color": [200, 0, 0]}},
        }
        for group, boxes in LESIONS.items()
        for x0, y0, x1, y1 in boxes
    ]
    features.append({"type": "Feature", "geometry": {"type": "Point", "coordinates": [5, 5]}, "properties": {}})
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


@pytest.fixture(scope="module")
def config_file(real_slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data-path")
    rows = []
    for name, split in (("a", "train"), ("b", "val")):
        shutil.copy(real_slide, folder / f"{name}.svs")
        geojson(folder / f"{name}.geojson")
        rows.append(f"{name}.svs,{name}.geojson,{split}")
    (folder / "slides.csv").write_text("\n".join(["slide,annotation,split", *rows]) + "\n")
    classes = [{"name": "other"}, {"name": "stroma", "groups": ["Stroma"]}, {"name": "tumour", "groups": ["Tumor"]}]
    settings = {
        "name": "data-path",
        "output": str(folder / "run"),
        "index_file": str(folder / "index.parquet"),
        "data": {"path": str(folder / "slides.csv"), "classes": classes, "skip_groups": ["Note"]},
        "index": {"resolution": {"mpp": 1.0}, "positions": "random", "random_per_class": 20},
        "augment": {"hed": 0.05},
        "stain": {"normalise": "macenko"},
        "stores": {"kind": "hdf5", "path": str(folder / "store"), "stage_to": "$STAGE"},
        "model": {"backbone": "mobilenetv2", "aspp_channels": 16, "decoder_channels": 16},
        "curriculum": [
            {"patch_size": 64, "local_batch_size": 4, "steps": 3},
            {"patch_size": 128, "local_batch_size": 1, "steps": 3},
        ],
        "evaluation": {"max_patches": 20, "max_regions": 4, "figure_regions": 1},
    }
    Config.model_validate(settings)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_index_reports_what_every_slide_holds(config_file: Path) -> None:
    said = must_pass(widefield("index", config_file))
    assert "passed over" in said
    with (config_file.parent / "index.slides.csv").open() as file:
        rows = {row["slide"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"a.svs", "b.svs"}
    row = rows["a.svs"]
    assert (row["mpp"], row["stains"]) == ("0.499", "estimated")
    assert all(group in row["groups"] for group in ("Stroma: 1", "Tumor: 1", "Note: 1"))
    assert float(row["tumour_mpx"]) == pytest.approx(600 * 1200 / 1e6)
    assert float(row["stroma_mm2"]) == pytest.approx(900 * 1200 * 0.499**2 / 1e6, rel=1e-3)
    assert "point" in row["passed_over"] and "Note" in row["passed_over"]
    assert 0 < int(row["patches_64"]) <= 60 and int(row["patches_128"]) > 0


def test_page_shows_both_slides(config_file: Path) -> None:
    must_pass(widefield("inspect", config_file))
    page = (config_file.parent / "inspect.html").read_text()
    assert "a.svs" in page and "b.svs" in page and "data:image/jpeg;base64," in page and "<script" not in page


@pytest.mark.long
def test_two_ranks_train_on_extracted_staged_normalised_patches(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGE", str(tmp_path))
    missing = widefield("train", config_file)
    assert missing.returncode == 2 and "StoreError" in missing.stderr and "widefield extract" in missing.stderr
    must_pass(widefield("extract", config_file))
    must_pass(mpirun(2, "-m", "trainer", "train", config_file, "--overwrite"))
    report = json.loads((config_file.parent / "run" / "report.json").read_text())
    assert [s["patch_size"] for s in report["stages"]] == [64, 128]
    assert all(0 <= s["common_miou"] <= 1 for s in report["stages"])
    assert list(tmp_path.iterdir()) == []  # nothing staged stays behind
