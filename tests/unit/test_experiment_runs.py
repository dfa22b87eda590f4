"""One run after another, with something in the place of `widefield` that ends as its folder's name says."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from trainer.errors import StoppedBySignal
from trainer.experiments import execute
from trainer.experiments.execute import train_all, train_command
from trainer.experiments.results import state_of
from trainer.train.run_dir import claim_run

WIDEFIELD = """
import json, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[sys.argv.index("train") + 1]).parent
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
(folder / "metrics.jsonl").touch()
print("training", folder.name, flush=True)
if folder.name == "slow":
    time.sleep(60)
if folder.name == "bad":
    sys.exit("[rank 0/2 node] DataError: no slides\\n------\\nMPI_ABORT was invoked")
start = {"event": "start", "step": 0, "stages": [{"sizes": {}}], "total_steps": 1, "world_size": 1}
(folder / "metrics.jsonl").write_text(json.dumps(start) + "\\n" + json.dumps({"event": "end", "step": 1}))
"""


@pytest.fixture(autouse=True)
def fake_widefield(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "_WIDEFIELD", (sys.executable, "-c", WIDEFIELD))


def folders(tmp_path: Path, *names: str) -> list[Path]:
    found = [tmp_path / name for name in names]
    for folder in found:
        folder.mkdir(exist_ok=True)
    return found


def test_a_run_that_fails_is_named_with_its_reason_and_the_others_are_trained(tmp_path: Path) -> None:
    said: list[str] = []
    reports: list[int] = []
    runs = folders(tmp_path, "a", "bad", "b")
    assert train_all(runs, None, said.append, lambda: reports.append(1)) == [tmp_path / "bad"]
    assert [state_of(f) for f in runs] == ["finished", "stopped", "finished"] and len(reports) == 3
    text = "\n".join(said)
    assert "2/3 bad: failed with status 1\n[rank 0/2 node] DataError: no slides" in text and "MPI_ABORT" not in text
    assert "1/3 a: finished in" in text and "2 to go, ETA 0:00:0" in text and "0 to go" in text
    assert "training a\n" in (tmp_path / "a.log").read_text()


def test_started_again_what_is_finished_is_left_alone_and_what_is_not_goes_on(tmp_path: Path) -> None:
    train_all(folders(tmp_path, "a", "bad"), None, lambda text: None, lambda: None)
    before = (tmp_path / "a.log").read_text()
    said: list[str] = []
    train_all(folders(tmp_path, "a", "bad", "new"), 2, said.append, lambda: None)
    assert said[0] == "1/3 a: is finished" and (tmp_path / "a.log").read_text() == before
    assert said[1].startswith("2/3 bad: goes on") and "3/3 new: begins" in "\n".join(said)
    log = (tmp_path / "bad.log").read_text()
    assert log.count("+ widefield train") == log.count("+ widefield launch --ranks 2 train") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_the_run_and_no_other_is_begun(tmp_path: Path, number: signal.Signals) -> None:
    slow, never = folders(tmp_path, "slow", "never")

    def send() -> None:
        while not (slow / "metrics.jsonl").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(StoppedBySignal, match="give the same command again"):
        train_all([slow, never], None, lambda text: None, lambda: None)
    sender.join()
    assert state_of(slow) == "stopped" and state_of(never) == "waiting"
    assert signal.getsignal(number) == before


def test_a_run_that_another_process_trains_is_left_to_it(tmp_path: Path) -> None:
    (taken,) = folders(tmp_path, "taken")
    lock = claim_run(taken, resume=False, overwrite=False)
    said: list[str] = []
    assert train_all([taken], None, said.append, lambda: None) == []
    assert said == ["1/1 taken: is being trained by another process"]
    os.close(lock)


def test_a_run_is_trained_by_what_a_user_would_type() -> None:
    assert train_command(Path("d/run"), None) == ["train", "d/run/config.yaml", "--continue"]
    assert train_command(Path("d/run"), 2)[:4] == ["launch", "--ranks", "2", "train"]
