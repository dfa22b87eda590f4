"""Where a stage's time goes, and how much memory it took at most."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
WARM_UP_STEPS = 2
"""Steps at the start of a stage that trace and compile the network; they are timed apart."""


class StageClock:
    """Seconds of each step of one stage: waiting for data, and in all."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self._waits: list[float] = []
        self._steps: list[float] = []

    @contextmanager
    def step(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._steps.append(time.perf_counter() - start)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._waits.append(time.perf_counter() - start)

    def totals(self) -> np.ndarray:
        """[3] float64: data-wait seconds, step seconds, steps, after the warm-up (all steps of a very short stage)."""
        skip = WARM_UP_STEPS if len(self._steps) > WARM_UP_STEPS else 0
        return np.array([sum(self._waits[skip:]), sum(self._steps[skip:]), len(self._steps) - skip], np.float64)

    def median_step_s(self) -> float:
        return float(np.median(self._steps[WARM_UP_STEPS:] or self._steps))

    def wait_fraction(self) -> float:
        """Share of the step time so far that this rank waited for data."""
        wait_s, step_s, _ = self.totals()
        return float(wait_s / step_s)

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self.started


def reset_peak_memory() -> None:
    """Start a new peak, where the kernel allows it; else the peak of the process so far stays."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return


def peak_memory_bytes() -> int:
    """Largest resident memory since the last reset (VmHWM; elsewhere than Linux the process's maximum)."""
    if _STATUS.exists():
        line = next((x for x in _STATUS.read_text().splitlines() if x.startswith("VmHWM")), None)
        if line:
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
