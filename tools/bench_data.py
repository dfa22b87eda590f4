"""`make bench-data`: reading, stores, extraction and indexing, each beside what one would use instead, in one run.

Slides are made from the real pixels of data/real (tools/big_slide.py) in data/bench-data: 60,000 x 40,000 px for
reading, 16,384 x 16,384 for extraction, 100,000 x 100,000 for indexing (about 4 GB in all). Writes results/bench-data/.
`python tools/bench_data.py reading` (store, extract, slide_index, index) measures one of them anew, the others stay.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from bench import ROOT, run

from trainer.bench.machine import commit, machine

REAL, DATA, OUT = "data/real/cmu_small_region.svs", ROOT / "data" / "bench-data", ROOT / "results" / "bench-data"


def slide(width: int, height: int, tissue: float) -> str:
    """A big slide, made where it is not there yet."""
    path = DATA / f"{width}x{height}-{tissue:g}.tif"
    if not path.exists():
        DATA.mkdir(parents=True, exist_ok=True)
        size = ("--width", str(width), "--height", str(height), "--tissue", f"{tissue:g}")
        run(sys.executable, "tools/big_slide.py", str(path), *size, "--from", REAL)
    return str(path)


def measured(script: str, *arguments: str) -> Any:
    """What a bench script prints as its last line."""
    return json.loads(run(sys.executable, f"tools/{script}.py", *arguments).strip().splitlines()[-1])


PARTS: dict[str, Callable[[], Any]] = {
    "reading": lambda: measured("bench_reading", slide(60_000, 40_000, 1.0)),
    "store": lambda: measured("bench_store", REAL),
    "extract": lambda: measured("bench_extract", slide(16_384, 16_384, 0.6)),
    "slide_index": lambda: measured("bench_slide_index", slide(100_000, 100_000, 0.4)),
    "index": lambda: measured("bench_index"),
}


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    file = OUT / "bench.json"
    result = json.loads(file.read_text()) if file.exists() else {}
    revision, date = commit(), time.strftime("%Y-%m-%d")
    for name in sys.argv[1:] or PARTS:
        result[name] = {**PARTS[name](), "commit": revision, "date": date, "machine": machine()}
        file.write_text(json.dumps(result, indent=1) + "\n")
    (OUT / "README.md").write_text(render(result))
    print(render(result))


def render(result: dict[str, Any]) -> str:
    """The table of what was promised and what was measured."""
    lines = [
        "# Bench of the data path",
        "",
        f"Measured by `make bench-data` on {result['reading']['machine']}.",
        "Both sides of a ratio were measured in turns in one run on the same file; ratios are medians over rounds.",
        "`bench.json` holds all figures with their spread, commit and date.",
        "",
        "| what | measured | bar |",
        "| --- | ---: | ---: |",
        *(f"| {what} | {value} | {bar} |" for what, value, bar in rows(result)),
    ]
    return "\n".join([*lines, ""])


def rows(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, measured, bar) of each line of the table."""
    reading, store, extract = result["reading"], result["store"], result["extract"]
    one, _, large, largest = reading["cases"]
    giant, index = result["slide_index"], result["index"]
    return [
        *(
            (f"{c['size']} px regions, one thread / OpenSlide `read_region`", _times(c, "openslide"), "3")
            for c in (large, largest)
        ),
        ("random 256 px regions, one thread / OpenSlide", _times(one, "openslide"), "1.5"),
        (
            "random 256 px regions, 2 threads / one (in brackets: 2 separate processes / one, the machine's ceiling)",
            f"{reading['two_threads_over_one']:.2f} ({reading['two_processes_over_one_thread']:.2f})",
            "1.8",
        ),
        (
            "random 224 px patch, image + label, from the HDF5 store, one thread",
            f"{store['one_thread_ms_per_patch']['median']:.2f} ms",
            "0.5 ms",
        ),
        (
            f"the same in {store['threads']} threads / tf.data over TFRecords of the same bytes",
            f"{store['ratio_to_tf_data']['median']:.2f}",
            "1.0",
        ),
        (
            f"extraction of {extract['patches']} patches of {extract['patch_px']} px, {extract['processes']} "
            "processes / loop of `read_region` + Pillow PNG",
            f"{extract['ratio']:.2f} (worker: {extract['peak_worker_mib']} MiB)",
            "5",
        ),
        (
            f"tissue mask + index of {giant['width']} x {giant['height']} px, four sizes, "
            f"{sum(giant['patches'].values())} patches",
            f"{giant['seconds']:.1f} s, {giant['peak_memory_gb']:.2f} GB",
            "seconds, 1 GB",
        ),
        *(
            (
                f"index of 1000 slides, four sizes, {index[part]['rows'] / 1e6:.1f} M patches: {what}",
                f"{index[part]['seconds']:.1f} s, {index[part]['peak_memory_gb']:.2f} GB",
                "2 GB",
            )
            for part, what in (
                ("assemble", f"put together and write {index['assemble']['file_mb']:.0f} MB"),
                ("read", "read"),
                ("train", "read and order an epoch of each size"),
            )
        ),
    ]


def _times(case: dict[str, Any], other: str) -> str:
    ours, theirs = case["ours"]["median"], case[other]["median"]
    return f"{case[f'ratio_{other}']:.2f} ({ours:.0f} / {theirs:.0f} Mpx/s)"


if __name__ == "__main__":
    main()
