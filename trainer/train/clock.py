"""Where a stage's time goes, and how much memory it took at most."""

from __future__ import annotations

import resource
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
WARM_UP_STEPS = 2
"""First steps at each patch size of a stage, which trace and compile the network; they are timed apart."""
PHASES = ("wait", "compute", "allreduce", "save")
"""Parts of a step: waiting for data; forward, backward and optimiser; all-reduce that no computing hid; copying the
state for a checkpoint. What is left of a step, and what is done between steps, is the loop's own."""


class StageClock:
    """Seconds of one stage's steps by phase, on this rank."""

    def __init__(self, elapsed_s: float = 0.0) -> None:
        """`elapsed_s`: seconds that the stage has taken before this process went on with it."""
        self._started = time.perf_counter() - elapsed_s
        self._seen: Counter[int] = Counter()
        self._now = dict.fromkeys(PHASES, 0.0)
        self._warm_up = _Sums()
        self._sums = _Sums()
        self._last = self._warm_up

    @contextmanager
    def step(self, patch_size: int, megapixels: float) -> Iterator[None]:
        """One step; its phases are timed inside."""
        self._now = dict.fromkeys(PHASES, 0.0)
        start = time.perf_counter()
        yield
        self._seen[patch_size] += 1
        self._last = self._sums if self._seen[patch_size] > WARM_UP_STEPS else self._warm_up
        self._last.add(self._now, time.perf_counter() - start, megapixels)

    @contextmanager
    def between(self) -> Iterator[None]:
        """Logging and checks after a step, which count as part of it."""
        start = time.perf_counter()
        yield
        self._last.seconds += time.perf_counter() - start

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._now[name] += time.perf_counter() - start

    def move(self, source: str, target: str, seconds: float) -> None:
        """Count seconds of one phase of this step as another's."""
        self._now[source] -= seconds
        self._now[target] += seconds

    def totals(self) -> np.ndarray:
        """[len(PHASES) + 3] float64: seconds of each phase, step seconds, megapixels, steps; after the warm-up (of a
        stage that is nothing else, the warm-up)."""
        sums = self._sums if self._sums.steps else self._warm_up
        return np.array([*(sums.phases[p] for p in PHASES), sums.seconds, sums.megapixels, sums.steps], np.float64)

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._started


class _Sums:
    def __init__(self) -> None:
        self.phases = dict.fromkeys(PHASES, 0.0)
        self.seconds, self.megapixels, self.steps = 0.0, 0.0, 0

    def add(self, phases: dict[str, float], seconds: float, megapixels: float) -> None:
        for name, value in phases.items():
            self.phases[name] += value
        self.seconds, self.megapixels, self.steps = self.seconds + seconds, self.megapixels + megapixels, self.steps + 1


def shares_of(totals: np.ndarray) -> dict[str, float | None]:
    """Speed and the shares of a step from `StageClock.totals` of one rank, or their mean over ranks."""
    *phases, seconds, megapixels, steps = (float(t) for t in totals)
    if not steps:
        return dict.fromkeys(_SHARES, None)
    shares = [p / seconds for p in phases]
    return dict(zip(_SHARES, [megapixels / seconds, seconds / steps, *shares, 1 - sum(shares)], strict=True))


_SHARES = (
    "megapixels_per_second",
    "seconds_per_step",
    "data_wait_fraction",
    "compute_fraction",
    "allreduce_fraction",
    "checkpoint_fraction",
    "overhead_fraction",
)


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
