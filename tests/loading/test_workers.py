"""Loader processes: a killed one ends the run in seconds, in words."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from leoclr.datasets.errors import DataError
from leoclr.datasets.loading import handover, workers
from leoclr.datasets.loading.handover import shared_memory_line
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


@dataclass
class Pictures:
    pixels: dict[str, Tensor]
    numbers: Tensor
    error: str | None = None


class Drawn(Dataset[Pictures]):
    def __getitem__(self, number: int) -> Pictures:
        pixels = torch.arange(2 * 4 * 4 * 3, dtype=torch.uint8).reshape(2, 4, 4, 3) + number
        return Pictures({"x": pixels.permute(0, 3, 1, 2)}, torch.tensor([number, number + 1]))


@pytest.mark.parametrize("shortage", ["_fits", "_files_suffice"])
def test_without_shared_memory_or_file_handles_the_same_batches_come_through_pipes(
    shortage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[object] = []
    item = handover.Bytes.item

    def counted(batch: handover.Bytes[Pictures]) -> Pictures:
        passed.append(batch)
        return item(batch)

    monkeypatch.setattr(handover, shortage, lambda *figures: False)
    monkeypatch.setattr(handover.Bytes, "item", counted)
    loaded = list(load_batches(Drawn(), range(5), 2))
    assert len(passed) == 5
    for one, other in zip(loaded, load_batches(Drawn(), range(5), 0), strict=True):
        assert torch.equal(one.pixels["x"], other.pixels["x"]) and torch.equal(one.numbers, other.numbers)
        assert one.pixels["x"].stride() == other.pixels["x"].stride()
        one.pixels["x"] += 1  # may be written


def test_shared_memory_is_compared_with_what_the_processes_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "_free", lambda: 64 << 20)
    line = shared_memory_line(110 << 20, 2)
    assert line is not None and "64 MiB free" in line and "550 MiB" in line
    assert shared_memory_line(12 << 20, 2) is None and shared_memory_line(110 << 20, 0) is None
    assert handover._fits(60 << 20) and not handover._fits(64 << 20)


class NoSpace:
    def __reduce__(self) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@dataclass
class Lost:
    content: NoSpace
    error: str | None = None


class Losing(Dataset[Lost]):
    """A batch that cannot be handed over, as into shared memory that others have filled."""

    def __getitem__(self, number: int) -> Lost:
        return Lost(NoSpace())


def test_a_batch_that_cannot_be_handed_over_is_reported_within_seconds() -> None:
    began = time.monotonic()
    with pytest.raises(DataError, match="was ended: No space left on device"):
        list(load_batches(Losing(), range(3), 1))
    assert time.monotonic() - began < 20


class Stuck(Numbers):
    def __getitem__(self, number: int) -> Item:
        if number == 2:
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().__getitem__(number)


def test_a_wait_for_a_batch_ends_where_it_is_asked_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(workers, "_PATIENCE_SECONDS", 0.3)
    began = time.monotonic()
    loaded = load_batches(Stuck(deadly=False), range(5), 1, asked_to_stop=lambda: True)
    # A thread of the worker hands batches over: when the worker stops, the last one may still be with it.
    assert [item.number for item in loaded] in ([], [0], [0, 1])
    assert time.monotonic() - began < 20
