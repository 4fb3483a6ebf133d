"""Ordered work on threads, with bounded look-ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_AHEAD = 4  # results in memory for each thread
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def ordered_map(
    work: Callable[[_Item], _Result], items: Iterable[_Item], workers: int, ahead: int = _AHEAD
) -> Generator[_Result, None, None]:
    """`map` on threads: results in the order of `items`, and never more than `ahead` for each thread in memory.

    Threads are enough, since reading, decoding, hashing and drawing let go of Python's lock.
    """
    with ThreadPoolExecutor(workers) as threads:
        pending: deque[Future[_Result]] = deque()
        try:
            for item in items:
                pending.append(threads.submit(work, item))
                if len(pending) >= ahead * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
