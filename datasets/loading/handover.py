"""Transfer of batches between processes.

torch puts tensors into shared memory (/dev/shm on Linux) and passes their file handles. Containers often have 64 MB of
it, and where a batch does not fit, its process is killed or the batch is lost. So each process looks before it hands a
batch over; what does not fit travels through a pipe, as bytes: one copy more on either side, a millisecond for 2 MB.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import resource
import sys
from typing import Any, Generic, TypeVar, cast

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

Item = TypeVar("Item")

_SHARED = "/dev/shm"
_WANTED_FILES = 4096
_FILES_A_BATCH = 8  # tensors with a handle each
_BATCHES_A_WORKER = 2  # that torch's DataLoader keeps ahead
_MIB = 1 << 20


class HandedOver(Dataset[Any], Generic[Item]):
    """A data set whose items are handed over in shared memory where that fits, else as `Bytes`.

    Args:
        dataset: Its items are dataclasses.
        workers: Processes that may hand over at the same time.
    """

    def __init__(self, dataset: Dataset[Item], workers: int) -> None:
        self._dataset, self._workers = dataset, workers
        self._by_bytes = workers > 0 and not _files_suffice(workers)

    def __getitem__(self, number: int) -> Item | Bytes[Item]:
        item = self._dataset[number]
        if get_worker_info() is None:
            return item
        if self._by_bytes or not _fits(size_of(item) * self._workers * processes_here()):
            return Bytes(item)
        return item


class Bytes(Generic[Item]):
    """An item with arrays in place of its tensors, which are passed by value."""

    def __init__(self, item: Item) -> None:
        self._item = _changed(item, Tensor, _Array)

    def item(self) -> Item:
        """The item with its tensors, of the same strides."""
        return cast(Item, _changed(self._item, _Array, _Array.tensor))


class _Array:
    def __init__(self, tensor: Tensor) -> None:
        dense = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype).copy_(tensor)
        self._size, self._stride = tuple(dense.size()), dense.stride()
        self._values: NDArray[Any] = dense.as_strided(
            (dense.untyped_storage().nbytes() // dense.itemsize,), (1,)
        ).numpy()

    def tensor(self) -> Tensor:
        return torch.from_numpy(self._values).as_strided(self._size, self._stride)


def shared_memory_line(batch_bytes: int, workers: int) -> str | None:
    """What to say where shared memory is too small for the batches of that many loader processes, else None."""
    needed, free = batch_bytes * (_BATCHES_A_WORKER * workers + 1), _free()
    if not workers or free is None or needed <= free:
        return None
    return (
        f"{_SHARED} has {free // _MIB:,} MiB free and the batches of {workers} loader processes take "
        f"{-(-needed // _MIB):,} MiB: what does not fit goes through pipes, a little slower"
    )


def processes_here() -> int:
    """Training processes on this machine, which share its memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def size_of(value: Any) -> int:
    """Bytes of the tensors in a value."""
    found = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal found
        found += tensor.nbytes
        return tensor

    _changed(value, Tensor, count)
    return found


def _fits(size: int) -> bool:
    free = _free()
    return free is None or size + _MIB <= free


def _free() -> int | None:
    """Bytes of shared memory that are left; None where there is no such limit (macOS)."""
    if sys.platform != "linux":
        return None
    try:
        found = os.statvfs(_SHARED)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize


def _files_suffice(workers: int) -> bool:
    """Whether this process may open a handle for each tensor under way; the limit is raised as far as allowed."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED_FILES if most == resource.RLIM_INFINITY else min(most, _WANTED_FILES)
    if limit != resource.RLIM_INFINITY and limit < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
        limit = wanted
    try:
        opened = len(os.listdir("/dev/fd"))
    except OSError:
        opened = 32
    under_way = (_BATCHES_A_WORKER * workers + 2) * _FILES_A_BATCH
    return limit == resource.RLIM_INFINITY or opened + 4 * workers + under_way <= limit


def _changed(value: Any, kind: type, change: Any) -> Any:
    """A copy of a value in which everything of a kind is changed."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {name: _changed(each, kind, change) for name, each in value.items()}
    if isinstance(value, list):
        return [_changed(each, kind, change) for each in value]
    if isinstance(value, tuple) and type(value) is tuple:
        return tuple(_changed(each, kind, change) for each in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        copied = copy.copy(value)
        for field in dataclasses.fields(value):
            object.__setattr__(copied, field.name, _changed(getattr(value, field.name), kind, change))
        return copied
    return value
