"""Words of messages that every layer prints."""

from __future__ import annotations


def counted(number: int, singular: str, plural: str = "") -> str:
    """`1 image`, `1,234 images`.

    Args:
        plural: The singular with an s if left out.
    """
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"
