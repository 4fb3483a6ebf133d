"""Wording of messages shared by all layers."""

from __future__ import annotations

import re
from collections.abc import Sequence

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def counted(number: int, singular: str, plural: str = "") -> str:
    """`1 image`, `1,234 images`.

    Args:
        plural: The singular with an s if left out.
    """
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def first_of(names: Sequence[str], most: int, count: int | None = None) -> str:
    """`a, b, c and 4 more`.

    Args:
        count: How many there are, where `names` has fewer.
    """
    rest = (len(names) if count is None else count) - most
    return ", ".join(names[:most]) + (f" and {rest:,} more" if rest > 0 else "")


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    if isinstance(error, KeyError):  # whose text is the key alone
        return f"{type(error).__name__}: {error}"
    return (str(error).splitlines() or [type(error).__name__])[0]


def in_a_line(error: Exception, most: int = 300) -> str:
    """All that an error says, on one line of at most so many characters, or its kind where it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def in_bytes(number: float) -> str:
    """`12 kB`, `1.5 GB`: powers of 1000, two digits or more."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            break
        number, unit = number / 1000, {"B": "kB", "kB": "MB", "MB": "GB", "GB": "TB"}[unit]
    return f"{number:.0f} {unit}" if number >= 10 or unit == "B" else f"{number:.1f} {unit}"


def printable(text: str) -> str:
    """A name of a file as it is printed: on one line, whatever its bytes are."""
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def aligned(lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """Cells in columns as wide as their widest, the first `left` columns to the left and the others to the right."""
    columns = []
    for number, column in enumerate(zip(*lines, strict=True)):
        width = max(map(len, column))
        columns.append([cell.ljust(width) if number < left else cell.rjust(width) for cell in column])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))
