"""`make bench`: speed of training on this machine, each figure side by side in one run.

Writes a folder of results/bench/ for each kind of processor: what is fast differs between them. `python tools/bench.py
scaling` (or any other of the parts in `main`) measures one anew and keeps the others. Memory is `widefield bench
memory`, slides and stores are `make bench-data`, curricula are `tools/bench_curriculum.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.bench.machine import commit, folder_of, machine, processor

ROOT = Path(__file__).resolve().parents[1]
DATA, RUNS = ROOT / "data" / "bench", ROOT / "runs" / "bench"
MPIRUN = Path(sys.executable).parent / "mpirun"


OUT = ROOT / "results" / "bench" / folder_of(processor())


def run(*command: str) -> str:
    print("$", " ".join(command), flush=True)
    done = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, timeout=3600, check=True)
    return done.stdout


def ranks(count: int) -> list[str]:
    return [str(MPIRUN), "-np", str(count), "--bind-to", "none" if count == 1 else "core"]


def compare(first: str, second: str, backbone: str, patch_size: int, batch: int, pairs: int = 40) -> dict[str, Any]:
    numbers = map(str, (patch_size, batch, pairs))
    return last_line(run(*ranks(1), sys.executable, "tools/bench_step.py", first, second, backbone, *numbers))


def scaling(*numbers: int) -> dict[str, Any]:
    return last_line(run(*ranks(2), sys.executable, "tools/bench_scaling.py", "resnet50", *map(str, numbers)))


def checkpoint() -> dict[str, Any]:
    return last_line(run(sys.executable, "tools/bench_checkpoint.py", "resnet50", str(RUNS / "checkpoint")))


def last_line(out: str) -> dict[str, Any]:
    line = out.strip().splitlines()[-1]
    print(line, flush=True)
    return json.loads(line)


def train(name: str, count: int, *overrides: str) -> dict[str, Any]:
    """One short training run on the bench slides; the report of its only stage."""
    launcher = ranks(count) if count > 1 else []
    output = RUNS / name
    command = [*launcher, sys.executable, "-m", "trainer", "train", "configs/bench.yaml", "--overwrite"]
    run(*command, f"data.path={DATA}", f"output={output}", *overrides)
    return json.loads((output / "report.json").read_text())["stages"][0]


def stage(patch: int, batch: int, steps: int) -> str:
    return f"curriculum=[{{patch_size: {patch}, local_batch_size: {batch}, steps: {steps}}}]"


RATIOS = {
    ("ours", "plain"): ("speed of our step (Horovod, 1 rank, fp16) / plain TensorFlow loop", 0.97),
    ("ours", "keras_norm"): ("speed of the step with our group norm / with Keras'", 1.3),
    ("bfloat16", "ours"): ("speed of the step in mixed_bfloat16 / float32", 1.5),
}
"""The ways that are compared -> what their ratio is, and the least that it shall be."""


def main() -> None:
    """Measure the parts that the command line names, or all; the others keep what was measured before."""
    if not (DATA / "training").exists():
        run(sys.executable, "-m", "trainer", "make-slides", str(DATA), "--train", "4", "--test", "1", "--size", "4096")
    parts: dict[str, Callable[[], Any]] = {
        "steps": lambda: [
            compare("ours", "plain", "resnet50", 256, 4, 30),
            compare("ours", "plain", "mobilenetv2", 256, 4),
            compare("ours", "keras_norm", "resnet50", 256, 4, 12),
            compare("ours", "keras_norm", "resnet50", 1024, 1, 8),
            compare("bfloat16", "ours", "resnet50", 1024, 1, 10),
        ],
        "scaling": lambda: [scaling(256, 16, 6), scaling(256, 4, 10), scaling(1024, 1, 6)],
        "loop": lambda: {
            str(p): train(f"loop-{p}", 2, stage(p, b, n), "training.check_every_steps=10")
            for p, b, n in ((256, 4, 30), (1024, 1, 12))
        },
        "checkpoint": checkpoint,
    }
    OUT.mkdir(parents=True, exist_ok=True)
    RUNS.mkdir(parents=True, exist_ok=True)
    file = OUT / "bench.json"
    result = json.loads(file.read_text()) if file.exists() else {}
    for name in sys.argv[1:] or parts:
        result[name] = parts[name]()
        measured = {name: f"commit {commit()}, {time.strftime('%Y-%m-%d')}, {machine()}"}
        result["measured"] = result.get("measured", {}) | measured
        file.write_text(json.dumps(result, indent=1) + "\n")  # after each part: a long bench may be stopped
    (OUT / "README.md").write_text(render(result))
    print(render(result))


def render(result: dict[str, Any]) -> str:
    """The Markdown of the folder's README.md: every figure beside its bar."""
    lines = [
        "# Bench",
        "",
        "Measured by `make bench`; each part of it (`python tools/bench.py PART`):",
        "",
        *(f"- {part}: {how}" for part, how in result["measured"].items()),
        "",
        "| what | measured | bar |",
        "| --- | ---: | ---: |",
    ]
    for r in result["steps"]:
        ratio, bar = RATIOS[r["first"], r["second"]]
        what = f"{ratio}, {r['backbone']}, {r['patch_size']} px, batch {r['batch']}, {r['threads']} threads"
        low, high = r["quartiles_of_pairs"]
        lines.append(
            f"| {what} | {r['speed_of_first_over_second']:.3f} (single pairs, quartiles {low:.3f}-{high:.3f}; "
            f"{r['pairs']} pairs) | >= {bar} |"
        )
    for r in result["scaling"]:
        low, high = r["quartiles_of_rounds"]
        lines.append(
            f"| weak scaling, 1 -> 2 ranks on one core each, resnet50, {r['patch_size']} px, batch {r['batch']}: speed "
            f"with all-reduce / two independent processes | {r['of_ceiling']:.3f} (quartiles {low:.3f}-{high:.3f}; "
            f"{r['rounds']} rounds) | >= 0.95 |"
        )
        lines.append(
            f"| the same: step of one rank alone / of two together (two independent processes) | "
            f"{r['efficiency']:.3f} ({r['ceiling_efficiency']:.3f}) | |"
        )
    for patch, s in result["loop"].items():
        lines.append(
            f"| share of the step, 2 ranks, from slides, resnet50, {patch} px: waiting for data | "
            f"{s['data_wait_fraction']:.2%} | <= 2 % |"
        )
        lines.append(
            f"| the same: loop's own, with logging every 5 and comparing ranks every 10 steps | "
            f"{s['overhead_fraction']:.2%} | <= 2 % |"
        )
        lines.append(f"| the same: all-reduce that no computing hid | {s['allreduce_fraction']:.2%} | |")
    c = result["checkpoint"]
    cost = c["copy_s"] + c["write_s"]
    lines.append(
        f"| checkpoint, resnet50 with Adam, {c['megabytes']:.0f} MB: copy, write in the background, compare ranks | "
        f"{c['copy_s']:.2f} s, {c['write_s']:.2f} s, {c['compare_s']:.2f} s | |"
    )
    lines.append(f"| the same every 15 minutes, as if the write stopped training too | {cost / 900:.2%} | <= 1 % |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
