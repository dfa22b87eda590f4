"""The faults of this idea's first code (FACTS.md), each a named test on real ranks.

One part lies elsewhere: 10, noise in place of an unreadable patch: `test_a_slide_that_breaks_in_mid_training...` in
test_training.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from launch import mpirun, must_pass
from safetensors.numpy import load_file
from tiny import write_config

from trainer.patches.index import read_index
from trainer.train.run_dir import read_events

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def answers(tiny_slides: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What two real ranks say of each fault, up to the first one that is there."""
    done = mpirun(2, HERE / "faults_main.py", write_config(tmp_path_factory.mktemp("faults"), tiny_slides))
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        (1, "replicas were never equal"),
        (2, "every rank drew a split of its own"),
        (3, "patches of one slide were on both sides"),
        (4, "centres that validate were trained on"),
        (6, "AUC came from classes in place of probabilities"),
        (7, "batch norm ran in inference mode while training"),
        (10, "gradients were applied twice"),
    ],
    ids=lambda x: str(x).replace(" ", "_"),
)
def test_fault_of_the_first_code_is_gone_on_both_ranks(answers: str, fault: int, what: str) -> None:
    for rank in (0, 1):
        assert f"rank {rank} fault {fault}:" in answers, f"{what}\n{answers[-3000:]}"


def test_fault_5_every_rank_validates_its_share_and_the_sums_are_of_all(two_rank_run: Path) -> None:
    report = json.loads((two_rank_run / "report.json").read_text())
    index = read_index(two_rank_run / "index.parquet")
    everything = [min(37, len(index.select(size, "val"))) for size in (64, 160)]  # 37: evaluation.max_patches
    assert [s["val_patches"] for s in report["stages"]] == everything, "all patches, not the share of rank 0"
    for stage in report["stages"]:
        assert sum(map(sum, stage["val_confusion"])) == pytest.approx(stage["val_megapixels"] * 1e6)


def test_fault_8_a_larger_size_goes_on_from_the_weights_of_the_smaller(two_rank_run: Path) -> None:
    first, last = (load_file(two_rank_run / "checkpoints" / f"step-0000000{n}.safetensors") for n in (4, 7))
    counters = [int(values) for x in (first, last) for name, values in x.items() if "iteration" in name]
    assert counters == [4, 7], "one optimiser counts through all stages"
    kernel = next(n for n in first if n.endswith("classifier/kernel:0") and n.startswith("model/"))
    assert 0 < abs(last[kernel] - first[kernel]).max() < 0.1, "trained further, not drawn anew"


def test_fault_10_the_rate_follows_the_world_size(two_rank_run: Path) -> None:
    rates = [e["learning_rate"] for e in read_events(two_rank_run / "metrics.jsonl") if e["event"] == "step"]
    assert rates == [2 * 0.001] * len(rates) and rates


def test_fault_9_every_size_is_scored_on_the_same_pixels(two_rank_run: Path) -> None:
    stages = json.loads((two_rank_run / "report.json").read_text())["stages"]
    truth = [[sum(row) for row in s["common_confusion"]] for s in stages]
    assert truth[0] == truth[1], "the same pixels of every class"


def test_gradients_of_two_ranks_equal_those_of_one_with_all_their_patches() -> None:
    out = must_pass(mpirun(2, HERE / "gradients_main.py"))
    assert {"rank 0 ok", "rank 1 ok"} <= set(out.splitlines())
