"""All tissue patches of a slide as JPEG with 2 processes, beside a plain loop of OpenSlide and Pillow PNG files.

`python tools/bench_extract.py SLIDE [--size 256]`. The unit of work is a slide, so the data set is the slide under two
names. The loop is one process, `read_region` and `Image.save(..., 'PNG')`, over the same positions; it is slow, so it
runs over some of them, consecutive ones from the middle of the slide. In turns, several rounds. Extraction includes
starting the processes, reading labels, and writing to disk; finding tissue (`widefield index`) is in neither.
Bar: 5 x the patches per second. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import openslide

from trainer.config.schema import Config
from trainer.patches.build import build_index
from trainer.patches.index import PatchIndex
from trainer.runtime.pool import local_pool
from trainer.stores.extract import extract, jobs_of


def config_for(folder: Path, slide: Path, size: int) -> Config:
    shutil.copy(slide, folder / f"a{slide.suffix}")
    (folder / f"b{slide.suffix}").hardlink_to(folder / f"a{slide.suffix}")
    rows = [f"{name}{slide.suffix},,train" for name in ("a", "b")]
    (folder / "slides.csv").write_text("\n".join(["slide,annotation,split", *rows]) + "\n")
    return Config.model_validate({
        "name": "bench", "output": folder / "run", "split": {"val_fraction": 0.0},
        "data": {"path": folder / "slides.csv", "classes": [{"name": "normal"}, {"name": "tumour", "groups": ["_0"]}]},
        "stores": {"kind": "hdf5", "path": folder / "store"},
        "curriculum": [{"patch_size": size, "local_batch_size": 1, "steps": 1}],
    })  # fmt: skip


def extracted_per_s(index: PatchIndex, config: Config, processes: int) -> float:
    started = time.perf_counter()
    with local_pool(processes) as run:
        outcomes = extract(jobs_of(index, config, range(len(index.slides))), run, lambda outcome: None)
    seconds = time.perf_counter() - started
    assert not any(o.error for o in outcomes)
    assert config.stores.path is not None
    shutil.rmtree(config.stores.path)
    return len(index) / seconds


def plain_per_s(path: Path, corners: list[tuple[int, int]], size: int, folder: Path) -> float:
    folder.mkdir()
    started = time.perf_counter()
    slide = openslide.OpenSlide(str(path))
    for x, y in corners:
        slide.read_region((x, y), 0, (size, size)).convert("RGB").save(folder / f"{x}_{y}.png")
    seconds = time.perf_counter() - started
    shutil.rmtree(folder)
    return len(corners) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plain-patches", type=int, default=500)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = config_for(folder, args.slide, args.size)
        index = build_index(config, folder / "index.parquet")
        rows, some = index.rows_of(0, args.size), args.plain_patches
        middle = max(rows.start, (rows.start + rows.stop - some) // 2)
        corners = [(int(index.x[r]), int(index.y[r])) for r in range(middle, min(middle + some, rows.stop))]
        ours, plain = [], []
        for _ in range(args.rounds):
            ours.append(extracted_per_s(index, config, args.processes))
            plain.append(plain_per_s(args.slide, corners, args.size, folder / "png"))
    print(json.dumps({
        "bench": "extract", "slide": args.slide.name, "slide_px": index.infos[0].size, "patches": len(index),
        "patch_px": args.size, "processes": args.processes, "rounds": args.rounds,
        "extract_patches_per_s": [round(v, 1) for v in ours], "plain_patches": len(corners),
        "plain_patches_per_s": [round(v, 1) for v in plain],
        "ratio": round(statistics.median(a / b for a, b in zip(ours, plain, strict=True)), 2),
        "peak_worker_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
