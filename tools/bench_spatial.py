"""`make bench-spatial`: one patch on two ranks of one core each, against the whole patch on one such core.

Every setting is measured whole and shared in turns, each in fresh processes (`trainer/bench/memory_step.py`). What
patches ranks of some memory can share is modelled from the network's graph. Writes results/spatial/PROCESSOR/; an hour.

  python tools/bench_spatial.py [measure] [model]      one of the two anew, the other stays
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
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
    ("mobilenetv2", 1408, "float32", "none"),  # two whole ones fit in this machine
)
TWO_WHOLE_UP_TO = 1408
LARGEST = ("mobilenetv2", 8192, "mixed_bfloat16", "blocks")
STEPS = 3
GIGABYTES = (8, 24, 80, 192)
RANKS = (1, 2, 4, 8, 16, 32)
MODELLED = ("resnet50", "mixed_bfloat16", "blocks")


def measured(
    backbone: str, patch_size: int, precision: str, recompute: str, ranks: int, steps: int, *whole: str
) -> dict[str, Any]:
    """What `memory_step` prints, on ranks of one core each."""
    start = [str(Path(sys.executable).parent / "mpirun"), "-np", str(ranks), "--bind-to", "core"]
    step = [sys.executable, "-m", "trainer.bench.memory_step", str(patch_size), "1", precision, recompute, backbone]
    step += [str(steps), *whole]
    print("$", *start[1:], *step[1:], flush=True)
    done = subprocess.run([*start, *step], cwd=ROOT, text=True, capture_output=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    result = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"  {result['median_step_s']:.1f} s, {result['peak_memory_gb']:.2f} GB", flush=True)
    return result


def settings() -> dict[str, Any]:
    """Each setting on one core, on two that share the patch, and where memory allows on two with a patch each."""
    all_ways = []
    for setting in SETTINGS:
        ways = {"whole": measured(*setting, 1, STEPS), "shared": measured(*setting, 2, STEPS)}
        if setting[1] <= TWO_WHOLE_UP_TO:
            ways["two_whole"] = measured(*setting, 2, STEPS, "1")
        all_ways.append(ways)
    return {"ways": all_ways}


def largest() -> dict[str, Any]:
    return measured(*LARGEST, 2, 1)


def model() -> dict[str, Any]:
    """The largest patch that some ranks of some memory can share."""
    from trainer.config.schema import ModelConfig
    from trainer.errors import ModelError
    from trainer.models import build_model
    from trainer.models.keras import keras
    from trainer.models.memory import predicted_peak_bytes
    from trainer.models.halos import check_split

    backbone, precision, recompute = MODELLED
    keras.mixed_precision.set_global_policy(precision)
    network = build_model(ModelConfig(backbone=backbone), 2)
    options = {"optimizer_slots": 2, "ema": False, "accumulate": False, "checkpoints": True}

    def peak(patch_size: int, ranks: int) -> float:
        world = {"world_size": ranks, "spatial": ranks}
        return predicted_peak_bytes(network, patch_size, 1, recompute=recompute == "blocks", **options, **world) / 1e9

    def is_thick(patch_size: int, ranks: int) -> bool:
        try:
            check_split(network, patch_size, ranks)
        except ModelError:
            return False
        return True

    def largest(ranks: int, gigabytes: float) -> int:
        """Memory grows with the patch's pixels: from two sizes the third is guessed, then made sure of in steps."""
        first, second = (max(n, -(-288 * ranks // 256) * 256) for n in (1024, 2048))
        second = max(second, 2 * first)
        low, high = peak(first, ranks), peak(second, ranks)
        per_pixel = (high - low) / (second**2 - first**2)
        guess = int(max(gigabytes - low, 0) / per_pixel + first**2) ** 0.5
        size = max(256, round(guess / 256) * 256)
        while peak(size, ranks) <= gigabytes:
            size += 256
        while size > 0 and (peak(size, ranks) > gigabytes or not is_thick(size, ranks)):
            size -= 256
        return size

    rows = []
    for ranks in RANKS:
        rows.append([largest(ranks, gigabytes) for gigabytes in GIGABYTES])
        print(f"{ranks} rank(s): {rows[-1]}", flush=True)
    return {"setting": MODELLED, "gigabytes": GIGABYTES, "ranks": RANKS, "largest_px": rows}


def draw(result: dict[str, Any], path: Path) -> None:
    modelled, points = result["model"], result["measure"]
    figure, axes = plt.subplots(figsize=(7, 4.4), layout="constrained")
    for column, gigabytes in enumerate(modelled["gigabytes"]):
        sizes = [row[column] for row in modelled["largest_px"]]
        axes.plot(modelled["ranks"], sizes, "--o", ms=3, label=f"{gigabytes} GB per rank (modelled)")
    for point in [*(p for pair in points["pairs"] for p in pair), points["largest"]]:
        label = f"{point['patch_size']}, {point['backbone']}, {point['peak_memory_gb']:.1f} GB"
        axes.plot(point["ranks_per_patch"], point["patch_size"], "k*", ms=9)
        axes.annotate(
            label, (point["ranks_per_patch"], point["patch_size"]), (6, -3), textcoords="offset points", fontsize=7
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(modelled["ranks"], modelled["ranks"])
    ticks = [2**n for n in range(10, 17)]
    axes.set_yticks(ticks, ticks)
    axes.set_xlabel("ranks that share a patch")
    axes.set_ylabel("largest patch (px)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, title="★ measured")
    for suffix in ("png", "svg"):
        figure.savefig(path.with_suffix(f".{suffix}"), dpi=150)


def render(result: dict[str, Any]) -> str:
    modelled, points = result["model"], result["measure"]
    rows = []
    for whole, shared in points["pairs"]:
        memory = shared["peak_memory_gb"] / whole["peak_memory_gb"]
        seconds = shared["median_step_s"] / (whole["median_step_s"] / 2)
        rows.append(
            f"| {whole['backbone']}, {whole['patch_size']} px, {whole['precision']}, recompute {whole['recompute']} | "
            f"{whole['peak_memory_gb']:.2f} | {shared['peak_memory_gb']:.2f} | {memory:.2f} | "
            f"{whole['median_step_s']:.1f} | {shared['median_step_s']:.1f} | {seconds:.2f} | "
            f"{shared['halo_bytes'] / 1e6:.1f} |"
        )
    big = points["largest"]
    table = [
        f"| {ranks} | " + " | ".join(f"{px:,}" for px in sizes) + " |"
        for ranks, sizes in zip(modelled["ranks"], modelled["largest_px"], strict=True)
    ]
    return "\n".join([
        "# One patch on several ranks",
        "",
        f"`make bench-spatial` at {points['commit']} on {points['date']}: {points['machine']}.",
        "",
        "**Measured.** DeepLabV3+, group norm, output stride 16, Adam, batch 1, ranks of one core each: the whole patch on one, "
        f"and half of it on each of two; medians of {STEPS} steps, largest peak of a rank.",
        "",
        "| setting | whole: GB | shared: GB per rank | ratio (bar 0.58) | whole: s | shared: s | of half of whole (bar 1.15) | "
        "halo MB per rank and step |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *rows,
        "",
        f"{big['backbone']}, **{big['patch_size']} px**, {big['precision']}, recompute {big['recompute']}, two ranks: "
        f"**{big['peak_memory_gb']:.1f} GB per rank, {big['median_step_s']:.0f} s a step**, "
        f"{big['halo_bytes'] / 1e6:.0f} MB of halos.",
        "",
        "Bytes are those handed over while the step was traced; tests compare them with the computed minimum.",
        "",
        f"**Modelled.** The largest patch that ranks can share, a multiple of 256 px, {', recompute '.join(modelled['setting'][1:])}, "
        f"{modelled['setting'][0]}, by the memory model (`trainer/models/memory/`); stars are what was measured.",
        "",
        "![largest patch against ranks](largest.png)",
        "",
        "| ranks | " + " | ".join(f"{g} GB" for g in modelled["gigabytes"]) + " |",
        "| ---: |" + " ---: |" * len(modelled["gigabytes"]),
        *table,
        "",
    ])  # fmt: skip


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    file = OUT / "bench.json"
    result = json.loads(file.read_text()) if file.exists() else {}
    about = {"commit": commit(), "date": time.strftime("%Y-%m-%d"), "machine": machine()}
    parts = {"settings": settings, "largest": largest, "model": model}
    for name in sys.argv[1:] or parts:
        result[name] = {**parts[name](), **about}
        replace_content(file, json.dumps(result, indent=1) + "\n")
    draw(result, OUT / "largest")
    replace_content(OUT / "README.md", render(result))


if __name__ == "__main__":
    main()
