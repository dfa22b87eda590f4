"""Curricula of patch sizes against fixed sizes at equal training time, three seeds; writes results/curriculum/.

  python tools/bench_curriculum.py                          everything that results/curriculum shows (about an hour)
  python tools/bench_curriculum.py --data small --arms "fixed 256" curriculum --seeds 1 --seconds 120

Two runs at a time, one core each, so that all run under the same conditions. A size has the same batch in every arm.
An arm's steps follow from the seconds it may train and from a measured step at each size; what it
really took is in the table. Finished runs (runs/curriculum/) are not repeated. Patches are read at level 1: a nest
of the slides is about 115 px across there. All arms are scored on the same pixels, patches of 256 px of four validation
slides, through the patch size that the arm ends with.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from statistics import mean
from typing import Any, NamedTuple

import matplotlib

from trainer.bench.machine import machine

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
OUT, DATA, RUNS = ROOT / "results" / "curriculum", ROOT / "data" / "curriculum", ROOT / "runs" / "curriculum"
BATCH = {64: 16, 128: 4, 256: 1}
"""Patch size -> patches in a step: the same pixels, as `local_batch_size: auto` has it."""
NUM_VAL = 4
DATA_SETS = {"small": 8, "large": 32}
"""Training slides."""
SECONDS = {"small": 480.0, "large": 720.0}
"""What a run on them may train. Below some 150 s at 128 px, or 250 s at 256 px, no run has seen yet what tells the
classes apart: it takes all tissue for normal, which scores 0.44."""
LESS = 0.58
"""The share of the time that the curriculum gets on the large data set."""

Stages = Sequence[tuple[dict[int, float], float]]
"""({patch size: share of steps}, share of the time) of every stage"""

CURRICULUM: Stages = [({128: 1.0}, 0.5), ({256: 1.0}, 0.5)]
MIXED: Stages = [({128: 1.0}, 0.5), ({256: 0.7, 128: 0.3}, 0.5)]
FIXED: dict[str, tuple[Stages, list[str]]] = {f"fixed {s}": ([({s: 1.0}, 1.0)], []) for s in BATCH}
OPTIONS: dict[str, tuple[Stages, list[str]]] = {
    "curriculum, no scaling": (CURRICULUM, ["augment.scale=0"]),
    "mixed sizes": (MIXED, []),
    "averaging": (CURRICULUM, ["training.ema_decay=0.999"]),
    "dropout": (CURRICULUM, ["model.dropout=0.1", "model.decoder_dropout=0.1"]),
    "weight decay": (CURRICULUM, ["training.optimizer.weight_decay=0.01"]),
    "stochastic depth": (CURRICULUM, ["model.stochastic_depth=0.1"]),
}
ARMS = FIXED | {"curriculum": (CURRICULUM, [])} | OPTIONS


class Run(NamedTuple):
    data: str
    arm: str
    seed: int
    seconds: float
    """It may train, starting included."""

    @property
    def folder(self) -> Path:
        return RUNS / self.data / f"{self.arm.replace(',', '').replace(' ', '-')}-{self.seconds:.0f}s-{self.seed}"


def make_data(name: str) -> Path:
    """Slides and a manifest whose last four slides (three with tumour) validate."""
    folder, count = DATA / name, DATA_SETS[name] + NUM_VAL
    manifest = folder / "manifest.csv"
    if manifest.exists():
        return manifest
    command = [sys.executable, "-m", "trainer", "make-slides", str(folder / "slides"), "--train", str(count)]
    subprocess.run([*command, "--test", "0", "--size", "2048", "--seed", "11"], cwd=ROOT, check=True)
    tumour = sorted((folder / "slides/training/tumor").glob("*.tif"))
    normal = sorted((folder / "slides/training/normal").glob("*.tif"))
    validates = {*tumour[-3:], normal[-1]}
    with manifest.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["slide", "annotation", "split"])
        for slide in tumour + normal:
            xml = folder / "slides/training/lesion_annotations" / f"{slide.stem}.xml"
            writer.writerow([slide, xml if xml.exists() else "", "val" if slide in validates else "train"])
    return manifest


def train(manifest: Path, out: Path, curriculum: list[dict[str, Any]], seed: int, core: int, extra: list[str]) -> None:
    """One run on one core; nothing where it has been done."""
    if (out / "done").exists():
        return
    settings = [
        "data.format=manifest",
        "index.resolution={level: 1}",
        f"data.path={manifest}",
        f"output={out}",
        f"seed={seed}",
        f"curriculum={json.dumps(curriculum)}",
        "training.optimizer.scale_with_world_size=none",
        "augment.scale=0.2",
        "evaluation={max_patches: 8, figure_regions: 0}",
        "runtime={intra_op_threads: 1, read_threads: 1}",
        *extra,
    ]
    command = ["taskset", "-c", str(core), sys.executable, "-m", "trainer", "train", "configs/demo.yaml", "--overwrite"]
    subprocess.run([*command, *settings], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=3600)
    (out / "done").touch()


def ends_at(arm: str) -> int:
    """Patch size that an arm's last stage is scored at."""
    return max(ARMS[arm][0][-1][0])


