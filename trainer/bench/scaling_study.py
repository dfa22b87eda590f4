"""Scaling studies as people run them: ranks are launched, measure, and leave a run for each point, failed ones too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from trainer import __version__
from trainer.bench.machine import commit, machine
from trainer.config import Config, dump_config
from trainer.errors import StudyError
from trainer.launch.failure import reason
from trainer.launch.launcher import layout_here
from trainer.patches.index import digest
from trainer.scaling.inputs import write_inputs
from trainer.scaling.records import Point, RunRecord
from trainer.scaling.study import write_run
from trainer.scaling.wish import Wish, points_of


@dataclass(frozen=True)
class Assignment:
    """What is measured, and where it is written."""

    config: Config
    wish: Wish
    study: Path
    network: str
    """In words; empty: as the number of hosts suggests."""
    command: str
    """What a reader types to measure it again."""

    def record(
        self, point: Point, hosts: Sequence[str], cores: int, revision: str, payload: int, on_wire: float
    ) -> RunRecord:
        """Of a point that was measured, with so many cores per rank."""
        effort = self.wish.effort
        return RunRecord(
            point=point,
            status="done",
            machine=machine(),
            hosts=tuple(hosts),
            cores_per_rank=cores,
            network=self.network or _network(len(hosts)),
            date=time.strftime("%Y-%m-%dT%H:%M:%S"),
            commit=revision,
            widefield=__version__,
            command=self.command,
            warmup_steps=effort.warmup_steps,
            repeats=effort.repeats,
            steps_per_repeat=effort.steps_per_repeat,
            allreduce_bytes_per_step=payload,
            wire_bytes_per_step=on_wire,
            config_hash=settings_hash(self.config),
        )


def settings_hash(config: Config) -> str:
    """Of what all runs of a study share: not where it is written, nor what differs from point to point."""
    shared = config.model_dump(mode="json", exclude={"name", "output", "curriculum"})
    shared["training"].pop("compression")
    return digest(shared)[:16]


def _network(num_hosts: int) -> str:
    return "shared memory of one host" if num_hosts == 1 else f"network of {num_hosts} hosts"


def measure_here(task: Assignment) -> None:
    """On every rank of a launch: measure its points; rank 0 writes a run for each."""
    from trainer.runtime import on_root, start_comm
    from trainer.runtime.start import my_threads

    threads, revision = my_threads().intra_op, commit()  # before MPI starts: a process should not fork after
    from trainer.bench.scaling import measure_points
    from trainer.bench.scaling_inputs import measure_inputs
    from trainer.runtime.affinity import problems_of
    from trainer.train.placement import check_placement
    from trainer.train.session import configure_tensorflow
    from trainer.train.step import wire_bytes

    comm = start_comm(task.config.runtime.backend, task.config.runtime.horovod)
    configure_tensorflow(task.config, threads, comm.local_rank)
    placements = check_placement(task.config.runtime, comm)
    hosts = sorted({p.host for p in placements})
    points = points_of(task.config, task.wish, comm.world_size, len(hosts))
    problems, settings = problems_of(placements), dump_config(task.config)
    affinity = json.dumps({"problems": problems, "ranks": [p.as_json() for p in placements]}, indent=1) + "\n"
    say: Callable[[str], None] = _say if comm.rank == 0 else lambda text: None
    if task.wish.model_inputs and comm.world_size > 1:
        inputs = measure_inputs(task.config, comm, task.wish, points, say)
        on_root(comm, partial(write_inputs, task.study, inputs))
    for measured in measure_points(task.config, comm, points, task.wish.effort, say):
        point, payload = measured.point, measured.allreduce_bytes
        cores = min(len(p.cores) for p in placements)
        record = task.record(point, hosts, cores, revision, payload, wire_bytes(payload, comm.world_size))
        on_root(comm, partial(write_run, task.study, record, measured.steps, settings, affinity))
        say(f"  {task.study / point.name}")


def _say(text: str) -> None:
    print(text, flush=True)


def run_study(
    task: Assignment, ranks: Sequence[int | None], arguments: Sequence[str], cores_per_rank: int | None = None
) -> None:
    """Launch the ranks of every number in turn; a launch that fails leaves failed runs, and the others go on.

    Args:
      ranks: numbers of ranks; None: the plan's for this machine or job.
      arguments: of `widefield scaling point`, which every rank then runs.
      cores_per_rank: None: as many as the largest number of ranks leaves each.
    Raises:
      StudyError: at the end, when a launch has failed.
    """
    failed = []
    # a rank has as many cores in the smallest world as in the largest, or their speeds could not be compared
    cores = cores_per_rank or min(layout_here(number).ranks[0].num_cores for number in ranks)
    for number in ranks:
        layout = layout_here(number, cores)
        points = points_of(task.config, task.wish, layout.world_size, layout.num_nodes)
        _say(f"{layout.world_size} rank(s) on {layout.num_nodes} node(s): {len(points)} points")
        before = {p: _stamp(task.study / p.name / "run.json") for p in points}
        status, last_words = _launch(layout.world_size, cores, arguments)
        missing = [p for p in points if _stamp(task.study / p.name / "run.json") == before[p]]
        if status or missing:
            failed.append(f"{layout.world_size} ranks (status {status})")
            _leave_failed(task, missing, cores, f"status {status}: {last_words}")
    if failed:
        raise StudyError(
            f"measuring failed with {', '.join(failed)}",
            where=str(task.study),
            fix="the reason is above and in the failed runs' run.json; what was measured before is kept",
        )


def _launch(world_size: int, cores: int, arguments: Sequence[str]) -> tuple[int, str]:
    """Exit status of a launch whose output goes on, and what it said of its failure."""
    line = [sys.executable, "-m", "trainer", "launch", "--ranks", str(world_size), "--cores-per-rank", str(cores)]
    line += ["scaling", "point", *arguments]
    last: deque[str] = deque(maxlen=100)
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        for text in process.stdout:
            print(text, end="", flush=True)
            last.append(text)
    return process.returncode, reason("".join(last))


def _stamp(path: Path) -> int | None:
    """What changes when the file is written anew; None where there is none."""
    return path.stat().st_mtime_ns if path.exists() else None


def _leave_failed(task: Assignment, points: Sequence[Point], cores: int, why: str) -> None:
    """A failed run for each point; one that was measured before stays."""
    revision = commit()
    for point in points:
        if not (task.study / point.name / "steps.csv").exists():
            record = task.record(point, (os.uname().nodename,), cores, revision, 0, 0.0)
            failed = replace(record, status="failed", error=why)
            write_run(task.study, failed, None, dump_config(task.config), "{}\n")
