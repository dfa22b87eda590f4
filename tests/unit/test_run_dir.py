from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trainer.errors import RunError
from trainer.train.clock import StageClock, peak_memory_bytes, reset_peak_memory, shares_of
from trainer.train.run_dir import MARK, Lines, MetricsFile, claim_run, read_events
from trainer.train.runs import is_held


def finished_run(path: Path) -> Path:
    os.close(claim_run(path, resume=False, overwrite=False))
    (path / "config.yaml").write_text("name: x\n")
    (path / "report.json").write_text("{}")
    (path / "notes.txt").write_text("mine")
    return path


def test_a_run_directory_that_another_process_holds_is_refused_naming_the_holder(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom trainer.train.run_dir import claim_run\n"
        "lock = claim_run(Path(sys.argv[1]), resume=False, overwrite=False)\n"
        "print('held', flush=True)\ntime.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"process {holder.pid}"):
            claim_run(tmp_path / "run", resume=False, overwrite=True)
    finally:
        holder.kill()
        holder.wait()
    os.close(claim_run(tmp_path / "run", resume=False, overwrite=False))  # the lock died with its holder


def test_a_glance_by_widefield_runs_does_not_refuse_a_run_that_starts_just_then(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    glance = os.open(tmp_path / ".lock", os.O_RDONLY)
    fcntl.flock(glance, fcntl.LOCK_SH)
    with ThreadPoolExecutor(1) as pool:
        claim = pool.submit(claim_run, tmp_path, resume=False, overwrite=False)
        time.sleep(0.03)
        os.close(glance)
        os.close(claim.result())
    assert f"process {os.getpid()}" in (tmp_path / ".lock").read_text()


def test_where_the_file_system_has_no_locks_a_run_starts_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    os.close(claim_run(tmp_path, resume=False, overwrite=False))
    assert "no locks" in caplog.text
    assert not is_held(tmp_path)


def test_a_finished_run_is_not_overwritten_unless_asked_and_other_files_stay(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    with pytest.raises(RunError, match="--overwrite"):
        claim_run(run, resume=False, overwrite=False)
    assert (run / "report.json").exists()
    os.close(claim_run(run, resume=True, overwrite=False))
    assert (run / "report.json").exists()
    os.close(claim_run(run, resume=False, overwrite=True))
    assert not (run / "report.json").exists()
    assert (run / "notes.txt").read_text() == "mine"


def test_a_run_that_wrote_its_settings_and_never_began_may_be_started_or_resumed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    os.close(claim_run(run, resume=False, overwrite=False))
    (run / "config.yaml").write_text(f"{MARK}; trained on 2 rank(s)\nname: x\n")
    os.close(claim_run(run, resume=True, overwrite=False))
    os.close(claim_run(run, resume=False, overwrite=False))
    MetricsFile(run / "metrics.jsonl", 0).close()
    (run / "config.yaml").write_text(f"{MARK}; trained on 2 rank(s)\nname: x\n")
    with pytest.raises(RunError, match="holds a run already"):
        claim_run(run, resume=False, overwrite=False)


def test_resuming_nothing_and_a_directory_that_cannot_be_made_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run here"):
        claim_run(tmp_path / "none", resume=True, overwrite=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        claim_run(tmp_path / "file" / "run", resume=False, overwrite=False)


def test_metrics_survive_a_line_cut_short_and_a_resumed_run_drops_what_it_repeats(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"event": "step", "step": 2}\n{"event": "end", "step": 2}\n{"event": "step", "step": 4}\n{"event": "st'
    )
    file = MetricsFile(path, keep_to_step=2)
    file.write("step", step=3, loss=0.5)
    file.close()
    assert [e["step"] for e in read_events(path)] == [2, 3]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_full_disk_costs_lines_and_one_warning(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(Path("/dev/full"))
    lines.add("one")
    lines.add("two")
    lines.close()
    assert capsys.readouterr().err.count("No space left on device") == 1


def test_the_clock_leaves_out_warm_up_steps_and_the_peak_can_start_anew() -> None:
    clock = StageClock()
    for size in (64, 64, 128, 64, 64, 128):
        with clock.step(size, 2.0):
            with clock.phase("wait"):
                time.sleep(0.002)
            with clock.phase("compute"):
                time.sleep(0.002)
            clock.move("compute", "allreduce", 0.001)
        with clock.between():
            time.sleep(0.002)
    shares = shares_of(clock.totals())
    assert clock.totals()[4] >= 2 * 0.006, "what is done between steps counts"
    assert clock.totals()[-2:].tolist() == [4.0, 2.0], "two steps at each size are warm-up"
    assert all(0 < (shares[f"{k}_fraction"] or 0) < 1 for k in ("data_wait", "compute", "allreduce", "overhead"))
    assert sum(v or 0 for k, v in shares.items() if k.endswith("_fraction")) == pytest.approx(1)
    block = bytearray(os.urandom(1) * 300_000_000)
    high = peak_memory_bytes()
    del block
    reset_peak_memory()
    assert peak_memory_bytes() < high - 200_000_000
