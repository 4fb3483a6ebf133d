"""What Pillow and its libtiff print of damaged files, kept from the terminal.

What is wrong with a file is in the exception, which commands show as one line. libtiff also prints a line of its own to
standard error, past Python, and Pillow logs some, which Python prints where nobody has set up logging.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging


def silence() -> None:
    """Take the handlers from Pillow's libtiff where it is a library of its own on Linux; elsewhere its lines remain."""
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    with contextlib.suppress(OSError, AttributeError, IndexError):
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            places = {line.split(maxsplit=5)[5].rstrip("\n") for line in maps if "/libtiff" in line}
        for place in places:
            library = ctypes.CDLL(place)  # which is loaded already
            library.TIFFSetErrorHandler(None)
            library.TIFFSetWarningHandler(None)
