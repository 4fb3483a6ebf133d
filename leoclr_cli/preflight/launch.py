"""Several processes on this machine from one command: `leoclr train --num-processes N`.

Sets what torchrun sets (RANK, WORLD_SIZE, MASTER_ADDR, ...) and starts the same command N times. torchrun itself works
too, and is the way for several machines; `accelerate launch --cpu` starts one process only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType

from leoclr.cli.terminal import warn

_GRACE_SECONDS = 10.0
_SAVE_SECONDS = 60.0  # for the first process, which may be saving
_POLL_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1


def launched() -> bool:
    """Whether this process is one of several that torchrun or `launch` started."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run `leoclr ARGUMENTS` in several processes and wait for all.

    When one of them fails the others are ended: gently, then by force after ten seconds, the first process after a
    minute, as it may be saving. Ctrl-C reaches them from the
    terminal, SIGTERM, SIGHUP and SIGUSR1 are passed on; either way each finishes its step and the first one saves. On
    Linux this happens when this process is killed.

    Returns:
        The exit code: that of the process that failed first, or 0.
    """
    port = free_port()
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // processes))
    children = []
    for rank in range(processes):
        environment = os.environ | rank_environment(rank, processes, port) | {"OMP_NUM_THREADS": threads}
        command = [sys.executable, "-m", "leoclr.cli", *arguments]
        children.append(subprocess.Popen(command, env=environment, preexec_fn=end_with_parent))

    def pass_on(number: int, frame: FrameType | None) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    handlers: dict[signal.Signals, Callable[[int, FrameType | None], None] | signal.Handlers] = {
        signal.SIGTERM: pass_on,
        signal.SIGHUP: pass_on,
        signal.SIGUSR1: pass_on,
        signal.SIGINT: signal.SIG_IGN,
    }
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # nohup's wish
        del handlers[signal.SIGHUP]
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        return _wait(children)
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def rank_environment(rank: int, count: int, port: int) -> dict[str, str]:
    """What torchrun sets for one of `count` processes on this machine, which find each other at one of its ports."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def end_with_parent() -> None:
    """Called in a new process: on Linux it gets SIGTERM when the process that started it ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait(children: Sequence[subprocess.Popen[bytes]]) -> int:
    while True:
        codes = [child.poll() for child in children]  # of all of them: a later one may be the first to fail
        failed = [rank for rank, code in enumerate(codes) if code]
        if failed:
            rank, code = failed[0], codes[failed[0]]
            assert code is not None
            if code < 0:
                warn(f"process {rank} of {len(children)} was ended by {signal.Signals(-code).name}; ending the others")
            _end(children)
            return _exit_code(code)
        if None not in codes:
            return 0
        time.sleep(_POLL_SECONDS)


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    began = time.monotonic()
    for some, seconds in ((children[1:], _GRACE_SECONDS), (children[:1], _SAVE_SECONDS)):
        while time.monotonic() < began + seconds and any(child.poll() is None for child in some):
            time.sleep(_POLL_SECONDS)  # a graceful stop ends all of them within a step of each other
        for child in some:
            if child.poll() is None:
                child.kill()
                child.wait()


def _exit_code(code: int) -> int:
    return 128 - code if code < 0 else code


def free_port() -> int:
    """A port of this machine on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
