"""Progress bars and messages on stderr; stdout carries results only."""

from __future__ import annotations

import json
import math
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

_SECONDS_BETWEEN_LINES = 30.0
# A name from a file must not steer the terminal, nor reverse what is written behind it.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def say(message: str, end: str = "\n") -> None:
    """One line for a person, on stderr. Where nobody listens any more (a closed terminal, a reader that has ended, a
    full disk under a log) it is lost, and with it nothing else."""
    if sys.stderr is None:  # closed when the process started; `print` would take standard output
        return
    # RuntimeError: a handler of signals may say something in the middle of a write to the same stream.
    with suppress(OSError, ValueError, AttributeError, RuntimeError):
        sys.stdout.flush()  # where both go into one log, what was printed earlier stands there earlier
    with suppress(OSError, ValueError, RuntimeError):
        message = _CONTROL.sub(lambda match: ascii(match[0])[1:-1], message)
        print(message, end=end, file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """One line that a person should not miss, on stderr."""
    say(f"warning: {message}")


def suggest(*commands: Sequence[str]) -> None:
    """Say which commands may come next, each as it can be typed.

    Args:
        commands: What follows `leoclr`, word by word.
    """
    for words in commands:
        say(f"next: {shlex.join(('leoclr', *words))}")


def print_json(value: Any) -> None:
    """The machine-readable result, on stdout. NaN and infinity are refused: they are not JSON."""
    print(json.dumps(value, indent=2, allow_nan=False))


@contextmanager
def progress(what: str, total: int | None, unit: str = "") -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left; yields `advance(n)`. Where stderr is not a terminal, a line every half minute.

    Args:
        what: What is being done, e.g. "packing".
        total: How many units there are; None where that is not known.
        unit: Name of the unit in the rate, e.g. "images".
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Task as RichTask
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: RichTask) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.0f} {unit}/s" if speed else "", style="progress.data.speed")

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(what, total, unit)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


def _lines(what: str, total: int | None, unit: str) -> Callable[[int], None]:
    """An `advance` for a log: now and then one line with the count, the rate and the time left."""
    began = said = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, said
        done += count
        now = time.monotonic()
        if now - said < _SECONDS_BETWEEN_LINES:
            return
        said, rate = now, done / (now - began)
        of = f" of {total:,}" if total else ""
        left = f", {math.ceil((total - done) / rate / 60):,} min left" if total and done <= total and rate else ""
        say(f"{what}: {done:,}{of} {unit}, {rate:,.0f}/s{left}")

    return advance
