"""The index of a CAMELYON-like data set: 1000 slides, four patch sizes, 20 million patches. Memory, time, file size.

Prints one JSON line. Each part runs in a process of its own, so that its peak memory is its own:
  assemble  puts the (synthetic) patches of all slides together, as indexing does at its end, and writes the index
  read      reads it
  train     reads it and makes what training asks of it: the rows of each size and split, and the first epoch's order

    python tools/bench_index.py [FOLDER]
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from trainer.batches.order import EpochOrder
from trainer.config.schema import Config, SamplingConfig
from trainer.patches.build import Outcome, assemble
from trainer.patches.grid import grid_points
from trainer.patches.index import SlideInfo, read_index, write_index
from trainer.patches.one_slide import SlidePatches, write_part
from trainer.patches.sample import is_positive

SLIDES, SLIDE_PX = 1000, (100_000, 84_000)
SIZES, TISSUE = (256, 704, 1024, 2048), 0.137


def make_parts(folder: Path) -> None:
    """What indexing leaves for each slide, synthetically: positions of a real grid, thinned to a share of tissue."""
    rng = np.random.default_rng(0)
    lines = ["slide,annotation,patient,centre,split"]
    for number in range(SLIDES):
        (folder / f"s{number:04}.tif").touch()
        lines.append(f"s{number:04}.tif,,p{number // 5},c{number % 5},{'val' if number % 20 < 5 else 'train'}")
        columns = []
        for size in SIZES:
            points = grid_points(SLIDE_PX, size, size)
            points = points[rng.random(len(points)) < TISSUE].astype(np.int32)
            tumour = np.where(rng.random(len(points)) < 0.03, rng.random(len(points)), 0).astype(np.float32)
            tissue = np.round(rng.random(len(points)) * 0.7 + 0.3, 3).astype(np.float32)
            shares = np.stack([1 - tumour, tumour], axis=1)
            columns.append((np.full(len(points), size, np.int32), points, tissue, shares))
        sizes, points, tissue, shares = (np.concatenate(c) for c in zip(*columns, strict=True))
        info = SlideInfo(SLIDE_PX, 1.0, 0.25)
        write_part(SlidePatches(sizes, points, tissue, shares, info, None), folder / f"{number:04}.npz")
    (folder / "slides.csv").write_text("\n".join(lines) + "\n")


def config_of(folder: Path) -> Config:
    stages = [{"patch_size": size, "local_batch_size": 1, "steps": 1} for size in SIZES]
    classes = [{"name": "normal"}, {"name": "tumour", "groups": ["_0"]}]
    data = {"path": folder / "slides.csv", "classes": classes}
    return Config.model_validate({"name": "bench", "output": folder, "data": data, "curriculum": stages})


def part(name: str, folder: Path) -> dict[str, float]:
    """One of the parts, with its time and this process's peak memory."""
    path, started = folder / "index.parquet", time.perf_counter()
    if name == "make":
        make_parts(folder)
        return {}
    if name == "assemble":
        index = assemble(config_of(folder), [Outcome(n, folder / f"{n:04}.npz") for n in range(SLIDES)])
        write_index(index, path)
    else:
        index = read_index(path)
    if name == "train":
        for size in SIZES:
            rows = index.select(size, "train")
            order = EpochOrder(rows, is_positive(index.label_fractions[rows], 0.01), SamplingConfig(), (1, size))
            order.at(np.arange(4))
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    seconds = time.perf_counter() - started
    return {"rows": len(index), "file_mb": path.stat().st_size / 1e6, "seconds": seconds, "peak_memory_gb": peak_gb}


def main() -> None:
    if len(sys.argv) > 2:
        print(json.dumps(part(sys.argv[2], Path(sys.argv[1]))))
        return
    scratch = Path(sys.argv[1] if len(sys.argv) > 1 else "data/bench-data")
    scratch.mkdir(parents=True, exist_ok=True)
    done = {}
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        for name in ("make", "assemble", "read", "train"):
            command = [sys.executable, __file__, folder, name]
            out = subprocess.run(command, text=True, stdout=subprocess.PIPE, check=True)
            done[name] = json.loads(out.stdout)
    print(json.dumps({name: done[name] for name in ("assemble", "read", "train")}))


if __name__ == "__main__":
    main()
