"""A request to stop, from Slurm or a person: remembered when it comes, acted upon between two steps.

What reaches a rank (Open MPI 5.0.11, seen with `mpirun -np 2` on 21 November 2026):

- mpirun passes SIGUSR1 on at once and then waits for its ranks, however long they take.
- On SIGTERM or Ctrl-C mpirun sends its ranks SIGTERM after 0.25 s and SIGKILL 0.25 s later (constants in PRRTE's
  odls_base_default_fns.c): no time for a checkpoint. So a job script turns SIGTERM into SIGUSR1 for mpirun.
- The first rank that ends with a status other than 0 ends all: the others get SIGTERM and SIGKILL in the same 0.5 s.
  So all wait for rank 0's checkpoint before one leaves. mpirun then returns that first status.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any, Self

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Listens for SIGTERM and SIGUSR1 (Slurm's warning, `sbatch --signal`) until it is closed. In the main thread only.

    A second SIGTERM does what it did before, which is to end the process. Ctrl-C stays as it is.
    """

    def __init__(self) -> None:
        self.requested = False
        self._handlers_before: dict[signal.Signals, Any] = {s: signal.signal(s, self._note) for s in _SIGNALS}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if number == signal.SIGTERM:
            self._restore(signal.SIGTERM)

    def _restore(self, number: signal.Signals) -> None:
        before = self._handlers_before[number]
        signal.signal(number, signal.SIG_DFL if before is None else before)  # None: not one of Python's

    def close(self) -> None:
        for number in _SIGNALS:
            self._restore(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
