"""Loader processes: start, errors and end."""

from __future__ import annotations

import errno
import multiprocessing
import multiprocessing.queues
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from leoclr.datasets.errors import DataError
from leoclr.datasets.loading.handover import Bytes, HandedOver

_TIMEOUT_SECONDS = 600  # until a loader process counts as hung
_LOOK_SECONDS = 1  # between two looks at whether all live
_PATIENCE_SECONDS = 5  # for a batch, once somebody has asked to stop
_ASK_THE_PARENT = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1}
_REASONS = (errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # exit codes of a worker that cannot hand over


class Loaded(Protocol):
    """A batch. Errors travel in it as text, because torch would hand on a worker's traceback."""

    error: str | None


Item = TypeVar("Item", bound=Loaded)


def load_batches(
    dataset: Dataset[Item],
    numbers: Sequence[int],
    workers: int,
    pin_memory: bool = False,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Item]:
    """The items of a data set whose items are whole batches, in the order of `numbers`.

    Args:
        workers: Processes; 0 loads in this one. Each is one batch ahead of what it works on.
        pin_memory: Whether to place batches where a GPU can fetch them by itself.
        asked_to_stop: Looked at while nothing comes; five seconds after it became true the items end.

    Raises:
        DataError: A batch says why it could not be made; or a worker died or made nothing for ten minutes.
    """
    with warnings.catch_warnings():
        # Python 3.12 warns of every fork beside threads; the workers run none of torch's. And the number of workers
        # is the user's to choose.
        warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        loader: DataLoader[Item] = DataLoader(
            HandedOver(dataset, workers),
            batch_size=None,
            sampler=numbers,
            num_workers=workers,
            collate_fn=_unchanged,
            generator=torch.Generator(),  # torch draws seeds for its workers; the caller's generator stays untouched
            worker_init_fn=_start_worker,
            pin_memory=pin_memory,
            prefetch_factor=2 if workers else None,
            timeout=_LOOK_SECONDS if workers else 0,
        )
        others = set(multiprocessing.active_children())
        before = signal.getsignal(signal.SIGCHLD)
        # A worker inherits the mask, so that no signal can kill it before it has learnt to leave that to the parent.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, _ASK_THE_PARENT)
        try:
            iterator = iter(loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        if workers and threading.current_thread() is threading.main_thread():
            # torch's handler raises where a worker dies, in whatever line the program is at, be it a save or the
            # report of another error. `_next` looks by itself.
            signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)
        processes = set(multiprocessing.active_children()) - others
    try:
        while (batch := _next(iterator, processes, asked_to_stop)) is not None:
            if batch.error is not None:
                raise DataError(batch.error)
            yield batch
    finally:
        del iterator  # ends the workers now; a traceback would keep them, and once in a garbage cycle they hang
        for process in processes:
            process.kill()  # torch only asks, which a process that is stuck does not hear


def _next(
    iterator: Iterator[Item], processes: set[BaseProcess], asked_to_stop: Callable[[], bool] = lambda: False
) -> Item | None:
    """The next batch, or None at the end. Raises what the loading raised, or a DataError for a process that is lost."""
    began = time.monotonic()
    asked = None
    lost = None
    while lost is None:
        try:
            batch = next(iterator, None)
            return batch.item() if isinstance(batch, Bytes) else batch
        except MemoryError:
            lost = "there is not enough memory for a batch"
        except (RuntimeError, OSError, EOFError) as error:  # a dying process may also hang up on a batch
            late = "timed out" in str(error)
            lost = _lost(processes, within=0 if late else _LOOK_SECONDS)
            if lost is None and not late:
                raise
            waited = time.monotonic() - began
            if lost is None and asked_to_stop():
                asked = waited if asked is None else asked
                if waited - asked >= _PATIENCE_SECONDS:
                    return None
            if lost is None and waited >= _TIMEOUT_SECONDS:
                lost = f"nothing came for {waited:,.0f} s"
    # Not inside `except`: torch's error, then a part of this one, would keep the iterator.
    raise DataError(f"a loader process ended or hung, perhaps for lack of memory ({lost})")


def _lost(processes: set[BaseProcess], within: float) -> str | None:
    """Which loader process has ended, and how. Each lives until all batches are made.

    Args:
        within: Seconds to wait for one: a process that hung up may take a moment to be gone.
    """
    ended = wait([process.sentinel for process in processes], within)
    for process in processes:
        if process.sentinel in ended:
            process.join()  # its files are closed, but it may not be gone yet
            assert process.exitcode is not None
            how = f" by signal: {signal.strsignal(-process.exitcode)}" if process.exitcode < 0 else ""
            if process.exitcode in _REASONS:
                how = f": {os.strerror(process.exitcode)}"
            return f"process {process.pid} was ended{how}"
    return None


def _unchanged(batch: Item) -> Item:
    return batch


def _start_worker(number: int) -> None:
    """Ctrl-C and its end reach every process of a terminal, SIGTERM and SIGUSR1 those of a job (`timeout`, systemd,
    Slurm). Only the parent acts on them, and to finish its step it still needs batches."""
    for number in _ASK_THE_PARENT - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        threading.Thread(target=_end_when_the_parent_asks, daemon=True).start()
    else:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    signal.set_wakeup_fd(-1)  # the parent's
    sys.excepthook = _without_parent
    # A thread of its own hands batches over. Where it fails, Python shows a traceback and the parent waits for ever.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_of_handing_over)  # type: ignore[attr-defined]
    torch.set_num_threads(1)


def _end_of_handing_over(error: BaseException, batch: object) -> None:
    reasons = [
        reason for reason in _REASONS if getattr(error, "errno", None) == reason or os.strerror(reason) in str(error)
    ]
    if not reasons:
        print(f"a batch cannot be handed over: {error}", file=sys.stderr, flush=True)
    os._exit(reasons[0] if reasons else 1)


def _end_when_the_parent_asks() -> None:
    """SIGTERM is blocked and waited for here, which tells who sent it, as a handler cannot."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _without_parent(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """A thread of Python's own hands over shared memory, and shows a traceback where a killed parent hangs up."""
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, traceback)
