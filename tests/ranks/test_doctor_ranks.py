"""What the doctor finds where ranks really run."""

from __future__ import annotations

import json

from launch import mpirun


def test_ranks_with_a_core_each_are_well_and_their_bandwidth_is_told() -> None:
    done = mpirun(2, "-m", "trainer", "doctor", "--json")
    report = json.loads(done.stdout)
    topics = {f["topic"]: f for f in report["findings"]}
    assert done.returncode == 0 and report["ok"], done.stdout + done.stderr
    assert topics["all-reduce"]["text"].startswith("2 ranks: ")
    assert topics["placement"]["text"].startswith("2 rank(s) on 1 node(s)")


def test_ranks_on_shared_cores_are_an_error() -> None:
    done = mpirun(2, "-m", "trainer", "doctor", binding="none")
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("error")]
    assert "ranks 0-1 share cores" in line
