"""Curricula of patch sizes against fixed sizes at equal training time, three seeds; writes results/curriculum/.

  python tools/bench_curriculum.py      what results/curriculum does not show yet (all of it: over three hours)
  python tools/bench_curriculum.py --study small --arms "fixed 256" curriculum --seeds 1 --seconds 120

Two runs at a time, one core each, so that all run under the same conditions. An arm's steps follow from the seconds it
may train and from a measured step at each size; what it really took is in the table. Finished runs (runs/curriculum/)
are not repeated: after it was stopped, start it again. Delete results/curriculum/curriculum.json and runs/curriculum to
measure all anew; the arms of one study are compared, so measure a study on one machine. Patches are read at level 1: a
nest of the slides is about 115 px across there. All arms are scored on the same pixels, patches of 512 px of four
validation slides, through the patch size that the arm ends with.
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

from trainer.bench.machine import commit, machine

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
OUT, DATA, RUNS = ROOT / "results" / "curriculum", ROOT / "data" / "curriculum", ROOT / "runs" / "curriculum"
LARGEST = 512
NUM_VAL = 4
LESS = 0.42
"""The share of the time that the curriculum gets in the large study."""


class Study(NamedTuple):
    num_slides: int
    """That train; four more validate."""
    seconds: float
    """That a run may train."""
    title: str


STUDIES = {
    "large": Study(32, 900.0, "32 training slides: the curriculum in less time"),
    "small": Study(8, 420.0, "8 training slides: the curriculum in the same time"),
    "options": Study(8, 420.0, "8 training slides: the curriculum with options"),
}

Size = int | dict[int, float]
"""A patch size, or a mixture as in a stage's `sizes`: its steps cost what those of its largest size do."""
Stages = Sequence[tuple[Size, int, float]]
"""(patch size, patches in a step, share of the time) of every stage"""

CURRICULUM: Stages = [(128, 8, 0.25), (256, 1, 0.35), (512, 1, 0.4)]
"""A network takes all tissue for normal until it sees what tells the classes apart. Many small patches in a step show
it soonest: 8 of 128 px mostly within 400 steps, 4 of them not always within 1,300."""
FIXED: dict[str, tuple[Stages, list[str]]] = {
    "fixed 64": ([(64, 32, 1.0)], []),
    "fixed 128": ([(128, 8, 1.0)], []),
    "fixed 256": ([(256, 2, 1.0)], []),
    "fixed 256, batch 1": ([(256, 1, 1.0)], []),
    "fixed 256, scaling": ([(256, 2, 1.0)], ["augment.scale=0.2"]),
    "fixed 512": ([(512, 1, 1.0)], []),
    "fixed 512, batch 2": ([(512, 2, 1.0)], []),
}
OPTIONS: dict[str, tuple[Stages, list[str]]] = {
    "scaling": (CURRICULUM, ["augment.scale=0.2"]),
    "elastic and stain": (CURRICULUM, ["augment.elastic=0.03", "augment.hed=0.05"]),
    "averaging": (CURRICULUM, ["training.ema_decay=0.999"]),
    "dropout": (CURRICULUM, ["model.dropout=0.1", "model.decoder_dropout=0.1"]),
    "weight decay": (CURRICULUM, ["training.optimizer.weight_decay=0.01"]),
    "stochastic depth": (CURRICULUM, ["model.stochastic_depth=0.1"]),
    "mixing": ([*CURRICULUM[:2], ({512: 0.7, 128: 0.3}, 1, 0.4)], []),
}
"""What may keep a network from overfitting on few slides, added to the curriculum one at a time."""
Costs = dict[tuple[int, int], tuple[float, float]]
"""(patch size, batch) -> (seconds to start, seconds per step)"""
ARMS = FIXED | {"curriculum": (CURRICULUM, [])} | {f"curriculum, {name}": arm for name, arm in OPTIONS.items()}


class Run(NamedTuple):
    study: str
    arm: str
    seed: int
    seconds: float
    """It may train, starting included."""

    @classmethod
    def planned(cls, study: str, arm: str, seed: int) -> Run:
        """With the time that results/curriculum gives it."""
        less = study == "large" and arm == "curriculum"
        return cls(study, arm, seed, STUDIES[study].seconds * (LESS if less else 1.0))

    @property
    def folder(self) -> Path:
        name = self.arm.replace(",", "").replace(" ", "-")
        return RUNS / f"{STUDIES[self.study].num_slides}-slides" / f"{name}-{self.seconds:.0f}s-{self.seed}"

    @property
    def asked(self) -> dict[str, Any]:
        """What its result is of, as JSON has it."""
        stages, settings = ARMS[self.arm]
        return json.loads(json.dumps({"stages": stages, "settings": settings, "seconds": self.seconds}))


