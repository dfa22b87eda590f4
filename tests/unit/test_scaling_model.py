"""The performance model: on time lines that can be added up by hand, and on studies with known inputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from launch import ROOT

from trainer.errors import StudyError
from trainer.scaling.inputs import Inputs, merged, read_inputs, write_inputs
from trainer.scaling.model import Curve, Network, Profile, extrapolate, hierarchical_s, predict_step, ring_s, slowest_of
from trainer.scaling.model_report import write_model
from trainer.scaling.network import read_network
from trainer.scaling.records import Point, RunRecord
from trainer.scaling.steps import Steps
from trainer.scaling.study import write_run

PROFILE = Profile(256, 1, ready_s=(0.4, 0.6, 0.9), bucket_bytes=(30e6, 30e6, 10e6), step_s=1.0, spread=0.0)
NOTHING = Curve((1e6,), (0.0,))
NETWORK = Network("n", 1e-6, 10e9, 5e9, ranks_per_node=2, compute_speed=10, host_speed=1, spare_core=True)


def seconds(value: float) -> Curve:
    return Curve((1e6,), (value,))


def predicted(travel: float, *, host: float | None = None, ranks: int = 2) -> float:
    return predict_step(PROFILE, seconds(travel), ranks, None if host is None else seconds(host)).step_s


def test_one_rank_exchanges_nothing() -> None:
    assert predicted(9.0, ranks=1) == 1.0


def test_what_computing_hides_costs_nothing_and_the_last_bucket_is_exposed() -> None:
    assert predicted(0.1) == pytest.approx(0.9 + 0.1 + 0.1), "ready, travel, optimiser"
    assert predicted(0.3) == pytest.approx(0.4 + 3 * 0.3 + 0.1), "buckets queue from the first one on"


def test_without_a_spare_core_host_work_stops_computing() -> None:
    assert predicted(0.1, host=0.1) == pytest.approx(1.3), "nothing is hidden where all is host work"
    assert predicted(0.1, host=0.05) == pytest.approx(1.2), "two buckets stop computing, the third travels after it"
    assert predicted(0.4, host=0.05) == pytest.approx(0.4 + 3 * 0.4 + 0.1), "what waits for the network is not delayed"


def test_stragglers_delay_everybody() -> None:
    rng = np.random.default_rng(0)
    for ranks in (2, 8, 512):
        drawn = np.exp(0.1 * rng.standard_normal((4000, ranks)).max(axis=1)).mean()
        assert slowest_of(ranks, 0.1) == pytest.approx(drawn, rel=0.01)
    assert slowest_of(1, 0.5) == 1.0


def test_a_curve_is_straight_between_and_beyond_what_was_measured() -> None:
    curve = Curve((1e6, 2e6, 4e6), (1.0, 2.0, 6.0))
    assert [curve(x) for x in (0.5e6, 1.5e6, 3e6, 5e6)] == [1.0, 1.5, 4.0, 8.0]


def test_a_ring_and_a_hierarchy_send_what_they_should() -> None:
    one_per_node = replace(NETWORK, ranks_per_node=1)
    assert ring_s(one_per_node, 10e9, 2) == pytest.approx(1.0 + 2e-6), "half goes out, half of the sums"
    assert ring_s(one_per_node, 10e9, 1) == 0.0
    assert hierarchical_s(one_per_node, 10e9, 2) == pytest.approx(ring_s(one_per_node, 10e9, 2))
    assert ring_s(NETWORK, 10e9, 1) == pytest.approx(2.0), "two ranks over memory"
    assert hierarchical_s(NETWORK, 10e9, 4) == pytest.approx(2.0 + 1.5 + 6e-6)
    assert hierarchical_s(NETWORK, 1e3, 256) < ring_s(NETWORK, 1e3, 256), "fewer messages"


@given(st.integers(0, 7), st.floats(0.0, 0.2), st.floats(0.0, 0.05))
def test_more_nodes_are_never_faster_per_step(power: int, host: float, spread: float) -> None:
    profile = replace(PROFILE, spread=spread)
    few, many = (
        extrapolate(profile, seconds(host), 0.5, NETWORK, n, "ring").step_s for n in (2**power, 2 ** (power + 1))
    )
    assert few <= many + 1e-12


def test_half_the_bytes_are_faster_on_a_slow_network() -> None:
    slow = replace(NETWORK, bytes_per_s=1e8)
    none, fp16 = (extrapolate(PROFILE, NOTHING, width, slow, 2, "ring").step_s for width in (1.0, 0.5))
    assert none > 1.5 * fp16


def study_with(folder: Path, measured_s: float, travel_s: float) -> Path:
    point = Point(
        num_nodes=2, world_size=2, mode="weak", patch_size=256, local_batch_size=1, compression="none", data="memory"
    )
    record = RunRecord(
        point=point,
        status="done",
        machine="m",
        hosts=("a", "b"),
        cores_per_rank=1,
        network="n",
        date="2026-11-22T00:00:00",
        commit="c",
        widefield="0",
        command="x",
        warmup_steps=1,
        repeats=2,
        steps_per_repeat=3,
        allreduce_bytes_per_step=1,
        wire_bytes_per_step=1.0,
        config_hash="h",
    )
    step = np.full((2, 3, 2), measured_s)
    write_run(folder, record, Steps(step, step, 0 * step, 0 * step), "", "{}\n")
    write_inputs(folder, Inputs(2, False, (PROFILE,), {"none": seconds(travel_s)}))
    return folder


def test_the_model_is_put_beside_what_was_measured(tmp_path: Path) -> None:
    study, host = study_with(tmp_path / "s" / "slow", 1.6, 0.3), study_with(tmp_path / "s" / "fast", 1.0, 0.0)
    text = write_model(study, host, ROOT / "configs/networks/omni-path.yaml", "the command").read_text()
    assert "| 2 | 256 | 1 | none | 1.600 | 1.400 | -12.5% |" in text
    assert "is believed" in text
    assert "Extrapolated to 2 x Xeon 8260 nodes, Omni-Path 100: modelled, nothing measured" in text
    assert "256 nodes |" in text
    made = {p.name for p in (study / "model").iterdir()}
    assert made == {
        "inputs.json",
        "README.md",
        *(f"{n}.{k}" for n in ("checked", "extrapolated") for k in ("png", "svg")),
    }
    assert "is NOT believed" in write_model(study_with(study, 1.0, 0.3), host, None, "x").read_text()


def test_inputs_of_another_size_are_added(tmp_path: Path) -> None:
    larger = replace(PROFILE, patch_size=1024)
    write_inputs(tmp_path, Inputs(2, False, (PROFILE,), {"none": seconds(1.0), "fp16": seconds(1.0)}))
    write_inputs(tmp_path, Inputs(2, False, (larger,), {"none": seconds(2.0)}))
    both = read_inputs(tmp_path)
    assert [p.patch_size for p in both.profiles] == [256, 1024]
    assert (both.curves["none"].seconds, both.curves["fp16"].seconds) == ((2.0,), (1.0,))
    assert merged(both, replace(both, world_size=4, profiles=(PROFILE,))).profiles == (PROFILE,)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="nothing was measured for the model"):
        read_inputs(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "inputs.json").write_text("{}")
    with pytest.raises(StudyError, match=r"inputs\.json: cannot be read"):
        read_inputs(tmp_path)
    study = study_with(tmp_path / "s", 1.0, 0.1)
    write_inputs(study, Inputs(4, False, (PROFILE,), {}))
    with pytest.raises(StudyError, match="no point of two ranks or more"):
        write_model(study, study, None, "x")


@pytest.mark.parametrize(
    ("text", "said"),
    [("a: [", "not valid YAML"), ("name: x", "latency_us: Field required"), ("name: x\nlatency_us: -1", "latency_us")],
)
def test_a_network_file_with_a_fault_names_it(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "net.yaml").write_text(text)
    with pytest.raises(StudyError, match=rf"net\.yaml.*{said}"):
        read_network(tmp_path / "net.yaml")
    with pytest.raises(StudyError, match=r"none\.yaml: cannot be read"):
        read_network(tmp_path / "none.yaml")
