"""Tell a person that a server does not answer, once for each attempt, however many threads and processes ask it."""

from __future__ import annotations

import mmap
import struct
import sys
import time
from contextlib import suppress

_FORGOTTEN_SECONDS = 20.0  # an attempt is told again after this time without any
_CLEAR_LINE = "\r\x1b[2K"  # a progress bar that is drawn there comes back below the message
_STATE = struct.Struct("dq")  # when something was told, and the attempt
_told = mmap.mmap(-1, _STATE.size)  # shared with the loader processes, which are forked later


def tell_of_attempt(name: str, reason: str, attempt: int, attempts: int, wait: float) -> None:
    """Say on standard error that a request failed and is made again, unless another thread or process did so.

    Args:
        name: The address as it may be shown.
        attempt: The number of the coming attempt, from 1.
        wait: Seconds until then.
    """
    now = time.monotonic()
    when, told = _STATE.unpack(_told[:])
    if attempt <= told and now - when < _FORGOTTEN_SECONDS:
        return
    _told[:] = _STATE.pack(now, attempt)
    line = f"{name}: not answering ({reason}), attempt {attempt} of {attempts} in {max(1, round(wait))} s\n"
    with suppress(OSError, ValueError, AttributeError):  # nobody listens any more
        sys.stderr.write(_CLEAR_LINE + line if sys.stderr.isatty() else line)
        sys.stderr.flush()
