"""`make bench-predict`: what predicting a slide costs beside its network, and what memory a very large one takes.

The demo's network, exported, predicts a whole slide by `widefield predict`, and some of its tiles from memory
(`trainer/export/measure.py`): in turns, each in a fresh process with all cores. Then it predicts a slide of 100,000 x
100,000 px. Both slides repeat generated tissue (`tools/big_slide.py`). Writes a folder of results/predict/ for each
kind of processor.

  python tools/bench_predict.py [throughput] [memory]      these anew, the other stays
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from big_slide import write_big_slide

from trainer.bench.machine import commit, folder_of, machine, processor
from trainer.files import replace_content
from trainer.infer.export_folder import read_about
from trainer.infer.network import Recipe
from trainer.infer.plan import plan_tiles
from trainer.infer.slide_view import open_view
from trainer.runtime.start import my_threads

ROOT = Path(__file__).resolve().parents[1]
RUN = ROOT / "runs" / "demo"
SOURCE = ROOT / "data" / "demo" / "training" / "tumor" / "tumor_001.tif"
WORK = ROOT / "runs" / "bench-predict"
OUT = ROOT / "results" / "predict" / folder_of(processor())
TILE = 1024
TILE_MPX = TILE**2 / 1e6
SIDE, LARGE_SIDE, LARGE_TISSUE = 10_000, 100_000, 0.02
TILES = 24
"""Tiles that the network alone goes through: of different places, so that none is in a cache."""
ROUNDS = 3
PRECISIONS = ("fp32", "int8")


def export(precision: str) -> Path:
    return RUN / "export" / f"openvino-{precision}"


def slide(side: int, tissue: float) -> Path:
    """Of so many pixels, made once."""
    path = WORK / f"{side}px-{tissue}.tif"
    if not path.exists():
        WORK.mkdir(parents=True, exist_ok=True)
        write_big_slide(path, SOURCE, side, side, tissue)
    return path


def run(*command: object) -> tuple[float, float, str]:
    """Seconds, GB of the largest resident set, and what it printed."""
    print("$", *command[1:], flush=True)
    start = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    printed = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"exit status {os.waitstatus_to_exitcode(status)}:\n{printed}")
    print(f"  {seconds:.1f} s, {usage.ru_maxrss / 1e6:.2f} GB", flush=True)
    return seconds, usage.ru_maxrss / 1e6, printed


def predict(network: Path, path: Path) -> dict[str, float]:
    """A whole `widefield predict`: start-up, reading, the network, the map, pyramids, regions, overview."""
    out = WORK / "out"
    shutil.rmtree(out, ignore_errors=True)
    command = ["-m", "trainer", "predict", network, path, "-o", out, "--tile", TILE]
    seconds, gigabytes, _ = run(sys.executable, *command)
    view = open_view(path, Recipe.from_json(read_about(network)["recipe"]))
    plan = plan_tiles(view.size, TILE)
    tiles = len(view.tiles_with_tissue(plan))
    bytes_written = sum(f.stat().st_size for f in (out / path.stem).rglob("*") if f.is_file())
    return {"seconds": seconds, "peak_gb": gigabytes, "tiles": tiles, "written_gb": bytes_written / 1e9}


def alone(network: Path, tiles: Path) -> float:
    """Mpx/s of the network on tiles that are in memory: the median of them."""
    command = ["-m", "trainer.export.measure", RUN, network, tiles, TILE, my_threads().intra_op]
    seconds = json.loads(run(sys.executable, *command)[2].strip().splitlines()[-1])["seconds"]
    return TILE_MPX / float(np.median(seconds))


def throughput() -> dict[str, Any]:
    """Of each precision, in turns."""
    path, tiles = slide(SIDE, 1.0), WORK / "tiles.npy"
    view = open_view(path, Recipe.from_json(read_about(export("fp32"))["recipe"]))
    places = np.random.default_rng(0).integers(0, np.array(view.size) - TILE, (TILES, 2)).tolist()
    np.save(tiles, np.stack([view.read(x, y, TILE) for x, y in places]))
    rows = []
    for precision in PRECISIONS:
        rounds = []
        for _ in range(ROUNDS):
            network = export(precision)
            before, whole, after = alone(network, tiles), predict(network, path), alone(network, tiles)
            rounds.append({"alone": (before + after) / 2, "end_to_end": whole["tiles"] * TILE_MPX / whole["seconds"]})
            rounds[-1] |= {"map": np.prod(view.size) / 1e6 / whole["seconds"], "peak_gb": whole["peak_gb"]}
        rows.append({"precision": precision, "rounds": rounds})
    return {"rows": rows}


def memory() -> dict[str, Any]:
    """One very large slide."""
    return {"whole": predict(export("fp32"), slide(LARGE_SIDE, LARGE_TISSUE))}


def median(rounds: Sequence[dict[str, float]], name: str) -> float:
    return float(np.median([r[name] for r in rounds]))


def render(result: dict[str, Any]) -> str:
    """The folder's README.md."""
    parts = {"throughput": render_throughput, "memory": render_memory}
    texts = [text(result[name]) for name, text in parts.items() if name in result]
    title = "# Predicting whole slides\n\n`make bench-predict`; DeepLabV3+ on MobileNetV2 by OpenVINO, tiles of"
    return "\n\n".join([f"{title} {TILE} px.", *texts]) + "\n"


