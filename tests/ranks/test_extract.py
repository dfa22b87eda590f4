"""`widefield extract` as processes: killed, side by side, on ranks, in tasks, on a full disk."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from launch import ROOT, mpirun, must_pass, widefield
from PIL import Image
from small_slides import asap, manifest, run_config, square, tissue_slide

from trainer.patches.build import build_index

NUM_SLIDES = 4


def cohort(folder: Path) -> Path:
    """A run over four slides with its index built: about 1,300 patches a slide."""
    rows = []
    for n in range(NUM_SLIDES):
        tissue_slide(folder / f"{n}.png", 1024, 1024 + n)
        asap(folder / f"{n}.xml", ("_0", square(100 * n, 200, 400)))
        rows.append(f"{n}.png,{n}.xml,p{n},,{'val' if n == 3 else 'train'}")
    manifest(folder, *rows)
    settings = run_config(folder, index={"min_tissue_fraction": 0.0}, stores={"kind": "hdf5", "path": folder / "s"})
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings.model_dump(mode="json", exclude_defaults=True)))
    build_index(settings, settings.output / "index.parquet")
    return path


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def undisturbed(config: Path) -> dict[str, bytes]:
    """The HDF5 files of one process that nothing disturbs."""
    out = must_pass(widefield("extract", config, "--workers", "1", into(config.parent)))
    assert f"{NUM_SLIDES} slides, {2 * NUM_SLIDES} files" in out
    found = files(config.parent / "s")
    assert len(found) == 2 * NUM_SLIDES
    return found


def into(folder: Path) -> str:
    return f"stores.path={folder / 's'}"


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def start_extract(config: Path, *arguments: str, limit_kb: int | None = None) -> subprocess.Popen:
    """In a process group of its own, as a shell starts a job."""
    command = [sys.executable, "-m", "trainer", "extract", str(config), "--workers", "2", *arguments]
    if limit_kb:
        command = ["bash", "-c", f'ulimit -f {limit_kb}; exec "$@"', "bash", *command]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, env=env, cwd=ROOT, start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.parametrize(("kind", "num_kills"), [("hdf5", 1), pytest.param("tfrecord", 2, marks=pytest.mark.long)])
def test_killed_at_random_moments_and_run_again_it_writes_the_bytes_of_an_undisturbed_run(
    config: Path, undisturbed: dict, tmp_path: Path, kind: str, num_kills: int
) -> None:
    rng, killed_in_a_file, arguments = random.Random(1), 0, (f"stores.kind={kind}", into(tmp_path))
    if kind == "tfrecord":
        must_pass(widefield("extract", config, "--workers", "1", arguments[0], into(tmp_path / "calm")))
        undisturbed = files(tmp_path / "calm" / "s")
    for _ in range(num_kills):
        started = start_extract(config, *arguments)
        deadline = time.monotonic() + 60
        while not list((tmp_path / "s").rglob(".*.part")) and started.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.15))
        os.killpg(started.pid, signal.SIGKILL)
        started.communicate()
        killed_in_a_file += bool(list((tmp_path / "s").rglob(".*.part")))
    finished = len(list((tmp_path / "s").rglob("*.h5")) + list((tmp_path / "s").rglob("*.npz")))
    out = must_pass(widefield("extract", config, "--workers", "1", *arguments))
    assert f"{finished} files were finished before" in out
    assert killed_in_a_file > 0
    assert files(tmp_path / "s") == undisturbed


def test_two_at_the_same_time_write_what_one_writes(config: Path, tmp_path: Path, undisturbed: dict) -> None:
    both = [start_extract(config, into(tmp_path)) for _ in range(2)]
    assert [p.communicate(timeout=120)[1] for p in both] == ["", ""]
    assert [p.returncode for p in both] == [0, 0]
    assert files(tmp_path / "s") == undisturbed


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_on_mpi_ranks_it_writes_what_one_process_writes(
    config: Path, tmp_path: Path, undisturbed: dict, num_ranks: int
) -> None:
    out = must_pass(mpirun(num_ranks, "-m", "trainer", "extract", config, into(tmp_path)))
    assert out.count(f"{NUM_SLIDES} slides, {2 * NUM_SLIDES} files") == 1
    assert files(tmp_path / "s") == undisturbed


def test_the_tasks_of_a_job_array_write_what_one_process_writes(
    config: Path, tmp_path: Path, undisturbed: dict
) -> None:
    for task in ("1/2", "0/2"):
        must_pass(widefield("extract", config, "--workers", "1", "--task", task, into(tmp_path)))
    assert files(tmp_path / "s") == undisturbed


def test_a_task_without_an_index_says_which_command_makes_one(config: Path, tmp_path: Path) -> None:
    done = widefield("extract", config, "--task", "0/3", f"output={tmp_path / 'elsewhere'}")
    assert done.returncode == 2 and "fix: widefield index CONFIG first" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_store_that_is_not_extracted_says_what_to_set(config: Path) -> None:
    done = widefield("extract", config, "stores.kind=slide")
    assert done.returncode == 2 and "stores.kind=hdf5 stores.path=FOLDER" in done.stderr


def test_slides_that_cannot_be_read_are_listed_and_the_others_are_written(tmp_path: Path) -> None:
    config = cohort(tmp_path)
    for n in (1, 3):  # damaged after indexing, with size and time unchanged: the index does not notice
        path = tmp_path / f"{n}.png"
        state = path.stat()
        path.write_bytes(bytes(state.st_size))
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    done = widefield("extract", config, "--workers", "1")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "2 of 4 slides cannot be extracted" in done.stderr
    assert all(f"{n}.png: cannot be opened" in done.stderr for n in (1, 3))
    assert {p.name[0] for p in (tmp_path / "s").rglob("*.h5")} == {"0", "2"}


def test_a_full_disk_names_the_folder_and_the_room_and_keeps_the_store_valid(
    config: Path, tmp_path: Path, undisturbed: dict
) -> None:
    limit_kb = min(len(v) for k, v in undisturbed.items() if k.startswith("p32")) // 1024 - 20
    started = start_extract(config, into(tmp_path), limit_kb=limit_kb)
    _, errors = started.communicate(timeout=120)
    assert started.returncode == 2 and "Traceback" not in errors, errors
    assert "cannot be written: File too large" in errors
    assert "it needs about" in errors and f"{tmp_path / 's' / 'p32'} has" in errors and "MiB free" in errors
    assert not [
        p for p in (tmp_path / "s").rglob("*.h5") if undisturbed[str(p.relative_to(tmp_path / "s"))] != p.read_bytes()
    ]
    must_pass(widefield("extract", config, "--workers", "1", into(tmp_path)))
    assert files(tmp_path / "s") == undisturbed


@pytest.fixture
def busy(tmp_path: Path) -> tuple[subprocess.Popen, list[psutil.Process]]:
    """An extract in the middle of a slide that takes seconds, and its workers."""
    config = cohort(tmp_path)
    Image.new("RGB", (4096, 4096), (220, 120, 170)).save(tmp_path / "0.png")
    started = start_extract(config)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "s").rglob(".*.part")) and time.monotonic() < deadline:
        time.sleep(0.01)
    workers = [c for c in psutil.Process(started.pid).children() if "spawn_main" in " ".join(c.cmdline())]
    assert len(workers) == 2
    return started, workers


def test_workers_end_with_a_killed_parent(busy: tuple[subprocess.Popen, list[psutil.Process]]) -> None:
    started, workers = busy
    started.kill()
    started.communicate(timeout=30)
    assert psutil.wait_procs(workers, timeout=30)[1] == []


def test_a_killed_worker_is_an_error_with_advice_and_not_a_hang(
    busy: tuple[subprocess.Popen, list[psutil.Process]],
) -> None:
    started, workers = busy
    workers[0].kill()
    _, errors = started.communicate(timeout=60)
    assert started.returncode == 2 and "Traceback" not in errors
    assert "worker processes: one died" in errors and "--workers N" in errors
