from __future__ import annotations

from pathlib import Path

import pytest
from launch import mpirun, must_pass

MAIN = Path(__file__).with_name("collectives_main.py")


@pytest.mark.parametrize(
    ("backend", "tensors", "num_ranks"),
    [("horovod", "tensors", 2), ("mpi", "tensors", 2), ("mpi", "objects", 3)],
)
def test_collectives_agree_on_real_ranks(backend: str, tensors: str, num_ranks: int) -> None:
    out = must_pass(mpirun(num_ranks, MAIN, backend, tensors, str(num_ranks), timeout_s=120))
    assert sorted(out.split("\n"))[-num_ranks:] == [f"rank {r} ok" for r in range(num_ranks)]
