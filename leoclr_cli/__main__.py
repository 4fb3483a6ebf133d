"""Entry point of `leoclr` and `python -m leoclr.cli`.

Ctrl-C while modules are imported, which takes most of the first seconds, ends the process at once: an exception would
print a traceback, or be lost in the import of a library.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from types import FrameType
from typing import Any

_INTERRUPTED = 128 + signal.SIGINT
_IMPORT = "<frozen importlib._bootstrap>"


def _interrupted(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT:
            os._exit(_INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


def _open_standard_streams() -> None:
    """Where one is closed (`2>&-`, some schedulers) the next file would take its number, and what a library prints
    would end in that file."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdin = sys.stdin or open(0)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)


class _Lossy(io.FileIO):
    """A file descriptor that takes all bytes, and loses what cannot be written: a disk under a log that is full, or a
    reader that has gone, must not end what is told of. Libraries flush standard error without a thought of that."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return len(data)


def _lose_what_nobody_reads() -> None:
    if isinstance(sys.stderr, io.TextIOWrapper):  # and is nobody's replacement
        lossy = io.BufferedWriter(_Lossy(sys.stderr.fileno(), "wb", closefd=False))
        sys.stderr = io.TextIOWrapper(lossy, sys.stderr.encoding, "backslashreplace", line_buffering=True)


def _print_any_text() -> None:
    """Class names and file names are any text, and the terminal's encoding may have no letter for it; nor is every name
    of a file text."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _name_the_user() -> None:
    """torch asks for the user's name; containers run as numbers that have none."""
    import getpass

    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = str(os.getuid())


def main() -> None:
    """Run the command line of this process, and exit."""
    try:
        if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # else it is ignored, as by nohup
            signal.signal(signal.SIGINT, _interrupted)
        _open_standard_streams()
        _lose_what_nobody_reads()
        _print_any_text()
        _name_the_user()
        from leoclr.cli.commands.app import main as run

        run()
    except KeyboardInterrupt:
        os._exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
