from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from launch import ROOT

from trainer.errors import StoppedBySignal
from trainer.train.signals import StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_remembered_and_the_old_handlers_come_back(number: signal.Signals) -> None:
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    with StopRequest() as stop:
        assert not stop.requested
        assert signal.getsignal(signal.SIGINT) == before[2], "Ctrl-C stays as it is"
        signal.raise_signal(number)
        assert stop.requested
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == before
    with StopRequest() as again:
        assert not again.requested


def test_handlers_come_back_when_the_run_fails() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), StopRequest():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) == before


STEPS = """
import sys, time
from trainer.errors import StoppedBySignal
from trainer.train.signals import StopRequest
with StopRequest() as stop:
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    print("stopping", flush=True)
    if sys.argv[1] == "hangs":
        time.sleep(60)
sys.exit(StoppedBySignal.EXIT_CODE)
"""


def start(how: str) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", STEPS, how], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_process_ends_between_steps_with_the_code_that_asks_to_be_requeued(number: signal.Signals) -> None:
    process = start("ends")
    process.send_signal(number)
    assert process.communicate(timeout=30)[0] == "stopping\n"
    assert process.returncode == StoppedBySignal.EXIT_CODE == 75


def test_a_second_sigterm_ends_a_process_that_does_not_come_to_its_next_step() -> None:
    process = start("hangs")
    for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM):
        process.send_signal(number)
    assert process.stdout and process.stdout.readline() == "stopping\n"
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == -signal.SIGTERM
    process.stdout.close()
