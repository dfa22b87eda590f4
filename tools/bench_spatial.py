"""`make bench-spatial`: one patch on two ranks of one core each, against the whole patch on one such core.

Every setting is measured whole and shared in turns, each in fresh processes (`trainer/bench/memory_step.py`). What
patches ranks of some memory can share is modelled from the network's graph. Writes results/spatial/PROCESSOR/; an hour.

  python tools/bench_spatial.py [settings] [largest] [points] [model]      these anew, the others stay
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib

from trainer.bench.machine import commit, folder_of, machine, processor
from trainer.files import replace_content

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "results" / "spatial" / folder_of(processor())
SETTINGS = (
    ("resnet50", 2048, "float32", "none"),
    ("mobilenetv2", 2048, "float32", "none"),
    ("resnet50", 1536, "float32", "none"),
)
LARGEST = ("mobilenetv2", 8192, "mixed_bfloat16", "blocks")
EXACT = {"TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "1"}
"""For LARGEST: memory goes back to the system as soon as a tensor is done with, which costs time."""
STEPS = 3
GIGABYTES = (8, 24, 80, 192)
RANKS = (1, 2, 4, 8, 16, 32)
MODELLED = ("resnet50", "mixed_bfloat16", "blocks")
POINTS = ((2048, 1), (4096, 1), (2048, 2), (4096, 2))
"""Patch sizes and ranks at which MODELLED is measured."""


def measured(
    backbone: str,
    patch_size: int,
    precision: str,
    recompute: str,
    ranks: int,
    steps: int,
    *whole: str,
    environment: Mapping[str, str] = {},
) -> dict[str, Any] | None:
    """What `memory_step` prints, on ranks of one core each; None if it was killed, which is said."""
    start = [str(Path(sys.executable).parent / "mpirun"), "-np", str(ranks), "--bind-to", "core"]
    step = [sys.executable, "-m", "trainer.bench.memory_step", str(patch_size), "1", precision, recompute, backbone]
    step += [str(steps), *whole]
    print("$", *(f"{k}={v}" for k, v in environment.items()), *start[1:], *step[1:], flush=True)
    done = subprocess.run([*start, *step], cwd=ROOT, text=True, capture_output=True, env={**os.environ, **environment})
    if done.returncode == 137 or "signal 9" in done.stderr:
        print("  killed: no memory", flush=True)
        return None
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    result = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"  {result['median_step_s']:.1f} s, {result['peak_memory_gb']:.2f} GB", flush=True)
    return result


def settings() -> dict[str, Any]:
    """Each setting on one core, on two that share the patch, and on two with a patch each."""
    ways = [
        {
            "whole": measured(*setting, 1, STEPS),
            "shared": measured(*setting, 2, STEPS),
            "two_whole": measured(*setting, 2, STEPS, "1"),
        }
        for setting in SETTINGS
    ]
    return {"ways": ways}


def largest() -> dict[str, Any]:
    return {"step": measured(*LARGEST, 2, 1, environment=EXACT), "environment": EXACT}


def points() -> dict[str, Any]:
    """What the modelled setting takes where it fits here, and what the model says."""
    backbone, precision, recompute = MODELLED
    peak = modelled_peak()[1]
    steps = [(size, ranks, measured(backbone, size, precision, recompute, ranks, 1)) for size, ranks in POINTS]
    return {"points": [{"predicted_gb": peak(size, ranks), **step} for size, ranks, step in steps if step]}


def modelled_peak() -> tuple[Any, Callable[[int, int], float]]:
    """The network of MODELLED, and the GB of a rank by (patch size, ranks that share it)."""
    from trainer.config.schema import ModelConfig
    from trainer.models import build_model
    from trainer.models.keras import keras
    from trainer.models.memory import predicted_peak_bytes

    backbone, precision, recompute = MODELLED
    keras.mixed_precision.set_global_policy(precision)
    network = build_model(ModelConfig(backbone=backbone), 2)
    options = {"optimizer_slots": 2, "ema": False, "accumulate": False, "checkpoints": True}

    def peak(patch_size: int, ranks: int) -> float:
        world = {"world_size": ranks, "spatial": ranks}
        return predicted_peak_bytes(network, patch_size, 1, recompute=recompute == "blocks", **options, **world) / 1e9

    return network, peak


def model() -> dict[str, Any]:
    """The largest patch that some ranks of some memory can share."""
    from trainer.models.halos import halos_of

    network, peak = modelled_peak()

    def largest(ranks: int) -> list[int]:
        """For each memory. Nearly all of it grows with the patch's pixels: a line through two sizes; 0 if too thin."""
        first = max(2048, 512 * ranks)
        low, high = peak(first, ranks), peak(4 * first, ranks)
        per_pixel = (high - low) / (15 * first**2)
        pixels = [max(first**2 + (gigabytes - low) / per_pixel, 0) for gigabytes in GIGABYTES]
        sizes = [int(n**0.5) // 256 * 256 for n in pixels]
        return [size if size // ranks >= thinnest else 0 for size in sizes]

    thinnest = max(halo.patch_rows for halo in halos_of(network))
    rows = []
    for ranks in RANKS:
        rows.append(largest(ranks))
        print(f"{ranks} rank(s): {rows[-1]}", flush=True)
    return {"setting": MODELLED, "gigabytes": GIGABYTES, "ranks": RANKS, "largest_px": rows}


def draw(result: dict[str, Any], path: Path) -> None:
    """The modelled sizes as lines, the measured steps as stars."""
    modelled = result["model"]
    figure, axes = plt.subplots(figsize=(7, 4.4), layout="constrained")
    for column, gigabytes in enumerate(modelled["gigabytes"]):
        sizes = [row[column] or math.nan for row in modelled["largest_px"]]
        axes.plot(modelled["ranks"], sizes, "--o", ms=3, label=f"{gigabytes} GB per rank (modelled)")
    largest = result.get("largest", {"step": None})["step"]
    for point in [*result.get("points", {"points": []})["points"], *filter(None, [largest])]:
        ranks, size = point["ranks_per_patch"], point["patch_size"]
        other = f" ({point['backbone']})" if point is largest else ""
        axes.plot(ranks, size, "k*", ms=9)
        label = f"{point['peak_memory_gb']:.1f} GB{other}"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # lines pass behind it
        axes.annotate(label, (ranks, size), (9, -3), textcoords="offset points", fontsize=8, bbox=box)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(modelled["ranks"], modelled["ranks"])
    ticks = [2**n for n in range(10, 17)]
    axes.set_yticks(ticks, ticks)
    axes.set_xlabel("ranks that share a patch")
    axes.set_ylabel("largest patch (px)")
    axes.set_title(f"lines: {', '.join(modelled['setting'])}\nstars: measured", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    for suffix in ("png", "svg"):
        figure.savefig(path.with_suffix(f".{suffix}"), dpi=150)


def row(ways: dict[str, Any]) -> str:
    """Of the table: one setting."""
    whole, shared, two = ways["whole"], ways["shared"], ways["two_whole"]
    memory = shared["peak_memory_gb"] / whole["peak_memory_gb"]
    cells = [
        f"{whole['backbone']}, {whole['patch_size']} px, {whole['precision']}",
        f"{whole['peak_memory_gb']:.2f}",
        f"{shared['peak_memory_gb']:.2f}",
        f"{memory:.2f}",
        f"{whole['median_step_s']:.2f}",
        f"{two['median_step_s']:.2f}" if two else "no memory",
        f"{shared['median_step_s']:.2f}",
        f"{2 * shared['median_step_s'] / whole['median_step_s']:.2f}",
        f"{2 * shared['median_step_s'] / two['median_step_s']:.2f}" if two else "",
        f"{shared['halo_bytes'] / 1e6:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def render(result: dict[str, Any]) -> str:
    """The folder's README: the parts that were measured on this kind of processor."""
    parts = {"settings": render_settings, "largest": render_largest, "model": render_model, "points": render_points}
    first = next(iter(result.values()))
    texts = [text(result[name]) for name, text in parts.items() if name in result]
    missing = ", ".join(parts.keys() - result.keys())
    texts += [f"Not measured on this kind of processor: {missing}."] if missing else []
    return "\n\n".join([f"# One patch on several ranks\n\n`make bench-spatial`; {first['machine']}.", *texts]) + "\n"


def render_settings(part: dict[str, Any]) -> str:
    return f"""**Measured** (commit {part["commit"]}, {part["date"]}). DeepLabV3+, group norm, output stride 16, Adam,
batch 1, nothing computed again, ranks of one core each: a whole patch on one rank, a whole patch on each of two at once
(data-parallel), and half of one patch on each of two. Medians of {STEPS} steps; the largest peak of a rank; halos as
handed over in one step by the rank that sends more.

| setting | whole: GB | shared: GB per rank | ratio | whole: s | two whole: s | shared: s | of half of whole | \
of half of two whole | halo MB |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
{chr(10).join(map(row, part["ways"]))}

The bars were 0.58 for the ratio of memory at 2048 px, and 1.15 for a shared step against half of a whole one with the
same two cores in use: the last ratio, where two whole patches fit. The machine's speed changes by a fifth between
runs."""


def render_largest(part: dict[str, Any]) -> str:
    backbone, patch_size, precision, recompute = LARGEST
    step, environment = part["step"], " ".join(f"{k}={v}" for k, v in part.get("environment", {}).items())
    said = (
        f"{step['peak_memory_gb']:.1f} GB per rank, {step['median_step_s']:.0f} s for the one step after the first, "
        f"{step['halo_bytes'] / 1e6:.0f} MB of halos"
        if step
        else "killed for want of memory"
    )
    return f"""**Measured** (commit {part["commit"]}, {part["date"]}). {backbone}, {patch_size} px, {precision},
recompute {recompute}, two ranks{f", {environment}" if environment else ""}: **{said}**."""


def render_model(part: dict[str, Any]) -> str:
    backbone, precision, recompute = part["setting"]
    table = [
        f"| {ranks} | {' | '.join(f'{px:,}' if px else 'slabs too thin' for px in sizes)} |"
        for ranks, sizes in zip(part["ranks"], part["largest_px"], strict=True)
    ]
    return f"""**Modelled** (commit {part["commit"]}). The largest patch that ranks can share, in multiples of 256 px:
{backbone}, {precision}, recompute {recompute}, by the memory model (`trainer/models/memory/`), with slabs of at least
the largest halo. Stars: measured, {LARGEST[0]} as above, the others below.

![largest patch against ranks](largest.png)

| ranks | {" | ".join(f"{g} GB" for g in part["gigabytes"])} |
| ---: |{" ---: |" * len(part["gigabytes"])}
{chr(10).join(table)}"""


def render_points(part: dict[str, Any]) -> str:
    rows = [
        f"| {p['patch_size']} px | {p['ranks_per_patch']} | {p['peak_memory_gb']:.2f} | {p['predicted_gb']:.2f} |"
        for p in part["points"]
    ]
    return f"""**Measured** (commit {part["commit"]}, {part["date"]}), GB of the rank that has most:

| patch | ranks | measured | modelled |
| ---: | ---: | ---: | ---: |
{chr(10).join(rows)}"""


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    file = OUT / "bench.json"
    result = json.loads(file.read_text()) if file.exists() else {}
    about = {"commit": commit(), "date": time.strftime("%Y-%m-%d"), "machine": machine()}
    parts = {"settings": settings, "largest": largest, "points": points, "model": model}
    for name in sys.argv[1:] or parts:
        result[name] = {**parts[name](), **about}
        replace_content(file, json.dumps(result, indent=1) + "\n")
    if "model" in result:
        draw(result, OUT / "largest")
    replace_content(OUT / "README.md", render(result))


if __name__ == "__main__":
    main()
