"""Plain timed lines for long work: how far, how fast, how long still. The same on a terminal and in a job's log."""

from __future__ import annotations

import time
from datetime import timedelta

_EVERY_S = 5.0


class ProgressLines:
    """Called with (done, total); prints at most one line every 5 s, and one at the end.

    Args:
      unit: what is counted, in the plural.
      active: False silences it (ranks other than 0).
    """

    def __init__(self, unit: str, *, active: bool = True) -> None:
        self._unit, self._active = unit, active
        self._started = self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if not self._active or (now - self._last < _EVERY_S and done < total):
            return
        self._last = now
        rate = done / max(now - self._started, 1e-3)
        left = timedelta(seconds=round((total - done) / rate)) if done else "?"
        print(f"{done}/{total} {self._unit}  {rate:.2f} {self._unit}/s  ETA {left}", flush=True)