def render_throughput(part: dict[str, Any]) -> str:
    """A row for each precision."""
    rows = []
    for row in part["rows"]:
        rounds = row["rounds"]
        ratios = sorted(r["end_to_end"] / r["alone"] for r in rounds)
        cells = [row["precision"], *(f"{median(rounds, name):.2f}" for name in ("alone", "end_to_end", "map"))]
        cells += [f"**{float(np.median(ratios)):.2f}** ({', '.join(f'{r:.2f}' for r in ratios)})"]
        rows.append(f"| {' | '.join(cells)} | {median(rounds, 'peak_gb'):.2f} |")
    return f"""## Throughput

Measured on {part["machine"]}, {part["date"]}, commit {part["commit"]}. A slide of {SIDE:,} x {SIDE:,} px, all tissue.
*End to end* is `widefield predict` from its start to the last file; it counts the pixels that go through the network,
some of which neighbouring tiles share: of the map it is the column beside it. *Alone* the network has its tiles in
memory. Medians of {ROUNDS} rounds; in each the network alone is measured before and after.

| export | alone, Mpx/s | end to end, Mpx/s | of the map, Mpx/s | end to end / alone (rounds) | peak, GB |
| --- | ---: | ---: | ---: | --- | ---: |
{chr(10).join(rows)}

The bar is 0.9, for float32."""


def render_memory(part: dict[str, Any]) -> str:
    """The peak on the large slide, beside its bar."""
    whole = part["whole"]
    return f"""## Memory

Measured on {part["machine"]}, {part["date"]}, commit {part["commit"]}. A slide of {LARGE_SIDE:,} x {LARGE_SIDE:,} px,
{LARGE_TISSUE:.0%} of it tissue ({whole["tiles"]} tiles), float32: a peak of **{whole["peak_gb"]:.2f} GB**,
{whole["written_gb"]:.2f} GB of files. The bar is 3 GB."""


def main() -> None:
    if not (RUN / "report.json").exists():
        sys.exit(f"{RUN} is not there: run make demo first")
    for precision in PRECISIONS:
        run(sys.executable, "-m", "trainer", "export", RUN, "--precision", precision)
    OUT.mkdir(parents=True, exist_ok=True)
    file = OUT / "bench.json"
    result = json.loads(file.read_text()) if file.exists() else {}
    about = {"commit": commit(), "date": time.strftime("%Y-%m-%d"), "machine": machine()}
    parts = {"throughput": throughput, "memory": memory}
    for name in sys.argv[1:] or parts:
        result[name] = parts[name]() | about
        replace_content(file, json.dumps(result, indent=1) + "\n")
        replace_content(OUT / "README.md", render(result))
    print(render(result))


if __name__ == "__main__":
    main()
