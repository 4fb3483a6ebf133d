"""What counts as training time."""

from __future__ import annotations

import time

import pytest

from leoclr.cli.training.throughput import Clock


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set."""
    seconds = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: seconds[0])
    return seconds


def test_scoring_and_saving_are_no_training_time(now: list[float]) -> None:
    clock = Clock(step=10, images=8)
    with clock.waiting():
        now[0] += 1
    now[0] += 3
    with clock.paused():
        now[0] += 500
    assert clock.read(20) == (10 * 8 / 4, 1 / 4)
    with clock.paused():
        now[0] += 70
    now[0] += 16
    assert clock.read(30) == (10 * 8 / 16, 0.0)
    assert clock.mean(30) == 20 * 8 / 20
