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
from trainer.export.compare import figures
from trainer.files import replace_content

ROOT = Path(__file__).resolve().parents[1]
DATA, RUNS = ROOT / "data" / "bench", ROOT / "runs" / "bench-export"
OUT = ROOT / "results" / "export" / folder_of(processor())


def stages(*stages: tuple[int, int, int]) -> str:
    """A curriculum of (patch size, batch, steps)."""
    return str([dict(zip(("patch_size", "local_batch_size", "steps"), stage, strict=True)) for stage in stages])


STAGES = {
    "mobilenetv2": stages((256, 4, 300), (512, 1, 60)),
    "resnet50": stages((128, 8, 400), (512, 1, 40)),
}
"""Backbone -> what it is trained for: minutes."""


def widefield(*arguments: object) -> None:
    command = [sys.executable, "-m", "trainer", *map(str, arguments)]
    print("$ widefield", *arguments, flush=True)
    subprocess.run(command, cwd=ROOT, timeout=7200, check=True)


def measure(backbone: str) -> dict[str, Any]:
    """Train where that is not done, export, compare."""
    run = RUNS / backbone
    if not (run / "report.json").exists():
        settings = [
            f"data.path={DATA}",
            f"output={run}",
            f"model.backbone={backbone}",
            f"curriculum={STAGES[backbone]}",
            "sampling={positive_share: 0.7}",  # tumour is rare, and Dice is that of tumour
            "training.optimizer={name: adam, learning_rate: 0.001, warmup_steps: 10, schedule: cosine}",
            "evaluation={max_patches: 48, max_regions: 4, figure_regions: 0}",
        ]
        widefield("train", "configs/bench.yaml", *settings, "--overwrite")
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
        lines += ["", f"## {backbone}, tiles of {r['patch_size']} px", "", *figures(r["rows"]), "", *bars(r)]
    return "\n".join([*lines, ""])


def bars(result: dict[str, Any]) -> list[str]:
    """What was asked for beside what was found."""
    rows = {row["name"]: row for row in result["rows"]}
    float32, int8 = rows["OpenVINO float32"], rows["OpenVINO INT8"]
    kept, layers = len(result["int8"]["kept_in_float32"]), result["int8"]["num_layers"]
    return [
        "| what | measured | bar |",
        "| --- | ---: | ---: |",
        f"| OpenVINO float32: speed over TensorFlow float32 | {float32['speed_up']:.2f} | >= 1.3 |",
        f"| INT8: speed over TensorFlow float32 | {int8['speed_up']:.2f} | >= 3.5 |",
        f"| INT8: drop of Dice | {rows['TensorFlow float32']['dice'] - int8['dice']:.4f} | <= 0.005 |",
        f"| INT8: file over OpenVINO float32's | {int8['file_bytes'] / float32['file_bytes']:.3f} | <= 0.3 |",
        f"| INT8: layers kept in float32 | {kept} of {layers} | |",
    ]


if __name__ == "__main__":
    main()
