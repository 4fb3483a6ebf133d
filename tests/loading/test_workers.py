"""Loader processes: a killed one ends the run in seconds, in words."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from dataclasses import dataclass

import pytest
from torch.utils.data import Dataset

from leoclr.datasets.errors import DataError
from leoclr.datasets.loading import workers
from leoclr.datasets.loading.workers import load_batches


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


class Slow(Numbers):
    def __getitem__(self, number: int) -> Item:
        time.sleep(0.5 if number % 3 == 0 else 0)
        return super().__getitem__(number)


def test_slow_loader_processes_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_LOOK_SECONDS", 0.05)
    loaded = load_batches(Slow(deadly=False), [*range(5), *range(6, 10)], 2)
    assert [item.number for item in loaded] == [0, 1, 2, 3, 4, 6, 7, 8, 9]


def test_a_lost_process_is_told_where_a_batch_is_asked_for_and_nowhere_else() -> None:
    """Were it told where the process ends, it would end a save, or the report of another error."""
    handler = signal.getsignal(signal.SIGCHLD)
    loaded = load_batches(Numbers(deadly=False), range(5), 1)
    next(loaded)
    assert signal.getsignal(signal.SIGCHLD) is handler
    (worker,) = multiprocessing.active_children()
    worker.kill()
    worker.join()
    time.sleep(0.1)  # for a handler to run in
    with pytest.raises(DataError, match=f"process {worker.pid} was ended by signal: Killed"):
        list(loaded)


def test_a_batch_cut_off_by_the_end_of_its_process_is_told_as_its_end() -> None:
    """What torch hands over of a batch may be a socket of the worker's, and its end a ConnectionResetError."""

    class Cut:
        def __next__(self) -> Item:
            process.kill()
            raise ConnectionResetError(104, "Connection reset by peer")

        def __iter__(self) -> Cut:
            return self

    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    process.start()
    with pytest.raises(DataError, match=f"process {process.pid} was ended by signal: Killed"):
        workers._next(Cut(), {process})
