"""Processes of a check: programs of this package that train together, with their work on standard input."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

from leoclr.cli.methods.outcome import Failure
from leoclr.cli.preflight.launch import end_with_parent, free_port, rank_environment

_SECONDS = 600


class Ended(NamedTuple):
    """How a process ended: its exit code, and its last line on standard error."""

    code: int
    last_line: str


def run_processes(module: str, arguments: Sequence[str], work: str, count: int, threads: int | None) -> list[Ended]:
    """Run `python -m MODULE` as `count` processes that find each other, and wait for all.

    Args:
        work: What each gets on standard input.
        threads: Of each process; None leaves it to the environment.

    Raises:
        Failure: They do not end.
    """
    shared = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    port = free_port()
    children = []
    for rank in range(count):
        own = rank_environment(rank, count, port) if count > 1 else {}
        children.append(
            subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env=os.environ | shared | own,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                preexec_fn=end_with_parent,
            )
        )
    words: list[bytes] = []
    try:
        for child in children:
            assert child.stdin is not None
            child.stdin.write(work.encode())
            child.stdin.close()
            child.stdin = None
        words = [child.communicate(timeout=_SECONDS)[1] for child in children]
    except subprocess.TimeoutExpired:
        raise Failure(
            f"{count} processes do not end within {_SECONDS} s: one waits for an exchange the other skips"
        ) from None
    finally:
        for child in children:
            child.kill()
            child.communicate()
    return [_ended(child.returncode, text) for child, text in zip(children, words, strict=True)]


def refuse_failed(ended: Sequence[Ended]) -> None:
    """Raise Failure where a process failed."""
    for one in ended:
        if one.code:
            raise Failure(f"one of {len(ended)} processes failed: {one.last_line or one.code}")


def _ended(code: int, text: bytes) -> Ended:
    lines = text.decode(errors="replace").strip().splitlines()
    return Ended(code, lines[-1] if lines else "")
