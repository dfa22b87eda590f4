"""`make bench`: the three figures that issue A promises, measured on this machine and written to results/bench/.

1. Our step (Horovod, 1 rank, fp16 compression) against a plain TensorFlow loop: ratio of speeds, bar 0.97.
2. Share of the step that a rank waits for data, read directly from slides, 2 ranks, 256 and 1024 px: bar 2 %.
3. 2048 px, batch 1, ResNet-50 on one process: it trains; its peak memory.

`python tools/bench.py step_ratios` (or data_wait, large_patch) measures one of them anew and keeps the others.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "results" / "bench"
DATA, RUNS = ROOT / "data" / "bench", ROOT / "runs" / "bench"
MPIRUN = Path(sys.executable).parent / "mpirun"


def run(*command: str) -> str:
    print("$", " ".join(command), flush=True)
    done = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, timeout=3600, check=True)
    return done.stdout


def ranks(count: int) -> list[str]:
    return [str(MPIRUN), "-np", str(count), "--bind-to", "none" if count == 1 else "core"]


def step_ratio(backbone: str, patch: int, batch: int) -> dict[str, Any]:
    out = run(*ranks(1), sys.executable, "tools/bench_step.py", backbone, str(patch), str(batch))
    return json.loads(out.strip().splitlines()[-1])


def train(name: str, count: int, *overrides: str) -> dict[str, Any]:
    """One short training run on the bench slides; the report of its only stage."""
    launcher = ranks(count) if count > 1 else []
    output = RUNS / name
    command = [*launcher, sys.executable, "-m", "trainer", "train", "configs/bench.yaml", "--overwrite"]
    run(*command, f"data.path={DATA}", f"output={output}", *overrides)
    return json.loads((output / "report.json").read_text())["stages"][0]


def stage(patch: int, batch: int, steps: int) -> str:
    return f"curriculum=[{{patch_size: {patch}, local_batch_size: {batch}, steps: {steps}}}]"


def main() -> None:
    if not (DATA / "training").exists():
        run(sys.executable, "-m", "trainer", "make-slides", str(DATA), "--train", "4", "--test", "1", "--size", "4096")
    parts: dict[str, Callable[[], Any]] = {
        "step_ratios": lambda: [step_ratio("resnet50", 256, 4), step_ratio("mobilenetv2", 256, 4)],
        "data_wait": lambda: {
            str(p): train(f"wait-{p}", 2, stage(p, b, n)) for p, b, n in ((256, 4, 30), (1024, 1, 15))
        },
        "large_patch": lambda: train("large", 1, stage(2048, 1, 4)),
    }
    OUT.mkdir(parents=True, exist_ok=True)
    file = OUT / "bench.json"
    result = json.loads(file.read_text()) if file.exists() else {}
    for name in sys.argv[1:] or parts:
        result[name] = parts[name]()
    result |= {"machine": machine(), "commit": run("git", "rev-parse", "--short", "HEAD").strip()}
    result["date"] = time.strftime("%Y-%m-%d")
    file.write_text(json.dumps(result, indent=1) + "\n")
    (OUT / "README.md").write_text(render(result))
    print(render(result))


def machine() -> str:
    """One line on the hardware that a figure was measured on."""
    return f"{os.cpu_count()} x {cpu_name()}, {memory_gib():.0f} GiB, {platform.platform()}"


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), platform.processor())


def memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def render(result: dict[str, Any]) -> str:
    lines = [
        "# Bench",
        "",
        f"Measured by `make bench` at commit {result['commit']} on {result['date']}: {result['machine']}.",
        "",
        "| what | measured | bar |",
        "| --- | ---: | ---: |",
    ]
    for r in result["step_ratios"]:
        low, high = r["ratio_spread"]
        lines.append(
            f"| speed of our step (Horovod, 1 rank, fp16) / plain TensorFlow loop, {r['backbone']}, "
            f"{r['patch_size']} px, batch {r['batch']}, {r['threads']} threads | {r['ratio']:.3f} "
            f"(single pairs, quartiles {low:.3f}-{high:.3f}; {r['rounds']} pairs) | 0.97 |"
        )
    for patch, s in result["data_wait"].items():
        lines.append(
            f"| data-wait share of the step, 2 ranks, direct from slides, {patch} px, resnet50 | "
            f"{s['data_wait_fraction']:.2%} | 2 % |"
        )
    s = result["large_patch"]
    lines.append(
        f"| 2048 px, batch 1, resnet50, float32, 1 process: peak memory | {s['peak_memory_gb']:.1f} GB at "
        f"{s['megapixels_per_second']:.2f} Mpx/s | trains |"
    )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
