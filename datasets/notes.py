"""Notes on skipped and changed files: a count and the first file of each kind."""

from __future__ import annotations

from collections.abc import Iterator

from leoclr.datasets.wording import printable


class Notes:
    """Reasons, each with the number of names it holds for and the first of them."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, reason: str, name: str, count: int = 1) -> None:
        """Count `name`, or as many as `count` of which it is the first."""
        known, first = self._found.get(reason, (0, name))
        self._found[reason] = (known + count, first)

    def update(self, other: Notes) -> None:
        """Take over all of another's."""
        for reason, (count, first) in other._found.items():
            self.add(reason, first, count)

    def found(self) -> dict[str, tuple[int, str]]:
        """Count and first name by reason."""
        return dict(self._found)

    def counts(self) -> dict[str, int]:
        """By reason."""
        return {reason: count for reason, (count, _) in self._found.items()}

    def lines(self) -> Iterator[str]:
        """`REASON: COUNT, FIRST first`, one for each reason."""
        for reason, (count, first) in self._found.items():
            yield f"{printable(reason)}: {count:,} ({printable(first)}{' first' if count > 1 else ''})"