def make_data(num_slides: int) -> Path:
    """Slides and a manifest whose last four slides (three with tumour) validate."""
    folder, count = DATA / f"{num_slides}-slides", num_slides + NUM_VAL
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
    """One run on one core; nothing where the same has been done."""
    done, asked = out / "done.json", json.loads(json.dumps([curriculum, extra]))
    if done.exists() and json.loads(done.read_text())["asked"] == asked:
        return
    before = commit()
    settings = [
        "data.format=manifest",
        "index.resolution={level: 1}",
        f"data.path={manifest}",
        f"output={out}",
        f"seed={seed}",
        f"curriculum={json.dumps(curriculum)}",
        "training.optimizer.scale_with_world_size=none",
        "training.optimizer.clip_norm=1.0",
        "evaluation={max_patches: 8, figure_regions: 0}",
        "runtime={intra_op_threads: 1, read_threads: 1}",
        *extra,
    ]
    command = ["taskset", "-c", str(core), sys.executable, "-m", "trainer", "train", "configs/demo.yaml", "--overwrite"]
    subprocess.run([*command, *settings], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=3600)
    done.write_text(json.dumps({"commit": before, "asked": asked}))


def largest(size: Size) -> int:
    return max(size) if isinstance(size, dict) else size


def ends_at(arm: str) -> int:
    """Patch size that an arm's last stage is scored at."""
    return largest(ARMS[arm][0][-1][0])


def stages_of(stages: Stages, seconds: float, costs: Costs) -> list[dict[str, Any]]:
    """The curriculum that trains for so long.

    A curriculum without the largest size gets one step there at a rate of nothing, to be scored on the same pixels.
    """
    seconds -= sum(costs[largest(size), batch][0] for size, batch, _ in stages)
    result: list[dict[str, Any]] = []
    for size, batch, share in stages:
        steps = max(1, round(share * seconds / costs[largest(size), batch][1]))
        key = "sizes" if isinstance(size, dict) else "patch_size"
        result.append({key: size, "local_batch_size": batch, "steps": steps})
    if largest(stages[-1][0]) != LARGEST:
        result.append({"patch_size": LARGEST, "local_batch_size": 1, "steps": 1, "learning_rate_factor": 1e-9})
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


def measure_costs(manifest: Path, arms: set[str]) -> Costs:
    """Seconds of tracing and the like, and seconds per step, while the other core is as busy."""
    kinds = sorted({(largest(size), batch) for arm in arms for size, batch, _ in ARMS[arm][0]})
    runs = [(kind, RUNS / "costs" / f"{kind[0]}x{kind[1]}-{twin}") for kind in kinds for twin in "ab"]
    stages = {(s, b): [{"patch_size": s, "local_batch_size": b, "steps": 25}] for s, b in kinds}
    in_turns([lambda core, k=kind, out=out: train(manifest, out, stages[k], 1, core, []) for kind, out in runs])
    costs = {}
    for kind in kinds:
        pair = [stage_results(out)[0] for k, out in runs if k == kind]
        step = mean(r["seconds_per_step"] for r in pair)
        costs[kind] = (max(0.0, mean(r["seconds"] for r in pair) - 25 * step), step)
    return costs


def stage_results(run: Path) -> list[dict[str, Any]]:
    return json.loads((run / "report.json").read_text())["stages"]


def result_of(run: Run) -> dict[str, Any]:
    """Score on the common footprint through the size that the arm ends with, and the seconds it trained."""
    stages = stage_results(run.folder)
    size = ends_at(run.arm)
    trained = stages if size == LARGEST else stages[:-1]
    scores = stages[-1]["final_network"][str(size)]
    return {
        "commit": json.loads((run.folder / "done.json").read_text())["commit"],
        "machine": machine(),
        "asked": run.asked,
        "miou": scores["miou"],
        "auc": scores["auc"],
        "seconds": sum(s["seconds"] for s in trained),
        "steps": [s["steps"] for s in trained],
        "loss": loss_curve(run.folder, len(trained)),
    }


