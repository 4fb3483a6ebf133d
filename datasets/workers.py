"""Loader processes: how they start, and what is passed on from them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from leoclr.datasets.errors import DataError

_TIMEOUT_SECONDS = 600


class Loaded(Protocol):
    """A batch. Errors travel in it as text, because torch would hand on a worker's traceback."""

    error: str | None


Item = TypeVar("Item", bound=Loaded)


def load_batches(
    dataset: Dataset[Item], numbers: Sequence[int], workers: int, pin_memory: bool = False
) -> Iterator[Item]:
    """The items of a data set whose items are whole batches, in the order of `numbers`.

    Args:
        workers: Processes; 0 loads in this one. Each is one batch ahead of what it works on.
        pin_memory: Whether to place batches where a GPU can fetch them by itself.

    Raises:
        DataError: A batch says why it could not be made; or a worker died or made nothing for ten minutes.
    """
    with warnings.catch_warnings():
        # Python 3.12 warns of every fork beside threads; the workers run none of torch's. And the number of workers
        # is the user's to choose.
        warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        loader: DataLoader[Item] = DataLoader(
            dataset,
            batch_size=None,
            sampler=numbers,
            num_workers=workers,
            collate_fn=_unchanged,
            generator=torch.Generator(),  # torch draws seeds for its workers; the caller's generator stays untouched
            worker_init_fn=_start_worker,
            pin_memory=pin_memory,
            prefetch_factor=2 if workers else None,
            timeout=_TIMEOUT_SECONDS if workers else 0,
        )
        others = set(multiprocessing.active_children())
        # A worker inherits the mask, so that no signal can kill it before it has learnt to leave that to the parent.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
        try:
            iterator = iter(loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        processes = set(multiprocessing.active_children()) - others
    try:
        while True:
            lost = None
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except RuntimeError as error:
                lost = lost_worker(error)
                if lost is None:
                    raise
            if lost is not None:
                raise lost  # not inside `except`: torch's error, then a part of this one, would keep the iterator
            if batch.error is not None:
                raise DataError(batch.error)
            yield batch
    finally:
        del iterator  # ends the workers now; a traceback would keep them, and once in a garbage cycle they hang
        for process in processes:
            process.kill()  # torch only asks, which a process that is stuck does not hear


def lost_worker(error: RuntimeError) -> DataError | None:
    """What to say where `error` is torch's word that a loader process is lost; None where it is anything else.

    torch raises it in a signal handler, so in whatever line the main thread is at.
    """
    if "DataLoader" not in str(error):
        return None
    reason = " ".join(str(error).split())[:200]
    return DataError(f"a loader process ended or hung, perhaps for lack of memory ({reason})")


def _unchanged(batch: Item) -> Item:
    return batch


def _start_worker(number: int) -> None:
    """Ctrl-C and its end reach every process of a terminal, and SIGTERM those of a job (`timeout`, systemd, Slurm).
    Only the parent acts on them, and to finish its step it still needs batches."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        threading.Thread(target=_end_when_the_parent_asks, daemon=True).start()
    else:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    sys.excepthook = _without_parent
    torch.set_num_threads(1)


def _end_when_the_parent_asks() -> None:
    """SIGTERM is blocked and waited for here, which tells who sent it, as a handler cannot."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _without_parent(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """A thread of Python's own hands over shared memory, and shows a traceback where a killed parent hangs up."""
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, traceback)
