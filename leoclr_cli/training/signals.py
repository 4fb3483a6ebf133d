"""Stop requests: Ctrl-C, SIGTERM, SIGUSR1 and a closed terminal stop after the step; a second Ctrl-C exits at once."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

from accelerate import Accelerator

from leoclr.cli.terminal import say

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # the last as schedulers warn of the end
DEAF_SECONDS = 60.0  # to wait for other processes or a device
SLOW_SECONDS = 600.0  # for a step of one process on a CPU, which ends some time
_CLOSING = 0


def patience(accelerator: Accelerator) -> float:
    """Seconds that a step may take after a request to stop, before the process is taken for stuck."""
    alone = accelerator.num_processes == 1 and accelerator.device.type == "cpu"
    return SLOW_SECONDS if alone else DEAF_SECONDS


class GracefulStop:
    """While this context is open, `requested` is the signal that asked for the end, or 0.

    Args:
        asked: A caller's own wish to stop, which counts like Ctrl-C. In any thread but the main one it is the only one:
            Python hands signals to that alone.
        deaf_seconds: How long a signal may go unnoticed.

    A scheduler may send SIGTERM more than once; only a second Ctrl-C, a person's, is an order to leave at once. The
    last checkpoint is whole then too, because checkpoints appear by a rename.

    Python runs its handlers between two of its own instructions, so a process that waits in C, for another process or a
    device that never answers, would not hear. A thread hears for it: it ends the process at a second Ctrl-C, and where
    nobody has looked at `requested` for `deaf_seconds`.
    """

    def __init__(self, asked: Callable[[], bool] | None = None, deaf_seconds: float = DEAF_SECONDS) -> None:
        self._requested, self._seen, self._asked = 0, False, asked
        self._deaf_seconds = deaf_seconds
        self._previous: dict[int, object] = {}

    @property
    def requested(self) -> int:
        """Number of the signal that asked for the end, or 0."""
        self._seen = self._requested != 0
        return self._requested

    def now(self) -> int:
        """`requested`, after the caller has been asked."""
        if not self.requested and self._asked is not None and self._asked():
            self._requested = signal.SIGINT
        return self.requested

    def __enter__(self) -> GracefulStop:
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in STOPS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup's wish
            self._previous[number] = signal.signal(number, self._handle)
        self._ours, self._theirs = socket.socketpair()  # the system writes the number of each signal into one end
        self._theirs.setblocking(False)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._previous_fd = signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)
        self._listener.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._previous:
            return
        signal.set_wakeup_fd(self._previous_fd)
        self._theirs.send(bytes([_CLOSING]))
        self._listener.join()
        self._ours.close()
        self._theirs.close()
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._requested and os.environ.get("RANK", "0") == "0":
            say("\nstopping after this step and saving (Ctrl-C again leaves at once)")
        self._requested = number

    def _listen(self) -> None:
        asked: list[int] = []
        while True:
            self._ours.settimeout(self._deaf_seconds if asked and not self._seen else None)
            try:
                numbers = self._ours.recv(64)
            except TimeoutError:
                if not self._seen:
                    say("\nleaving at once: this process waits for what does not come; its checkpoints are whole")
                    os._exit(128 + asked[0])
                continue
            if not numbers or _CLOSING in numbers:
                return
            asked += [number for number in numbers if number in self._previous]
            if asked.count(signal.SIGINT) > 1:
                os._exit(128 + signal.SIGINT)
