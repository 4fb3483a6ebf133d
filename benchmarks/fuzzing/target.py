"""A kind of file to be fuzzed, and changes to its inputs that bytes alone would hardly come upon."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leoclr.datasets.errors import LeoclrError


@dataclass(frozen=True)
class Target:
    """One kind of file.

    Attributes:
        attempt: Reads an input, with a folder to write to; returns where it is read or refused as it should be.
        seeds: Valid inputs.
        longest: Bytes of an input.
        json: Where JSON lies in an input: start and end of the part whose values are to be changed besides bytes.
    """

    attempt: Callable[[bytes, Path], None]
    seeds: Callable[[], list[bytes]]
    longest: int = 8192
    json: Callable[[bytes], tuple[int, int]] | None = None

    def mutated(self, data: bytes, seed: int) -> bytes | None:
        """The input with a value of its JSON replaced, removed or repeated; None where it holds none."""
        if self.json is None:
            return None
        start, end = self.json(data)
        dice = random.Random(seed)
        lines = data[start:end].splitlines() if data[start : start + 9].startswith(b'{"step":') else [data[start:end]]
        line = dice.randrange(max(1, len(lines)))
        try:
            content = json.loads(lines[line])
        except (ValueError, RecursionError, IndexError):
            return None
        lines[line] = json.dumps(_changed(content, dice), indent=1 if len(lines) == 1 else None).encode()
        return data[:start] + b"\n".join(lines) + data[end:]


_ODD: tuple[Any, ...] = (None, True, "", "a", "\x1b[2J", "\ud800", "..", "/", -1, 0, 1, 2**31, 2**63, 2**64, 10**400)
_ODD += (0.5, 1e308, float("nan"), float("inf"), [], [[]], {}, {"a": 1}, ["a"], [1, 2], "2026-01-01T00:00:00")


def _changed(content: Any, dice: random.Random) -> Any:
    """The value with one change somewhere within."""
    if isinstance(content, dict | list) and content and dice.random() < 0.85:
        key = dice.choice(list(content) if isinstance(content, dict) else range(len(content)))
        kind = dice.randrange(8)
        changed: Any = content.copy()
        if kind == 0:
            del changed[key]
        elif kind == 1 and isinstance(content, list):
            changed.insert(key, dice.choice(content))
        elif kind == 1:
            changed[dice.choice(list(content))] = content[key]
        else:
            changed[key] = _changed(content[key], dice)
        return changed
    return dice.choice(_ODD)


def refusable(attempt: Callable[[bytes, Path], None]) -> Callable[[bytes, Path], None]:
    """The same, where a refusal in one line is as good as a result."""

    def tried(data: bytes, folder: Path) -> None:
        try:
            attempt(data, folder)
        except LeoclrError as error:
            lines = str(error).split("\n")
            assert all(line.startswith("  ") for line in lines[1:]), f"no single line: {error!s:.300}"

    return tried
