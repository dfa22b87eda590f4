"""`make bench-export`: what an export is worth on this machine, on networks that have learnt something.

Trains DeepLabV3+ on two backbones for a while on generated slides, exports each and compares the formats (`widefield
export --compare`). Writes a folder of results/export/ for each kind of processor. `python tools/bench_export.py
resnet50` measures one anew and keeps the other; a run that is there is not trained again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from trainer.bench.machine import commit, folder_of, machine, processor
from trainer.files import replace_content

ROOT = Path(__file__).resolve().parents[1]
DATA, RUNS = ROOT / "data" / "bench", ROOT / "runs" / "bench-export"
OUT = ROOT / "results" / "export" / folder_of(processor())
STAGES = {
    "mobilenetv2": "[{patch_size: 256, local_batch_size: 4, steps: 300}, {patch_size: 512, local_batch_size: 1, steps: 60}]",
    "resnet50": "[{patch_size: 256, local_batch_size: 4, steps: 200}, {patch_size: 512, local_batch_size: 1, steps: 40}]",
}
"""Backbone -> what it is trained for: minutes."""
BARS = {
    "OpenVINO float32": ("speed_up", ">=", 1.3),
    "OpenVINO INT8": ("speed_up", ">=", 3.5),
}
"""Speed over TensorFlow in float32."""


def widefield(*arguments: object) -> None:
    command = [sys.executable, "-m", "trainer", *map(str, arguments)]
    print("$ widefield", *arguments, flush=True)
    subprocess.run(command, cwd=ROOT, timeout=7200, check=True)


def measure(backbone: str) -> dict[str, Any]:
    """Train where that is not done, export, compare."""
    run = RUNS / backbone
    if not (run / "report.json").exists():
        settings = (f"data.path={DATA}", f"output={run}", f"model.backbone={backbone}", "model.weights=null")
        evaluation = "evaluation={max_patches: 48, max_regions: 4, figure_regions: 0}"
        rate = "training.optimizer={name: adam, learning_rate: 0.001, warmup_steps: 10, schedule: cosine}"
        stages = f"curriculum={STAGES[backbone]}"
        widefield("train", "configs/bench.yaml", *settings, evaluation, rate, stages, "--overwrite")
    widefield("export", run, "--compare", "--calibration-patches", 64)
    found = json.loads((run / "export" / "compare.json").read_text())
    int8 = json.loads((run / "export" / "openvino-int8" / "export.json").read_text())["int8"]
    return found | {"int8": int8, "commit": commit(), "machine": machine(), "date": time.strftime("%Y-%m-%d")}


def main() -> None:
    if not (DATA / "training").exists():
        widefield("make-slides", DATA, "--train", 4, "--test", 1, "--size", 4096)
    OUT.mkdir(parents=True, exist_ok=True)
    file = OUT / "bench.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for backbone in sys.argv[1:] or STAGES:
        results[backbone] = measure(backbone)
        replace_content(file, json.dumps(results, indent=1) + "\n")
        replace_content(OUT / "README.md", render(results))
    print(render(results))


def render(results: dict[str, Any]) -> str:
    """The Markdown of the folder's README.md."""
    lines = ["# Exports", "", "Measured by `make bench-export`, DeepLabV3+ with group norm on generated slides:", ""]
    for backbone, r in results.items():
        lines.append(f"- {backbone}: commit {r['commit']}, {r['date']}, {r['machine']}, {r['threads']} threads")
    for backbone, r in results.items():
        lines += ["", f"## {backbone}, tiles of {r['patch_size']} px", "", *table(r), "", *bars(r)]
    return "\n".join([*lines, ""])


def table(result: dict[str, Any]) -> list[str]:
    lines = [
        "| network | computes in | Dice | latency (ms) | speed-up | peak memory (MB) | file (MB) |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        low, high = (1000 * q for q in row["quartiles_s"])
        lines.append(
            f"| {row['name']} | {row['computes']} | {row['dice']:.4f} | {1000 * row['latency_s']:.0f} "
            f"({low:.0f}-{high:.0f}) | {row['speed_up']:.2f} | {row['peak_memory_bytes'] / 1e6:.0f} | "
            f"{row['file_bytes'] / 1e6:.1f} |"
        )
    return lines
