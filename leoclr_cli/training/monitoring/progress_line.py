"""Progress of training: a bar in place on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from leoclr.cli.terminal import say

if TYPE_CHECKING:
    from rich.console import Console

_PLAIN_SECONDS = 10.0
_BAR_SECONDS = 0.1
_NARROWEST_BAR, _WIDEST_BAR = 8, 40
_SLOW = 1.25  # times the time of the other processes


class StepReading(NamedTuple):
    """What the newest step tells.

    Attributes:
        rate: Images per second of late, over all processes.
        waiting: Share of the time spent waiting for data.
        straggler: The process that holds up the others, in words, if there is one.
    """

    step: int
    loss: float
    rate: float
    waiting: float
    straggler: str | None = None

    @classmethod
    def of(cls, step: int, values: Mapping[str, float]) -> StepReading:
        """The reading in a line of metrics."""
        return cls(step, values["loss"], values["images_per_second"], values["waiting"], straggler(values))


class ProgressLine:
    """A bar with percent, epoch, loss, k-NN score so far, speed and time left, as wide as the terminal; elsewhere (a
    log file) a line every ten seconds and at the end.

    Args:
        start: The step before the first one of this session.
        steps: Steps of the whole run.
        steps_per_epoch: For the epoch shown.
        visible: False on all processes but the first.
        console: Where the bar is drawn; None for standard error.
    """

    def __init__(
        self, start: int, steps: int, steps_per_epoch: int, visible: bool, console: Console | None = None
    ) -> None:
        self._start, self._steps, self._steps_per_epoch = start, steps, steps_per_epoch
        self._visible = visible
        self._console = console
        self._terminal = console is not None or _is_terminal()
        self._began = self._printed = time.monotonic()
        self._knn: float | None = None
        self._live: Any = None

    def show(self, reading: StepReading) -> None:
        """Show the state after a step."""
        now = time.monotonic()
        pause = _BAR_SECONDS if self._terminal else _PLAIN_SECONDS
        if not self._visible or (now - self._printed < pause and reading.step < self._steps):
            return
        self._printed = now
        if self._terminal:
            try:
                self._draw(reading)
            except (OSError, ValueError):  # the terminal has gone; the run has not
                self._visible, self._live = False, None
        else:
            say(
                "  ".join(
                    (f"epoch {self._epoch(reading)}", f"step {reading.step:,}/{self._steps:,}", *self._facts(reading))
                )
            )

    def scored(self, knn: float | None) -> None:
        """Note the newest k-NN score, in [0, 1], to show from now on."""
        self._knn = knn

    def close(self) -> None:
        """Take the bar away, so that other messages and bars do not run into it; `show` brings it back."""
        live, self._live = self._live, None
        if live is not None:
            with suppress(OSError, ValueError):  # where the terminal has gone
                live.stop()

    def _epoch(self, reading: StepReading) -> str:
        epochs = self._steps // self._steps_per_epoch
        return f"{min((reading.step - 1) // self._steps_per_epoch + 1, epochs)}/{epochs}"

    def _facts(self, reading: StepReading) -> list[str]:
        """The most important first: what a narrow terminal has no room for is left out from the end."""
        taken = max(1, reading.step - self._start)
        left = (time.monotonic() - self._began) / taken * (self._steps - reading.step)
        facts = [f"loss {reading.loss:.4f}", f"{duration(left)} left"]
        if reading.straggler:
            facts.append(reading.straggler)
        if self._knn is not None:
            facts.append(f"k-NN {self._knn:.1%}")
        return [*facts, f"{rate_in_words(reading.rate)} images/s", f"waiting for data {reading.waiting:.0%}"]

    def _draw(self, reading: StepReading) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        if self._live is None:
            console = self._console or Console(stderr=True)
            self._live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False)
            self._live.start()
        width = self._live.console.width - 1
        words = [f"{reading.step / self._steps:4.0%}", f"epoch {self._epoch(reading)}", *self._facts(reading)]
        while len(words) > 1 and sum(map(len, words)) + 2 * len(words) + _NARROWEST_BAR > width:
            words.pop()
        row = Table.grid(padding=(0, 2, 0, 0))
        bar = ProgressBar(
            self._steps, reading.step, width=max(1, min(_WIDEST_BAR, width - sum(map(len, words)) - 2 * len(words)))
        )
        row.add_row(words[0], bar, *words[1:])
        self._live.update(row, refresh=True)


def _is_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # standard error is closed
        return False


def rate_in_words(rate: float) -> str:
    """Images per second: whole ones, and two digits below ten."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def duration(seconds: float) -> str:
    """Seconds in words: "3 d 4 h", "2 h 05 min", "7 min 10 s", "12 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def straggler(values: Mapping[str, float]) -> str | None:
    """Words for the values of `throughput.slowest` where a process holds up the others."""
    if values.get("slowest_rank_seconds", 0.0) <= _SLOW * values.get("other_ranks_seconds", 0.0):
        return None
    return (
        f"process {values['slowest_rank']:.0f} is slow: {values['slowest_rank_seconds']:.2g} s a step, others "
        f"{values['other_ranks_seconds']:.2g} s"
    )
