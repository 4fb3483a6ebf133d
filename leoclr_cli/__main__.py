"""The program `leoclr`, also as `python -m leoclr.cli`.

Ctrl-C while modules are imported, which takes most of the first seconds, ends the process at once: an exception would
print a traceback, or be lost in the import of a library.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

_INTERRUPTED = 128 + signal.SIGINT
_IMPORT = "<frozen importlib._bootstrap>"


def _interrupted(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT:
            os._exit(_INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line of this process, and exit."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # else it is ignored, as by nohup
        signal.signal(signal.SIGINT, _interrupted)
    try:
        from leoclr.cli.commands.app import main as run

        run()
    except KeyboardInterrupt:
        os._exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
