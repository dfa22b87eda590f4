"""The main job on real tissue: files that nobody on this project made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from launch import mpirun, must_pass, run_python, widefield

FEW_STEPS = ("curriculum.0.steps=4", "curriculum.1.steps=3", "evaluation.figure_regions=1")
SMALL = ("model.aspp_channels=16", "model.decoder_channels=16")


@pytest.mark.long
def test_kidney_images_with_colour_masks_train_on_two_ranks(fixtures: Path, tmp_path: Path) -> None:
    manifest, run = tmp_path / "glomeruli.csv", tmp_path / "run"
    must_pass(run_python("tools/glomeruli_manifest.py", fixtures / "seg", manifest))
    overrides = (f"data.path={manifest}", f"output={run}", *FEW_STEPS, *SMALL)
    must_pass(mpirun(2, "-m", "trainer", "train", "configs/glomeruli.yaml", *overrides))
    report = json.loads((run / "report.json").read_text())
    assert [s["patch_size"] for s in report["stages"]] == [256, 512]
    for stage in report["stages"]:
        assert stage["common_megapixels"] == 2 * 1024 * 1024 / 1e6, "two whole images validate, at every size"
        truth = [sum(row) for row in stage["common_confusion"]]
        assert 0.01 < truth[1] / sum(truth) < 0.5, "the red pixels are the glomeruli"
    assert (run / "figures" / "regions.png").stat().st_size > 10_000


@pytest.mark.long  # in make test slides of this kind are indexed, not trained on
def test_a_real_aperio_slide_is_indexed_and_trained_on_through_openslide(fixtures: Path, tmp_path: Path) -> None:
    slides = [fixtures / "wsi" / n for n in ("CMU-1-Small-Region.svs", "tcga-cr-7395-01a-01-ts1.svs")]
    must_pass(run_python("tools/tissue_labels.py", tmp_path, *slides))
    overrides = (f"data.path={tmp_path / 'manifest.csv'}", f"output={tmp_path / 'run'}", *FEW_STEPS, *SMALL)
    out = must_pass(widefield("index", "configs/tissue.yaml", *overrides))
    assert "256  train       1       88" in out, out  # (2220 // 256) x (2967 // 256)
    must_pass(widefield("train", "configs/tissue.yaml", *overrides, "evaluation.max_regions=3"))
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["world_size"] == 1 and report["backend"] == "single"
    assert all(stage["val_patches"] > 0 for stage in report["stages"])


def test_an_unopenable_slide_in_a_manifest_is_named_before_training_starts(fixtures: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "m.csv"
    lines = [f"{fixtures}/seg/images/{n}.png,{fixtures}/seg/masks/{n}.png" for n in (10025, 10063)]
    manifest.write_text("slide,annotation\n" + "\n".join([*lines, f"{fixtures}/wsi/unopenable.tiff,"]) + "\n")
    done = widefield("train", "configs/glomeruli.yaml", f"data.path={manifest}", f"output={tmp_path / 'run'}")
    assert done.returncode == 2
    assert "unopenable.tiff" in done.stderr and "fix:" in done.stderr
    assert "Traceback" not in done.stderr
