"""Schedules of method parameters as functions of training progress."""

from __future__ import annotations

import math

from leoclr.backends.method import Progress, Schedule


def cosine(start: float, end: float) -> Schedule:
    """From `start` in the first step to `end` after the last, along half a cosine."""
    return lambda now: end - (end - start) * (math.cos(math.pi * now.share) + 1) / 2


def linear(start: float, end: float, epochs: float) -> Schedule:
    """From `start` to `end` over some epochs, then `end`."""

    def at(now: Progress) -> float:
        return end if now.epoch >= epochs else start + (end - start) * now.epoch / epochs

    return at
