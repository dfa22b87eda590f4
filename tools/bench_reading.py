"""How fast regions of a slide are read, beside OpenSlide on the same file: `bench_reading.py SLIDE` prints JSON.

Both read the same positions, in rounds by turns, so that a busy machine slows both. Positions are random over level 0,
not aligned with tiles, and new in each round, so that neither side's cache of decoded tiles matters; the file is read
once before, so that the disk does not matter either.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openslide

from trainer.slides.slide import PyramidSlide, Slide, open_slide

CASES = ((256, 1, 320), (256, 2, 320), (1024, 1, 16), (2048, 1, 6))
"""Side of the regions in px, threads, regions per round."""
ROUNDS = 9
_CEILING_PX = CASES[0][0]
_slide_of_process: Slide
Read = Callable[[int, int, int], object]


def measure(path: Path, rounds: int = ROUNDS) -> dict[str, Any]:
    """Megapixels/s of the product, of the product's OpenSlide reader, and of OpenSlide as one would use it by hand.

    Returns:
      {"slide": ..., "cases": [{"size", "threads", "<reader>": {"median", "quartiles"}, "ratio_<reader>": ...}]}, with
      ratios of the product to the other reader; "two_processes_over_one_thread" is the ceiling of
      "two_threads_over_one" on this machine at this time.
    """
    pool = ProcessPoolExecutor(2, initializer=_open_in_process, initargs=(path,))
    list(pool.map(_read_in_process, [[], []]))  # starts the processes before there are threads to fork
    by_hand = openslide.OpenSlide(path)
    slide, through_openslide = open_slide(path), PyramidSlide(path)
    readers: dict[str, Read] = {
        "ours": lambda x, y, size: slide.read(x, y, size),
        "ours_through_openslide": lambda x, y, size: through_openslide.read(x, y, size),
        "openslide": lambda x, y, size: np.asarray(by_hand.read_region((x, y), 0, (size, size)).convert("RGB")),
    }
    _warm_page_cache(path)
    rng = np.random.default_rng(0)
    speeds: list[dict[str, list[float]]] = [{name: [] for name in readers} for _ in CASES]
    processes: list[float] = []
    for number in range(rounds + 1):
        for (size, threads, count), case in zip(CASES, speeds, strict=True):
            positions = rng.integers(0, np.array(slide.size) - size, (count, 2)).tolist()
            for name, read in readers.items():
                speed = _speed(read, positions, size, threads)
                if number:  # the first round warms up
                    case[name].append(speed)
        positions = rng.integers(0, np.array(slide.size) - _CEILING_PX, (CASES[0][2], 2)).tolist()
        processes.append(_speed_of_processes(pool, positions))
    pool.shutdown()
    return {
        "slide": path.name,
        "size": slide.size,
        "reader": type(slide).__name__,
        "rounds": rounds,
        "unit": "Mpx/s",
        "cases": [
            {"size": size, "threads": threads, **_summary(case)}
            for (size, threads, _), case in zip(CASES, speeds, strict=True)
        ],
        "two_threads_over_one": _ratio(speeds[1]["ours"], speeds[0]["ours"]),
        "two_processes_over_one_thread": _ratio(processes[1:], speeds[0]["ours"]),
    }


def _speed_of_processes(pool: ProcessPoolExecutor, positions: list[list[int]]) -> float:
    """Two processes that share nothing: what this machine's two cores can give at this moment."""
    start = time.perf_counter()
    list(pool.map(_read_in_process, [positions[i::2] for i in range(2)]))
    return len(positions) * _CEILING_PX**2 / 1e6 / (time.perf_counter() - start)


def _open_in_process(path: Path) -> None:
    global _slide_of_process
    _slide_of_process = open_slide(path)


def _read_in_process(positions: list[list[int]]) -> None:
    for x, y in positions:
        _slide_of_process.read(x, y, _CEILING_PX)


def _speed(read: Read, positions: list[list[int]], size: int, threads: int) -> float:
    def read_all(share: list[list[int]]) -> None:
        for x, y in share:
            read(x, y, size)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read_all, [[]] * threads))  # starts the threads
        start = time.perf_counter()
        list(pool.map(read_all, [positions[i::threads] for i in range(threads)]))
        return len(positions) * size**2 / 1e6 / (time.perf_counter() - start)


def _summary(speeds: dict[str, list[float]]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for name, values in speeds.items():
        low, median, high = statistics.quantiles(values, n=4)
        summary[name] = {"median": round(median, 1), "quartiles": [round(low, 1), round(high, 1)]}
    for name in list(speeds)[1:]:
        summary[f"ratio_{name}"] = _ratio(speeds["ours"], speeds[name])
    return summary


def _ratio(ours: list[float], others: list[float]) -> float:
    """Median over rounds, each of which had the same load on the machine."""
    return round(statistics.median(a / b for a, b in zip(ours, others, strict=True)), 2)


def _warm_page_cache(path: Path) -> None:
    with path.open("rb") as file:
        while file.read(64 << 20):
            pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.slide, arguments.rounds)))


if __name__ == "__main__":
    main()