def stages_of(stages: Stages, seconds: float, costs: dict[int, tuple[float, float]]) -> list[dict[str, Any]]:
    """The curriculum that trains for so long; costs: size -> (seconds to start, seconds per step).

    A curriculum without 256 px gets one step there at a rate of nothing, to be scored on the same pixels.
    """
    seconds -= sum(costs[s][0] for s in {s for sizes, _ in stages for s in sizes})
    result: list[dict[str, Any]] = []
    for sizes, share in stages:
        per_step = sum(costs[s][1] * part for s, part in sizes.items())
        steps = max(1, round(share * seconds / per_step))
        result.append({"sizes": sizes, "local_batch_size": BATCH[max(sizes)], "steps": steps})
    if 256 not in stages[-1][0]:
        scored = {"patch_size": 256, "local_batch_size": BATCH[256], "steps": 1, "learning_rate_factor": 1e-9}
        result.append(scored)
    return result


def in_turns(jobs: Sequence[Any]) -> None:
    """Run jobs, functions of a core, one at a time on every core."""
    cores: SimpleQueue[int] = SimpleQueue()
    for core in sorted(os.sched_getaffinity(0))[:2]:
        cores.put(core)

    def on_a_core(job: Any) -> None:
        core = cores.get()
        try:
            job(core)
        finally:
            cores.put(core)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(on_a_core, jobs))


def measure_costs(manifest: Path) -> dict[int, tuple[float, float]]:
    """Size -> seconds of tracing and the like, and seconds per step, while the other core is as busy."""
    runs = [(size, RUNS / "costs" / f"{size}-{twin}") for size in BATCH for twin in "ab"]
    stages = {s: [{"patch_size": s, "local_batch_size": BATCH[s], "steps": 25}] for s in BATCH}
    in_turns([lambda core, s=s, out=out: train(manifest, out, stages[s], 1, core, []) for s, out in runs])
    costs = {}
    for size in BATCH:
        pair = [stage_results(out)[0] for s, out in runs if s == size]
        step = mean(r["seconds_per_step"] for r in pair)
        costs[size] = (max(0.0, mean(r["seconds"] for r in pair) - 25 * step), step)
    return costs


def stage_results(run: Path) -> list[dict[str, Any]]:
    return json.loads((run / "report.json").read_text())["stages"]


def result_of(run: Run) -> dict[str, Any]:
    """Score on the common footprint through the size that the arm ends with, and the seconds it trained."""
    stages = stage_results(run.folder)
    size = ends_at(run.arm)
    trained = stages if size == 256 else stages[:-1]
    scores = stages[-1]["final_network"][str(size)]
    return {
        "miou": scores["miou"],
        "auc": scores["auc"],
        "seconds": sum(s["seconds"] for s in trained),
        "steps": [s["steps"] for s in trained],
        "ends_at": size,
    }


