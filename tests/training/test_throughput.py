"""What counts as training time."""

from __future__ import annotations

import time

import pytest
import torch

from leoclr.backends.waits import Waits, begin, end, waiting
from leoclr.cli.training.monitoring.progress_line import straggler
from leoclr.cli.training.monitoring.throughput import Clock


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set."""
    seconds = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: seconds[0])
    return seconds


def test_scoring_and_saving_are_no_training_time(now: list[float]) -> None:
    clock = Clock(step=10, images=8, waits=Waits(torch.device("cpu")))
    with clock.waiting():
        now[0] += 1
    now[0] += 3
    with clock.paused():
        now[0] += 500
    assert clock.read(20) == (10 * 8 / 4, 1 / 4, 4 / 10)
    with clock.paused():
        now[0] += 70
    now[0] += 16
    assert clock.read(30) == (10 * 8 / 16, 0.0, 16 / 10)
    assert clock.mean(30) == 20 * 8 / 20


def test_waits_for_others_are_not_a_process_own_time(now: list[float]) -> None:
    waits = Waits(torch.device("cpu"))
    with waits.listening():
        now[0] += 2
        with waiting():
            now[0] += 30
        begin()  # as the last gradient is made
        now[0] += 40
        end()
        end()
        now[0] += 1
    assert waits.own_seconds() == 3
    with waiting():  # nobody listens
        now[0] += 5
    assert waits.own_seconds() == 5


def test_a_process_counts_as_slow_by_a_quarter() -> None:
    values = {"slowest_rank": 3.0, "slowest_rank_seconds": 0.3, "other_ranks_seconds": 0.2}
    assert straggler(values) == "process 3 is slow: 0.3 s a step, others 0.2 s"
    assert straggler(values | {"slowest_rank_seconds": 0.24}) is None
    assert straggler({"loss": 1.0}) is None
