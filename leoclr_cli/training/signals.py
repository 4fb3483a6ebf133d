"""Ctrl-C, SIGTERM and a closed terminal ask the loop to stop after its step; a second Ctrl-C leaves at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

from leoclr.cli.terminal import say


class GracefulStop:
    """While this context is open, `requested` is the signal that asked for the end, or 0.

    Args:
        asked: A caller's own wish to stop, which counts like Ctrl-C. In any thread but the main one it is the only one:
            Python hands signals to that alone.

    A scheduler may send SIGTERM more than once; only a second Ctrl-C, a person's, is an order to leave at once. The
    last checkpoint is whole then too, because checkpoints appear by a rename.
    """

    def __init__(self, asked: Callable[[], bool] | None = None) -> None:
        self.requested, self._asked = 0, asked
        self._previous: dict[int, object] = {}

    def now(self) -> int:
        """`requested`, after the caller has been asked."""
        if not self.requested and self._asked is not None and self._asked():
            self.requested = signal.SIGINT
        return self.requested

    def __enter__(self) -> GracefulStop:
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup's wish
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.requested == signal.SIGINT:
            os._exit(128 + signal.SIGINT)
        if not self.requested and os.environ.get("RANK", "0") == "0":
            say("\nstopping after this step and saving (Ctrl-C again leaves at once)")
        self.requested = number
