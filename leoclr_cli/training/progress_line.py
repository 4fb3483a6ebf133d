"""The one line that tells how training goes."""

from __future__ import annotations

import sys
import time

from leoclr.cli.terminal import say

_PLAIN_SECONDS = 10.0


class ProgressLine:
    """Rewrites one line on a terminal; elsewhere (a log file) prints a line every ten seconds and at each end.

    Args:
        steps: Steps of the whole run.
        steps_per_epoch: For the epoch shown.
        images: Images in a step, over all processes.
        visible: False on all processes but the first.
    """

    def __init__(self, start: int, steps: int, steps_per_epoch: int, images: int, visible: bool) -> None:
        self._start, self._steps, self._steps_per_epoch, self._images = start, steps, steps_per_epoch, images
        self._visible = visible
        self._terminal = sys.stderr.isatty()
        self._began = time.monotonic()
        self._printed = self._began
        self._width = 0

    def show(self, step: int, loss: float, rate: float, waiting: float) -> None:
        """Show the state after `step` steps: images per second of late, and the share of time spent waiting."""
        now = time.monotonic()
        pause = 0.1 if self._terminal else _PLAIN_SECONDS
        if not self._visible or (now - self._printed < pause and step < self._steps):
            return
        self._printed = now
        taken = max(1, step - self._start)
        left = (now - self._began) / taken * (self._steps - step)
        epoch = min((step - 1) // self._steps_per_epoch + 1, self._steps // self._steps_per_epoch)
        line = (
            f"epoch {epoch}/{self._steps // self._steps_per_epoch}  step {step:,}/{self._steps:,}  loss {loss:.4f}  "
            f"{rate:,.0f} images/s  waiting for data {waiting:.0%}  {duration(left)} left"
        )
        if self._terminal:
            say("\r" + line.ljust(self._width), end="")
            self._width = len(line)
        else:
            say(line)

    def finish_line(self) -> None:
        """Start a new line, so that other messages do not run into this one."""
        if self._visible and self._terminal and self._width:
            say("")
            self._width = 0


def duration(seconds: float) -> str:
    """Seconds in words: "3 d 4 h", "2 h 05 min", "7 min 10 s", "12 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
