"""Loader processes: a killed one ends the run in seconds, in words."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

import pytest
from torch.utils.data import Dataset

from leoclr.datasets.errors import DataError
from leoclr.datasets.workers import load_batches


@dataclass
class Item:
    number: int
    error: str | None = None


class Numbers(Dataset[Item]):
    """Item 3 kills the process that makes it, as the kernel does when memory is short; item 5 reports an error."""

    def __init__(self, deadly: bool) -> None:
        self.deadly = deadly

    def __getitem__(self, number: int) -> Item:
        if number == 3 and self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return Item(number, "a shard has gone" if number == 5 else None)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_order_and_errors_as_one_line(workers: int) -> None:
    seen = []
    with pytest.raises(DataError, match="^a shard has gone$"):
        for item in load_batches(Numbers(deadly=False), range(2, 9), workers):
            seen.append(item.number)
    assert seen == [2, 3, 4]


def test_a_killed_worker_is_reported_within_seconds() -> None:
    began = time.monotonic()
    with pytest.raises(DataError, match="a loader process ended or hung, perhaps for lack of memory"):
        list(load_batches(Numbers(deadly=True), range(0, 5), 2))
    assert time.monotonic() - began < 30
