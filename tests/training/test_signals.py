"""A request to stop is heard, also by a process that waits in C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

import pytest

WAITING = """
import ctypes, time
from leoclr.cli.training.signals import GracefulStop
mutex = ctypes.create_string_buffer(64)
with GracefulStop(deaf_seconds=0.3) as stop:
    print("waiting", flush=True)
    if {in_c}:
        for _ in range(2):  # the second time for ever, and no signal interrupts it
            ctypes.CDLL(None).pthread_mutex_lock(mutex)
    while not stop.requested:
        time.sleep(0.01)
print("stopped by", stop.requested)
"""


def told(in_c: bool, signals: Sequence[signal.Signals]) -> tuple[int, str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING.format(in_c=in_c)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    )
    assert process.stdout is not None and process.stdout.readline() == "waiting\n"
    for number in signals:
        process.send_signal(number)
    output, errors = process.communicate(timeout=30)
    return process.returncode, output + errors


def test_a_loop_hears_of_a_request() -> None:
    code, output = told(False, [signal.SIGTERM])
    assert code == 0 and "stopping after this step" in output and "stopped by 15" in output


@pytest.mark.skipif(sys.platform != "linux", reason="a mutex of glibc's")
def test_a_wait_in_c_is_ended() -> None:
    code, output = told(True, [signal.SIGTERM])  # heard or not, before the wait or in it
    assert code == 143 and "leaving at once" in output
    code, output = told(True, [signal.SIGINT, signal.SIGINT])
    assert code == 130
