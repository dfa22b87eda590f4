"""Studies built by hand, whose speeds and efficiencies are known in closed form."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from trainer.errors import StudyError
from trainer.scaling.efficiency import Result, results_of
from trainer.scaling.lines import Line, lines_of, shared_and_own
from trainer.scaling.plots import draw_figures
from trainer.scaling.records import Point, Run, RunRecord
from trainer.scaling.report import write_report
from trainer.scaling.steps import Steps, as_csv, read_steps
from trainer.scaling.study import read_study, write_run

REPEATS, STEPS = 3, 4


def point(num_nodes: int, world_size: int, **changes: object) -> Point:
    fields = {"mode": "weak", "patch_size": 256, "local_batch_size": 4, "compression": "none", "data": "memory"}
    return Point(**{"num_nodes": num_nodes, "world_size": world_size, **fields, **changes})  # type: ignore[arg-type]


def record(where: Point, **changes: object) -> RunRecord:
    fields: dict[str, object] = {
        "status": "done",
        "machine": "2 x Test CPU",
        "hosts": tuple(f"node-{i}" for i in range(where.num_nodes)),
        "cores_per_rank": 24,
        "network": "veth, 1 Gbit/s",
        "date": "2026-01-02T03:04:05",
        "commit": "abc1234",
        "widefield": "0.4.0",
        "command": "widefield scaling run configs/demo.yaml --ranks 1,2",
        "warmup_steps": 2,
        "repeats": REPEATS,
        "steps_per_repeat": STEPS,
        "allreduce_bytes_per_step": 46170112,
        "wire_bytes_per_step": 46170112.0,
        "config_hash": "hash-a",
    }
    return RunRecord(point=where, **{**fields, **changes})  # type: ignore[arg-type]


def constant(ranks: int, step_s: float, *, allreduce_s: float = 0.0, wait_s: float = 0.0, rest_s: float = 0.0) -> Steps:
    """Every step of every rank alike."""
    shape = (REPEATS, STEPS, ranks)
    parts = (step_s, step_s - allreduce_s - wait_s - rest_s, allreduce_s, wait_s)
    return Steps(*(np.full(shape, seconds) for seconds in parts))


def run(where: Point, step_s: float, **parts: float) -> Run:
    return Run(record(where), constant(where.world_size, step_s, **parts))


def write(folder: Path, where: Point, step_s: float = 0.5, **changes: object) -> Path:
    failed = changes.get("status") == "failed"
    steps = None if failed else constant(where.world_size, step_s)
    return write_run(folder, record(where, **changes), steps, "name: demo\n", "[]\n")


def result(results: list[Result], where: Point) -> Result:
    return next(r for r in results if r.record.point == where)


# records and files


def test_a_point_says_its_name_its_global_batch_and_its_ranks_per_node() -> None:
    where = point(2, 4, compression="fp16")
    assert where.name == "weak-n0002-r0004-256px-b4-fp16-memory"
    assert (where.ranks_per_node, where.global_batch_size) == (2, 16)
    with pytest.raises(ValueError, match="3 ranks are not the same number on each of 2 nodes"):
        point(2, 3)


def test_a_run_reads_back_as_it_was_written(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    steps = Steps(*(np.round(generator.uniform(0.1, 1, (REPEATS, STEPS, 2)), 9) for _ in range(4)))
    written = record(point(1, 2), hosts=("a", "b"))
    folder = write_run(tmp_path / "system" / "study", written, steps, "name: demo\n", '{"ranks": []}\n')
    study = read_study(tmp_path / "system" / "study")
    assert (study.system, study.name) == ("system", "study")
    (read,) = study.runs
    assert read.record == written and read.steps is not None
    for name in ("step_s", "compute_s", "allreduce_s", "wait_s"):
        np.testing.assert_array_equal(getattr(read.steps, name), getattr(steps, name))
    assert sorted(p.name for p in folder.iterdir()) == ["affinity.json", "config.yaml", "run.json", "steps.csv"]
    assert (folder / "config.yaml").read_text() == "name: demo\n"
    assert (folder / "affinity.json").read_text() == '{"ranks": []}\n'
    assert (folder / "steps.csv").read_text().startswith("repeat,step,rank,step_s,compute_s,allreduce_s,wait_s\n0,0,0,")


def test_rows_and_columns_of_steps_may_be_in_any_order(tmp_path: Path) -> None:
    steps = Steps(*(np.arange(1.0, 9.0).reshape(2, 2, 2) + i for i in range(4)))
    header, *rows = as_csv(steps).splitlines()
    turned = [",".join(reversed(line.split(","))) for line in [header, *reversed(rows)]]
    (tmp_path / "steps.csv").write_text("\n".join(turned))
    read = read_steps(tmp_path / "steps.csv", (2, 2, 2))
    np.testing.assert_array_equal(read.step_s, steps.step_s)
    np.testing.assert_array_equal(read.wait_s, steps.wait_s)


def test_a_point_measured_again_replaces_the_older_run_whole(tmp_path: Path) -> None:
    folder = write(tmp_path, point(1, 1), 0.5)
    (folder / "left-over").write_text("of the older run")
    for unfinished in (f".{folder.name}.part", f".{folder.name}.old"):  # of one that was killed
        (tmp_path / unfinished).mkdir()
        (tmp_path / unfinished / "run.json").write_text("{")
    write(tmp_path, point(1, 1), 0.25)
    (read,) = read_study(tmp_path).runs
    assert read.steps is not None and float(read.steps.step_s.max()) == 0.25
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]
    assert not (folder / "left-over").exists()


def test_a_run_that_cannot_be_written_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, point(1, 1), 0.5)

    def full(path: Path, content: str) -> None:
        if path.name == "steps.csv":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.scaling.study.replace_content", full)
    with pytest.raises(StudyError, match=r"weak-n0001-r0001.*No space left on device"):
        write(tmp_path, point(1, 1), 0.25)
    (read,) = read_study(tmp_path).runs
    assert read.steps is not None and float(read.steps.step_s.max()) == 0.5


def test_a_study_grows_and_is_read_in_the_order_of_its_points(tmp_path: Path) -> None:
    for where in (point(4, 4), point(1, 1), point(2, 2, compression="fp16")):
        write(tmp_path, where)
    (tmp_path / "README.md").write_text("a file is no run")
    (tmp_path / "figures").mkdir()
    (tmp_path / ".jobs").mkdir()
    assert [r.point for r in read_study(tmp_path).runs] == [point(1, 1), point(4, 4), point(2, 2, compression="fp16")]
    write(tmp_path, point(2, 2))
    assert [r.point.world_size for r in read_study(tmp_path).runs] == [1, 2, 4, 2]


# errors


def test_a_folder_that_is_no_study_is_named(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"nothing: no such folder\n  fix: give the folder of a study"):
        read_study(tmp_path / "nothing")
    (tmp_path / ".hidden").mkdir()
    with pytest.raises(StudyError, match=r"holds no runs\n  fix: widefield scaling run"):
        read_study(tmp_path)


def edited(change: Callable[[dict], None]) -> Callable[[str], str]:
    def edit(text: str) -> str:
        content = json.loads(text)
        change(content)
        return json.dumps(content)

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text[:20], r"run\.json: Invalid JSON"),
        (lambda text: "[]", r"run\.json: "),
        (edited(lambda r: r.pop("network")), r"run\.json: network: Field required"),
        (edited(lambda r: r["point"].update(compression="zip")), r"run\.json: point\.compression: .*'none', 'fp16'"),
        (edited(lambda r: r["point"].update(patch_size="256")), r"run\.json: point\.patch_size: .*integer"),
        (edited(lambda r: r["point"].update(num_nodes=2)), r"run\.json: point: .*1 ranks are not the same number"),
        (edited(lambda r: r.update(repeats=0)), r"run\.json: repeats: .*greater than or equal to 1"),
        (edited(lambda r: r.update(status="failed")), r"run\.json: .*status 'failed' with error ''"),
    ],
)
def test_a_damaged_run_json_is_named_with_its_key(tmp_path: Path, edit: Callable[[str], str], message: str) -> None:
    file = write(tmp_path, point(1, 1)) / "run.json"
    file.write_text(edit(file.read_text()))
    with pytest.raises(StudyError, match=message) as caught:
        read_study(tmp_path)
    assert f"measure the point again, or remove {file.parent}" in str(caught.value)


def test_a_run_without_run_json_or_steps_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, point(1, 1))
    (folder / "steps.csv").unlink()
    with pytest.raises(StudyError, match=r"steps\.csv: cannot be read: .*No such file"):
        read_study(tmp_path)
    (folder / "run.json").unlink()
    with pytest.raises(StudyError, match=r"run\.json: cannot be read: No such file"):
        read_study(tmp_path)


def without(*starts: str) -> Callable[[str], str]:
    return lambda text: "".join(line for line in text.splitlines(True) if not line.startswith(starts))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text.replace("allreduce_s", "reduce_s").replace("rank", "r"), "has no column rank, allreduce_s"),
        (lambda text: "", "has no column repeat, step, rank"),
        (lambda text: text.splitlines()[0] + "\n", "has no rows"),
        (without("1,"), "has no rows of repeat 1; expected 3 repeats x 4 steps x 2 ranks"),
        (lambda text: "".join(x for x in text.splitlines(True) if x.split(",")[2] != "1"), "has no rows of rank 1;"),
        (without("1,2,0"), "the row of repeat 1, step 2, rank 0 is missing"),
        (lambda text: text + text.splitlines()[1], "the row of repeat 0, step 0, rank 0 is there twice"),
        (lambda text: text + "3,0,0,1,1,0,0\n", "repeat 3, step 0, rank 0 is none of 3 repeats x 4 steps x 2 ranks"),
        (lambda text: text.replace("0,0,1,0.5", "0,0,1,-0.5"), "step_s = -0.5 at repeat 0, step 0, rank 1 is not a"),
        (
            lambda text: text.replace("0,0,1,0.500000000,0.500000000", "0,0,1,0.5,nan"),
            "compute_s = nan at repeat 0, step 0",
        ),
        (lambda text: text.replace("0.5", "soon"), "cannot be read: .*soon"),
        (lambda text: text + "0,0\n", "cannot be read: "),
    ],
)
def test_a_damaged_steps_csv_says_what_is_wrong(tmp_path: Path, edit: Callable[[str], str], message: str) -> None:
    file = write(tmp_path, point(1, 2)) / "steps.csv"
    file.write_text(edit(file.read_text()))
    with pytest.raises(StudyError, match=message) as caught:
        read_study(tmp_path)
    assert caught.value.where == str(file) and str(file.parent) in caught.value.fix


def test_runs_of_different_configurations_are_listed(tmp_path: Path) -> None:
    for where, config_hash in ((point(1, 1), "hash-a"), (point(2, 2), "hash-b"), (point(4, 4), "hash-a")):
        write(tmp_path, where, config_hash=config_hash)
    with pytest.raises(StudyError, match="2 different configurations") as caught:
        read_study(tmp_path)
    assert f"\n  hash-a: {point(1, 1).name}, {point(4, 4).name}" in str(caught.value)
    assert f"\n  hash-b: {point(2, 2).name}" in str(caught.value)
    assert "another study name" in caught.value.fix


def test_a_folder_under_another_points_name_is_told_to_move(tmp_path: Path) -> None:
    folder = write(tmp_path, point(1, 1))
    shutil.copytree(folder, tmp_path / "copy")
    with pytest.raises(StudyError, match=rf"copy: holds the run of {folder.name}\n  fix: mv "):
        read_study(tmp_path)


# efficiency


def test_speed_counts_the_rank_that_took_longest_and_the_median_repeat() -> None:
    steps = constant(2, 0.5)
    for repeat, seconds in enumerate((1.0, 2.0, 4.0)):
        steps.step_s[repeat, :, 1] = seconds
    (only,) = results_of([Run(record(point(1, 2)), steps)])
    speed = only.patches_per_s  # 2 ranks x 4 patches x 4 steps over 4, 8 and 16 seconds
    assert (speed.low, speed.lower, speed.median, speed.upper, speed.high) == (2.0, 3.0, 4.0, 6.0, 8.0)
    assert only.megapixels_per_s.median == pytest.approx(4 * 256 * 256 / 1e6)
    assert (only.step_s.low, only.step_s.median, only.step_s.high) == (1.0, 2.0, 4.0)


def test_a_step_is_broken_down_as_mean_over_ranks_and_for_the_slowest() -> None:
    steps = constant(3, 1.0)
    for rank, (compute, allreduce, wait) in enumerate(((0.5, 0.3, 0.1), (0.75, 0.0, 0.125), (0.6, 0.2, 0.1))):
        steps.compute_s[..., rank], steps.allreduce_s[..., rank], steps.wait_s[..., rank] = compute, allreduce, wait
    (only,) = results_of([Run(record(point(1, 3)), steps)])
    assert only.slowest_rank == 1
    assert only.slowest_excess == pytest.approx(0.875 / 0.7 - 1)  # ranks need 0.6, 0.875 and 0.7 s of their own
    assert only.slowest.compute_s == 0.75 and only.slowest.rest_s == pytest.approx(0.125)
    assert only.mean_rank.allreduce_s == pytest.approx(0.5 / 3)
    assert only.mean_rank.wait_s == pytest.approx(0.325 / 3)
    assert only.mean_rank.step_s == pytest.approx(1.0)


def test_of_two_ranks_the_slower_is_compared_with_the_faster() -> None:
    steps = constant(2, 1.0)
    steps.allreduce_s[..., 0] = 0.2
    (only,) = results_of([Run(record(point(1, 2)), steps)])
    assert (only.slowest_rank, only.slowest_excess) == (1, pytest.approx(0.25))


def test_weak_efficiency_is_against_one_rank_and_against_one_node() -> None:
    runs = [run(point(1, 1), 0.5), run(point(1, 2), 0.625), run(point(4, 8), 1.0)]
    results = results_of(runs)
    many = result(results, point(4, 8))
    assert many.one_rank and many.one_rank.spread.median == pytest.approx(0.5)
    assert many.one_node and many.one_node.spread.median == pytest.approx(0.625)
    assert many.one_node.base.point == point(1, 2)
    for own_base in results[:2]:
        assert own_base.one_node and own_base.one_node.spread.median == 1.0


def test_efficiency_has_the_spread_of_the_run_against_the_median_of_the_base() -> None:
    steps = {1: constant(1, 1.0), 2: constant(2, 1.0)}
    for ranks in (1, 2):
        for repeat, seconds in enumerate((1.0, 2.0, 4.0)):
            steps[ranks].step_s[repeat] = seconds * ranks
    many = results_of([Run(record(point(1, n)), s) for n, s in steps.items()])[1].one_rank
    assert many and (many.spread.low, many.spread.median, many.spread.high) == pytest.approx((0.25, 0.5, 1.0))


def test_strong_efficiency_compares_the_same_global_batch() -> None:
    one = point(1, 1, mode="strong", local_batch_size=8)
    four = point(2, 4, mode="strong", local_batch_size=2)
    results = results_of([run(one, 1.0), run(replace(one, local_batch_size=2), 0.1), run(four, 0.5)])
    efficiency = result(results, four).one_rank
    assert efficiency and efficiency.base.point == one and efficiency.spread.median == pytest.approx(0.5)


def test_there_is_no_efficiency_without_a_base_of_the_same_work() -> None:
    others = [
        point(1, 1, mode="strong"),
        point(1, 1, patch_size=512),
        point(1, 1, data="slides"),
        point(1, 1, local_batch_size=8),
        point(1, 2, compression="fp16"),
        point(2, 2),
    ]
    many = results_of([*(run(p, 1.0) for p in others), run(point(2, 4), 1.0)])[-1]
    assert many.one_rank is None and many.one_node is None


def test_one_rank_serves_every_compression_but_one_node_only_its_own() -> None:
    base, node = point(1, 1, compression="bf16"), point(1, 2)
    many = results_of([run(base, 1.0), run(node, 1.0), run(point(2, 4, compression="fp16"), 1.0)])[-1]
    assert many.one_rank and many.one_rank.base.point == base and many.one_node is None
    same = point(1, 1, compression="fp16")
    many = results_of([run(base, 1.0), run(same, 2.0), run(point(2, 4, compression="fp16"), 2.0)])[-1]
    assert many.one_rank and many.one_rank.base.point == same


def test_a_failed_base_is_none(tmp_path: Path) -> None:
    failed = Run(record(point(1, 1), status="failed", error="killed"), None)
    (only,) = results_of([failed, run(point(2, 2), 1.0)])
    assert only.record.point == point(2, 2) and only.one_rank is None


@given(
    repeats=st.lists(st.lists(st.floats(1e-3, 1e2), min_size=3, max_size=3), min_size=1, max_size=5),
    nodes=st.lists(st.integers(2, 300), unique=True, min_size=1, max_size=3),
    width=st.integers(1, 4),
    mode=st.sampled_from(["weak", "strong"]),
    shuffled=st.randoms(use_true_random=False),
)
def test_ideal_scaling_has_efficiency_one_in_any_order_of_runs(repeats, nodes, width, mode, shuffled) -> None:  # type: ignore[no-untyped-def]
    """Weak: the same steps everywhere. Strong: N ranks take the N-th part of the batch and of the time."""
    times, largest = np.array(repeats)[..., None], width * int(np.prod(nodes))
    runs = []
    for num_nodes, ranks in [(1, 1), (1, width), *((n, n * width) for n in nodes)]:
        batch, part = (4, 1) if mode == "weak" else (largest // ranks, ranks)
        seconds = np.repeat(times / part, ranks, axis=2)
        where = point(num_nodes, ranks, mode=mode, local_batch_size=batch)
        runs.append(Run(record(where), Steps(seconds, seconds, 0 * seconds, 0 * seconds)))
    runs = list({r.point: r for r in runs}.values())  # one rank may be one node
    results = results_of(runs)
    for one in results:
        assert one.one_rank and one.one_rank.spread.median == pytest.approx(1, rel=1e-12)
        assert one.one_node and one.one_node.spread.median == pytest.approx(1, rel=1e-12)
    shuffled.shuffle(runs)
    assert sorted(results_of(runs), key=lambda r: r.record.point.name) == sorted(
        results, key=lambda r: r.record.point.name
    )


# lines and figures


def worlds(lines: list[Line]) -> list[tuple[int, list[int]]]:
    return [(line.ranks_per_node, line.ranks) for line in lines]


def test_a_line_goes_through_one_node_and_then_over_nodes_of_its_width() -> None:
    places = [(1, 1), (1, 2), (2, 2), (2, 4), (4, 8)]
    assert worlds(lines_of(results_of([run(point(*p), 1.0) for p in places]))) == [(1, [1, 2]), (2, [1, 2, 4, 8])]
    one_box = lines_of(results_of([run(point(1, n), 1.0) for n in (1, 2, 4)]))
    assert worlds(one_box) == [(4, [1, 2, 4])]


def test_a_line_begins_at_the_one_rank_of_another_compression() -> None:
    places = [point(1, 1), point(2, 2), point(2, 2, compression="fp16")]
    lines = lines_of(results_of([run(p, 1.0) for p in places]))
    assert worlds(lines) == [(1, [1, 2]), (1, [1, 2])]
    shared, own = shared_and_own(lines)
    assert shared == ["256 px", "4 patches per rank", "data from memory", "1 rank per node"]
    assert own == ["not compressed", "fp16"]


def test_figures_are_written_twice_alike_as_png_and_svg() -> None:
    places = [point(n, 2 * n, compression=c) for n in (1, 2, 4) for c in ("none", "fp16")]
    strong = [point(n, n, mode="strong", local_batch_size=8 // n) for n in (1, 2)]
    results = results_of([run(p, 1.0, allreduce_s=0.2, wait_s=0.1, rest_s=0.05) for p in [*places, *strong]])
    files = draw_figures(results)
    kinds = ("weak-throughput", "weak-efficiency", "weak-breakdown")
    kinds += ("strong-throughput", "strong-speed-up", "strong-breakdown")
    assert sorted(files) == sorted(f"{kind}.{end}" for kind in kinds for end in ("png", "svg"))
    for name, content in files.items():
        if name.endswith(".png"):
            image = Image.open(io.BytesIO(content)).convert("L")
            assert image.width > 600 and image.height > 400 and len(image.getcolors(256) or []) > 20
        else:
            assert len(list(ElementTree.fromstring(content).iter())) > 200
            assert b"scaling, measured: " in content  # matplotlib writes the text beside its outlines
    assert draw_figures(results) == files


def test_there_is_no_efficiency_figure_without_a_base() -> None:
    assert {n.split(".")[0] for n in draw_figures(results_of([run(point(2, 4), 1.0)]))} == {
        "weak-throughput",
        "weak-breakdown",
    }
    assert draw_figures([]) == {}


# report


def rows(text: str, start: str) -> list[list[str]]:
    return [[c.strip() for c in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith(start)]


def test_the_report_has_every_measured_figure_and_lists_what_failed(tmp_path: Path) -> None:
    study = tmp_path / "two-hosts" / "demo"
    for where, step_s, parts in (
        (point(1, 1), 0.5, {}),
        (point(2, 2), 0.625, {"allreduce_s": 0.125, "wait_s": 0.0625, "rest_s": 0.03125}),
    ):
        write_run(study, record(where), constant(where.world_size, step_s, **parts), "", "")
    error = "CommError: rank 1 | was killed\n  fix: look at ``` dmesg"
    write(study, point(4, 4), status="failed", error=error)
    readme = write_report(study)
    text = readme.read_text()
    assert text.startswith("# Scaling study demo on two-hosts\n\nRuns measured: 2, and 1 that failed.")
    assert "- Machine: 2 x Test CPU\n- Network: veth, 1 Gbit/s\n- Commit: abc1234 (Widefield 0.4.0)\n" in text
    assert "- Date: 2026-01-02\n- Timed: 3 repeats of 4 steps, each repeat after 2 steps of warm-up\n" in text
    assert "  ```sh\n  widefield scaling run configs/demo.yaml --ranks 1,2\n  ```" in text
    one, two = rows(text, "| 1 |")[0], rows(text, "| 2 |")[0]
    assert one[6:10] == ["0.5 [0.5, 0.5]", "0.5243 [0.5243, 0.5243]", "1.000 [1.000, 1.000]", "1.000 [1.000, 1.000]"]
    assert two[:6] == ["2", "2", "256", "4", "none", "memory"]
    assert two[6:10] == ["0.625 [0.625, 0.625]", "0.8389 [0.8389, 0.8389]", *["0.800 [0.800, 0.800]"] * 2]
    assert two[10:14] == ["65.0% / 65.0%", "20.0% / 20.0%", "10.0% / 10.0%", "5.0% / 5.0%"]
    assert two[14:] == ["rank 0: +0.0%", "46,170,112", "46.2"]
    assert one[14] == "n/a"
    assert f"- `{point(4, 4).name}`:\n\n      CommError: rank 1 | was killed\n        fix: look at ``` dmesg\n" in text
    assert [r[1] for r in rows(text, "| weak-")] == ["done", "done", "failed"]
    assert "modelled" not in text.replace("nothing is modelled", "")
    linked = [line.split("](")[1].split(")")[0] for line in text.splitlines() if line.startswith("[![")]
    assert linked == [f"figures/weak-{kind}.png" for kind in ("throughput", "efficiency", "breakdown")]
    assert {p.name for p in (study / "figures").iterdir()} == {
        Path(f).stem + e for f in linked for e in (".png", ".svg")
    }
    write(study, point(4, 4), 0.5)
    assert "Runs measured: 3." in write_report(study).read_text()  # the report's own files are no runs
    assert "## Failed" not in readme.read_text()


def test_the_report_says_where_machines_commits_and_networks_differ(tmp_path: Path) -> None:
    write(tmp_path, point(1, 1))
    write(tmp_path, point(2, 2), machine="1 x Other | CPU", commit="def5678", network="veth, 100 Mbit/s")
    text = write_report(tmp_path).read_text()
    assert "- Machine: differs, see [runs](#runs): 1 x Other | CPU; 2 x Test CPU\n" in text
    assert "- Network: differs, see [runs](#runs): veth, 1 Gbit/s; veth, 100 Mbit/s\n" in text
    assert "- Commit: differs, see [runs](#runs): abc1234 (Widefield 0.4.0); def5678 (Widefield 0.4.0)\n" in text
    assert rows(text, "| 1 |")[0][8] == "1.000 [1.000, 1.000]"
    assert rows(text, "| 2 |")[0][8] == "1.000 [1.000, 1.000] †"
    last = rows(text, "| weak-n0002")[0]
    assert last[3:8] == ["node-0, node-1", "24", "1 x Other \\| CPU", "veth, 100 Mbit/s", "def5678"]


def test_a_study_of_failures_has_a_report_too(tmp_path: Path) -> None:
    write(tmp_path, point(8, 8), status="failed", error="no nodes")
    text = write_report(tmp_path).read_text()
    assert "Runs measured: 0, and 1 that failed." in text and "      no nodes\n" in text
    assert "node-0, node-1, node-2, node-3 and 4 more" in text


def test_a_report_that_cannot_be_written_names_the_study(tmp_path: Path) -> None:
    write(tmp_path, point(1, 1))
    (tmp_path / "figures").write_text("in the way")
    with pytest.raises(StudyError, match=r"cannot be written: .*\n  fix: copy the study"):
        write_report(tmp_path)