def bench(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Train and score every run, two at a time."""
    manifests = {run.data: make_data(run.data) for run in runs}
    costs = measure_costs(manifests[runs[0].data])
    print({s: [round(c, 3) for c in cost] for s, cost in costs.items()}, flush=True)

    def job(run: Run) -> Any:
        stages, extra = ARMS[run.arm]

        def on_core(core: int) -> None:
            train(manifests[run.data], run.folder, stages_of(stages, run.seconds, costs), run.seed, core, extra)
            print(run, result_of(run), flush=True)

        return on_core

    in_turns([job(run) for run in runs])
    return [{"data": run.data, "arm": run.arm, "seed": run.seed, **result_of(run)} for run in runs]


def render(rows: list[dict[str, Any]], about: str) -> str:
    lines = ["# Curricula against fixed patch sizes", "", about, "", "![scores](curriculum.png)", ""]
    for data in dict.fromkeys(r["data"] for r in rows):
        lines += [f"## {DATA_SETS[data]} training slides", ""]
        lines += [
            "| arm | ends at | training seconds | common mIoU, mean | each seed |",
            "| --- | ---: | ---: | ---: | --- |",
        ]
        for arm in dict.fromkeys(r["arm"] for r in rows if r["data"] == data):
            own = [r for r in rows if (r["data"], r["arm"]) == (data, arm)]
            each = ", ".join(f"{r['miou']:.3f}" for r in own)
            lines.append(
                f"| {arm} | {own[0]['ends_at']} px | {mean(r['seconds'] for r in own):.0f} | "
                f"**{mean(r['miou'] for r in own):.3f}** | {each} |"
            )
        lines.append("")
    return "\n".join(lines)


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    sets = list(dict.fromkeys(r["data"] for r in rows))
    figure, axes = plt.subplots(1, len(sets), figsize=(5.2 * len(sets), 3.6), sharey=True, squeeze=False)
    for axis, data in zip(axes[0], sets, strict=True):
        arms = list(dict.fromkeys(r["arm"] for r in rows if r["data"] == data))
        for at, arm in enumerate(arms):
            own = [r for r in rows if (r["data"], r["arm"]) == (data, arm)]
            axis.plot([at] * len(own), [r["miou"] for r in own], "o", color="#2c3e70", alpha=0.7)
            axis.hlines(mean(r["miou"] for r in own), at - 0.25, at + 0.25, color="#a04000")
        labels = []
        for arm in arms:
            taken = mean(r["seconds"] for r in rows if (r["data"], r["arm"]) == (data, arm))
            labels.append(f"{arm}\n{taken:.0f} s")
        axis.set_xticks(range(len(arms)), labels, fontsize=8)
        axis.set_title(f"{DATA_SETS[data]} training slides", fontsize=10)
        axis.grid(axis="y", alpha=0.3)
    axes[0][0].set_ylabel("mIoU on the common footprint\n(dots: seeds, line: mean)")
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=DATA_SETS, help="only this data set, and write no results")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="with --data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--seconds", type=float, help="with --data (default: as for results/curriculum)")
    args = parser.parse_args()
    if args.data:
        seconds = args.seconds or SECONDS[args.data]
        bench([Run(args.data, arm, seed, seconds) for seed in args.seeds for arm in args.arms])
        return
    runs = []
    for seed in args.seeds:
        large, small = SECONDS["large"], SECONDS["small"]
        runs += [Run("large", "fixed 256", seed, large), Run("large", "curriculum", seed, LESS * large)]
        runs += [Run("small", arm, seed, small) for arm in ("fixed 256", "curriculum")]
    runs += [Run("small", "curriculum, no scaling", seed, small) for seed in args.seeds]
    runs += [Run("small", arm, args.seeds[0], small) for arm in ("fixed 64", "fixed 128")]
    rows = bench(runs)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    about = (
        f"`python tools/bench_curriculum.py`, measured on {time.strftime('%Y-%m-%d')} at commit {commit.strip()}: "
        f"{machine()}. MobileNetV2 from scratch, configs/demo.yaml, one core a run, two at a time."
    )
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "curriculum.json").write_text(json.dumps(rows, indent=1) + "\n")
    (OUT / "README.md").write_text(render(rows, about))
    picture(rows, OUT / "curriculum.png")
    print(render(rows, about))


if __name__ == "__main__":
    main()
