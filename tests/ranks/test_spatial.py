"""One patch on several ranks: outputs, loss, gradients and weights are those of one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launch import mpirun, must_pass, widefield
from safetensors.numpy import load_file
from tiny import write_config

from trainer.train.checkpoints import latest_checkpoint

LAYERS, NETWORK = (Path(__file__).with_name(f"spatial{name}_main.py") for name in ("_layers", ""))
SPLIT = {"spatial": 2}
long = (pytest.mark.long, pytest.mark.timeout(900))


@pytest.mark.parametrize(
    ("ranks", "stacks", "backend"),
    [
        (2, 12, "horovod"),
        (4, 4, "mpi"),
        pytest.param(3, 12, "mpi", marks=long),
        pytest.param(2, 100, "horovod", marks=long),
    ],
)
def test_random_stacks_of_layers_are_the_same_on_slabs(ranks: int, stacks: int, backend: str) -> None:
    out = must_pass(mpirun(ranks, LAYERS, str(stacks), str(ranks), backend, timeout_s=900))
    assert sorted(line.split(",")[0] for line in out.splitlines() if "ok" in line) == [
        f"rank {r} ok" for r in range(ranks)
    ]


@pytest.mark.parametrize(
    "network",
    [
        "resnet18 16 sync_batch 592",
        pytest.param("mobilenetv2 16 group 576 relu", marks=long),
        pytest.param("resnet18 16 sync_batch 592 mpi", marks=long),
        pytest.param("mobilenetv2 16 group 592 recompute mixed_bfloat16", marks=long),
        *(
            pytest.param(f"{backbone} {stride} {norm} {size}", marks=long)
            for backbone in ("resnet50", "mobilenetv2", "efficientnetb0")
            for stride, size in ((8, 592), (16, 608))
            for norm in ("group", "sync_batch")
        ),
        pytest.param("resnet50 16 group 592 recompute", marks=long),
        *(pytest.param(f"resnet18 16 group 192 {name}", marks=long) for name in ("unet", "fpn", "linknet", "resunet")),
        pytest.param("mobilenetv2 16 group 192 recompute unet", marks=long),
    ],
)
def test_a_network_learns_the_same_from_slabs(network: str) -> None:
    out = must_pass(mpirun(2, NETWORK, *network.split(), timeout_s=900))
    assert sorted(line for line in out.splitlines() if line.endswith("ok")) == ["rank 0 ok", "rank 1 ok"]


def curriculum(sizes: list[int], batch: int, parallel: dict[str, int]) -> list[dict]:
    """A step of the same patches whether two ranks take `batch` each, or one takes all; the last size is shared."""
    whole = [{"patch_size": size, "local_batch_size": batch, "steps": 2} for size in sizes[:-1]]
    return [*whole, {"patch_size": sizes[-1], "local_batch_size": 1, "steps": 1, "parallel": parallel}]


def weights_of(run: Path) -> dict[str, np.ndarray]:
    return load_file(latest_checkpoint(run)[0])


def distance(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    names = [name for name in one if name.startswith("model/")]
    assert len(names) > 50
    return float(np.sqrt(sum(((one[n].astype(float) - other[n]) ** 2).sum() for n in names)))


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        ({"architecture": "resunet"}, [64, 192]),
        pytest.param({"backbone": "mobilenetv2", "aspp_channels": 16}, [256, 512, 1024], marks=long),
    ],
)
def test_a_curriculum_goes_from_whole_patches_to_shared_ones(
    tiny_slides: Path, tmp_path: Path, model: dict[str, Any], sizes: list[int]
) -> None:
    plain = {"name": "sgd", "learning_rate": 1e-4, "scale_with_world_size": "none"}
    training = {"optimizer": plain, "compression": "none", "keep_checkpoints": 10}
    runs = []
    for name, batch, parallel in (("shared", 1, SPLIT), ("alone", 2, {})):
        (tmp_path / name).mkdir()
        config = write_config(
            tmp_path / name,
            tiny_slides,
            training=training,
            curriculum=curriculum(sizes, batch, parallel),
            model={"decoder_channels": 16, "dropout": 0, **model},
            evaluation={"max_patches": 8, "max_regions": 1, "figure_regions": 1},
        )
        if parallel:
            must_pass(mpirun(2, "-m", "trainer", "train", config, timeout_s=900))
        else:
            must_pass(widefield("train", config, "runtime.intra_op_threads=1", timeout_s=900))
        runs.append(tmp_path / name / "run")
    shared, alone = (weights_of(run) for run in runs)
    started = load_file(runs[1] / "checkpoints" / "step-00000000.safetensors")
    # at the kinks of ReLUs two right gradients differ, and each step makes more of that
    assert distance(shared, alone) < 0.02 * distance(alone, started)
    shared, alone = (json.loads((run / "report.json").read_text())["stages"] for run in runs)
    *before, last = shared
    assert ([s["spatial"] for s in before], last["spatial"]) == ([1] * len(before), 2)
    assert [s["halo_bytes_per_step"] > 0 for s in shared] == [False] * len(before) + [True]
    assert (
        [s["global_batch_size"] for s in shared] == [s["global_batch_size"] for s in alone] == [2] * len(before) + [1]
    )
    for one, other in zip(shared, alone, strict=True):
        for key in ("val_accuracy", "val_auc", "common_miou", "common_auc"):
            assert one[key] == pytest.approx(other[key], abs=1e-3), key
        for key in ("val_megapixels", "val_patches", "common_patches"):
            assert one[key] == other[key]
    assert "ranks per patch" in (runs[0] / "report.md").read_text()
    assert (runs[0] / "figures/regions.png").stat().st_size == pytest.approx(
        (runs[1] / "figures/regions.png").stat().st_size, rel=0.02
    ), "the same pictures but for a few pixels"


def test_what_cannot_be_shared_is_refused_before_the_first_step(tiny_slides: Path, tmp_path: Path) -> None:
    stages = [{"patch_size": 64, "local_batch_size": 1, "steps": 1, "parallel": SPLIT}]
    config = write_config(tmp_path, tiny_slides, curriculum=stages)
    alone = widefield("train", config)
    assert alone.returncode == 2
    assert "1 rank(s) cannot be put into groups of 2" in alone.stderr and "Traceback" not in alone.stderr
    assert "curriculum[0].parallel.spatial" in alone.stderr
    thin = mpirun(2, "-m", "trainer", "train", config)
    assert thin.returncode == 2
    assert "thinner than the largest halo" in thin.stderr and "Traceback" not in thin.stderr
    assert "a patch of at least 576 px" in thin.stderr


@pytest.mark.long
def test_a_run_with_shared_patches_goes_on_without_and_the_other_way_round(tiny_slides: Path, tmp_path: Path) -> None:
    stages = [{"patch_size": 576, "local_batch_size": 1, "steps": 1, "parallel": SPLIT}]
    evaluation = {"max_patches": 1, "max_regions": 1, "figure_regions": 0}
    config = write_config(tmp_path, tiny_slides, curriculum=stages, evaluation=evaluation)
    run = tmp_path / "run"
    must_pass(mpirun(2, "-m", "trainer", "train", config, timeout_s=900))
    must_pass(widefield("train", "--resume", run, "curriculum.0.parallel.spatial=1", "curriculum.0.steps=2"))
    again = ("curriculum.0.parallel.spatial=2", "curriculum.0.steps=3")  # a run goes on with the settings it had last
    must_pass(mpirun(2, "-m", "trainer", "train", "--resume", run, *again))
    report = json.loads((run / "report.json").read_text())
    assert (report["stages"][0]["spatial"], report["stages"][0]["steps"]) == (2, 3)
