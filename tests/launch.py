"""Run one test module's `main` on real MPI ranks, and the command line as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MPIRUN = Path(sys.executable).parent / "mpirun"


def mpirun(
    num_ranks: int, *arguments: str | Path, timeout_s: int = 240, binding: str | None = None, **environ: str
) -> subprocess.CompletedProcess:
    """`mpirun -np N python ...` with a time limit; the caller looks at the exit status and the output."""
    return _run(_mpirun_command(num_ranks, *arguments, bind_to=binding), timeout_s, environ)


def start_mpirun(num_ranks: int, *arguments: str | Path) -> subprocess.Popen:
    """The same, to be watched, warned and killed; both streams come together."""
    return _start(_mpirun_command(num_ranks, *arguments))


def start_widefield(*arguments: str | Path) -> subprocess.Popen:
    """`python -m trainer ...` in one process, likewise."""
    return _start([sys.executable, "-m", "trainer", *map(str, arguments)])


def _start(command: list[str]) -> subprocess.Popen:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, env=_environment({}), cwd=ROOT, text=True, **streams)


def _mpirun_command(num_ranks: int, *arguments: str | Path, bind_to: str | None = None) -> list[str]:
    launcher = str(MPIRUN) if MPIRUN.exists() else "mpirun"
    # more ranks than cores only where they do not compute; else each has a core, as runs insist on
    binding = ["--bind-to", "core"] if num_ranks <= len(os.sched_getaffinity(0)) else ["--oversubscribe"]
    binding = ["--bind-to", bind_to] if bind_to else binding
    return [launcher, *binding, "-np", str(num_ranks), sys.executable, *map(str, arguments)]


def widefield(
    *arguments: str | Path, timeout_s: int = 240, file_limit: int | None = None, **environ: str
) -> subprocess.CompletedProcess:
    """`python -m trainer ...` in one process; `file_limit`: bytes that a file may have, as on a disk that is full."""
    limit = ["prlimit", f"--fsize={file_limit}"] if file_limit else []
    return _run([*limit, sys.executable, "-m", "trainer", *map(str, arguments)], timeout_s, environ)


def run_python(*arguments: str | Path, timeout_s: int = 240) -> subprocess.CompletedProcess:
    """`python ...` in the project's root."""
    return _run([sys.executable, *map(str, arguments)], timeout_s, {})


def _run(command: list[str], timeout_s: int, environ: dict[str, str]) -> subprocess.CompletedProcess:
    env = _environment(environ)
    return subprocess.run(command, env=env, cwd=ROOT, timeout=timeout_s, capture_output=True, text=True, check=False)


def _environment(more: dict[str, str]) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "TF_CPP_MIN_LOG_LEVEL": "3", **more}


def must_pass(done: subprocess.CompletedProcess) -> str:
    """The output of a run that must have succeeded; all it printed where it did not."""
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    return done.stdout