def loss_curve(run: Path, num_stages: int) -> list[tuple[float, float]]:
    """(seconds of training, mean loss) of every 100 steps of the first stages; tracing is left out."""
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = [e for e in events if e["event"] == "step" and e["stage"] < num_stages]
    seconds, before, times = 0.0, 0, []
    for e in logged:
        seconds, before = seconds + (e["step"] - before) * e["seconds_per_step"], e["step"]
        times.append(seconds)
    starts = range(0, len(logged) - 4, 5)  # configs/demo.yaml logs every 20 steps
    return [(round(times[at + 4], 1), round(mean(e["loss"] for e in logged[at : at + 5]), 4)) for at in starts]


def bench(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Train and score every run, two at a time; the result of each, in this order."""
    manifests = {run.study: make_data(STUDIES[run.study].num_slides) for run in runs}
    costs = measure_costs(manifests[runs[0].study], {run.arm for run in runs})
    print({s: [round(c, 3) for c in cost] for s, cost in costs.items()}, flush=True)

    def job(run: Run) -> Any:
        stages, extra = ARMS[run.arm]

        def on_core(core: int) -> None:
            train(manifests[run.study], run.folder, stages_of(stages, run.seconds, costs), run.seed, core, extra)
            result = result_of(run)
            print(run, *(f"{what} {result[what]}" for what in ("miou", "auc", "seconds", "steps")), flush=True)

        return on_core

    in_turns([job(run) for run in runs])
    return [{"study": run.study, "arm": run.arm, "seed": run.seed, **result_of(run)} for run in runs]


def arms_of(rows: list[dict[str, Any]], study: str) -> dict[str, list[dict[str, Any]]]:
    """Arm -> its runs, in one study."""
    own = [r for r in rows if r["study"] == study]
    return {arm: [r for r in own if r["arm"] == arm] for arm in dict.fromkeys(r["arm"] for r in own)}


def mean_of(runs: list[dict[str, Any]], what: str) -> float:
    return mean(r[what] for r in runs)


def verdict(arms: dict[str, list[dict[str, Any]]]) -> str:
    """The curriculum beside the fixed size that scored best among those with as many seeds, and the best of all."""
    ours = arms["curriculum"]
    fixed = {arm: runs for arm, runs in arms.items() if arm in FIXED}
    if not fixed:
        return f"One option at a time, {steps_text(ours)} steps, compared seed by seed."
    often = {arm: runs for arm, runs in fixed.items() if len(runs) == len(ours)}
    best = max(often, key=lambda arm: mean_of(often[arm], "miou"))
    of_all = max(fixed, key=lambda arm: mean_of(fixed[arm], "miou"))
    time_share = mean_of(ours, "seconds") / mean_of(fixed[best], "seconds")
    gain = mean_of(ours, "miou") - mean_of(fixed[best], "miou")
    text = (
        f"{len(ours)} seeds: the curriculum took {time_share:.0%} of the time of {best} "
        f"and scored {gain:+.3f} (seed by seed {gains(ours, fixed[best])})."
    )
    if of_all != best:
        score, seconds = (mean_of(fixed[of_all], what) for what in ("miou", "seconds"))
        text += f" The best fixed size in any number of seeds, {of_all}: {score:.3f} in {seconds:.0f} s."
    return text


def gains(runs: list[dict[str, Any]], others: list[dict[str, Any]]) -> str:
    """Seed by seed."""
    by_seed = {r["seed"]: r["miou"] for r in others}
    return ", ".join(f"{r['miou'] - by_seed[r['seed']]:+.3f}" for r in runs)


def steps_text(runs: list[dict[str, Any]]) -> str:
    return " or ".join(dict.fromkeys("+".join(map(str, r["steps"])) for r in runs))


def stages_text(arm: str) -> str:
    def text(size: Size) -> str:
        return " or ".join(map(str, sorted(size))) if isinstance(size, dict) else str(size)

    return ", ".join(f"{text(size)} x {batch}" for size, batch, _ in ARMS[arm][0])


def render(rows: list[dict[str, Any]], about: str) -> str:
    """The Markdown of results/curriculum/README.md: a table for every study."""
    lines = ["# Curricula against fixed patch sizes", "", about, "", "![scores](curriculum.png)", ""]
    for study, (_, _, title) in STUDIES.items():
        arms = arms_of(rows, study)
        measured = [", ".join(sorted({r[what] for r in rows if r["study"] == study})) for what in ("machine", "commit")]
        lines += [
            f"## {title}",
            "",
            verdict(arms),
            "",
            "| arm | patch size x batch | training seconds | common mIoU, mean | each seed | against the curriculum |",
            "| --- | --- | ---: | ---: | --- | --- |",
        ]
        for arm, runs in arms.items():
            each = ", ".join(f"{r['miou']:.3f}" for r in runs)
            gain = "" if arm == "curriculum" else gains(runs, arms["curriculum"])
            lines.append(
                f"| {arm} | {stages_text(arm)} | {mean_of(runs, 'seconds'):.0f} | "
                f"**{mean_of(runs, 'miou'):.3f}** | {each} | {gain} |"
            )
        lines += ["", f"Measured on {measured[0]}; commits {measured[1]}.", ""]
    return "\n".join(lines)


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Above: every run's score. Below: training loss against time, where the runs see the rule one after the other."""
    figure, axes = plt.subplots(2, len(STUDIES), figsize=(5.4 * len(STUDIES), 8.2), sharey="row")
    for (above, below), (study, (_, _, title)) in zip(axes.T, STUDIES.items(), strict=True):
        arms = arms_of(rows, study)
        for at, (arm, runs) in enumerate(arms.items()):
            colour = "black" if arm == "curriculum" else f"C{at}"
            above.plot([at] * len(runs), [r["miou"] for r in runs], "o", color=colour, alpha=0.7)
            above.hlines(mean_of(runs, "miou"), at - 0.25, at + 0.25, color=colour)
            for run in runs:
                below.plot(*zip(*run["loss"], strict=True), color=colour, alpha=0.8)
        labels = [f"{arm.removeprefix('curriculum, ')}, {mean_of(runs, 'seconds'):.0f} s" for arm, runs in arms.items()]
        above.set_xticks(range(len(arms)), labels, fontsize=8, rotation=40, ha="right")
        for label, at in zip(above.get_xticklabels(), range(len(arms)), strict=True):
            label.set_color("black" if list(arms)[at] == "curriculum" else f"C{at}")
        above.set_title(title, fontsize=10)
        below.set_xlabel("seconds of training")
        for axis in (above, below):
            axis.grid(axis="y", alpha=0.3)
    axes[0][0].set_ylabel("mIoU on the common footprint\n(dots: seeds, line: mean)")
    axes[1][0].set_ylabel("training loss at the stage's patch size\n(colours as above)")
    axes[1][0].set_ylim(0, 0.5)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def planned_runs() -> list[Run]:
    """Everything that results/curriculum shows: three seeds of what the bars compare, one of what is there to see."""
    thrice = {
        "large": ["fixed 512", "curriculum"],
        "small": ["fixed 256", "fixed 512", "curriculum"],
        "options": ["curriculum", "curriculum, scaling", "curriculum, stochastic depth"],
    }
    once = {
        "large": ["fixed 256", "fixed 512, batch 2"],
        "small": ["fixed 64", "fixed 128", "fixed 256, batch 1", "fixed 256, scaling"],
        "options": [f"curriculum, {name}" for name in OPTIONS if name not in ("scaling", "stochastic depth")],
    }
    order = list(ARMS).index
    return [
        Run.planned(study, arm, seed)
        for study in STUDIES
        for arm in sorted(thrice[study] + once[study], key=order)
        for seed in ((1, 2, 3) if arm in thrice[study] else (1,))
    ]


def main() -> None:
    """Bench what results/curriculum lacks and write it anew; with --study only print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=STUDIES, help="only this one, and write no results")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="with --study")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="with --study")
    parser.add_argument("--seconds", type=float, help="with --study (default: as for results/curriculum)")
    args = parser.parse_args()
    if args.study:
        runs = [Run.planned(args.study, arm, seed) for seed in args.seeds for arm in args.arms]
        bench([run._replace(seconds=args.seconds or run.seconds) for run in runs])
        return
    runs, kept = planned_runs(), OUT / "curriculum.json"
    known = {(r["study"], r["arm"], r["seed"]): r for r in (json.loads(kept.read_text()) if kept.exists() else [])}
    missing = [run for run in runs if known.get(run[:3], {}).get("asked") != run.asked]
    known |= {(r["study"], r["arm"], r["seed"]): r for r in (bench(missing) if missing else [])}
    rows = [known[run[:3]] for run in runs]
    about = (
        f"`python tools/bench_curriculum.py`, written on {time.strftime('%Y-%m-%d')}. MobileNetV2 from scratch, "
        "configs/demo.yaml, one core a run, two at a time."
    )
    OUT.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(rows, indent=1) + "\n")
    (OUT / "README.md").write_text(render(rows, about))
    picture(rows, OUT / "curriculum.png")
    print(render(rows, about))


if __name__ == "__main__":
    main()
