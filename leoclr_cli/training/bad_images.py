"""Unreadable images: counted, listed in a file, and limited."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from leoclr.backends.distributed import gather
from leoclr.cli.terminal import warn
from leoclr.datasets.errors import DataError
from leoclr.datasets.wording import counted

_SHARD = re.compile(r" in (?:.*/)?([^/]+\.tar): ")
_NAMED = 3


class BadImages:
    """Each image counts once, however often it is met.

    Args:
        path: Where they are listed, one line each.
        samples: Images in the data set.
        limit: Share of them that may be bad.
        known: Those that a run met before it was resumed.
        speaks: Whether this process writes the list and warns.
    """

    def __init__(self, path: Path, samples: int, limit: float, known: Iterable[str], speaks: bool) -> None:
        self._path, self._samples, self._speaks = path, samples, speaks
        self._limit = math.ceil(limit * samples)
        self._known = set(known)

    def __len__(self) -> int:
        return len(self._known)

    def lines(self) -> list[str]:
        """What was wrong with which, sorted."""
        return sorted(self._known)

    def add(self, lines: Sequence[str]) -> None:
        """Count bad images; the same ones on all processes, so that all of them stop or none.

        Raises:
            DataError: There are more than the limit.
        """
        new = sorted(set(lines) - self._known)
        if not new:
            return
        if self._speaks:
            with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(f"{line}\n" for line in new)
            if not self._known:
                warn(f"skipped {new[0]}; this and others are listed in {self._path}")
        self._known.update(new)
        if len(self) > self._limit:
            raise DataError(
                f"{counted(len(self), 'image')} cannot be used, more than data.max_bad_samples allows "
                f"({self._limit} of {self._samples:,}): {self._by_shard()}; the last: {new[-1]}"
            )

    def _by_shard(self) -> str:
        shards = Counter(match[1] for line in self._known if (match := _SHARD.search(line)))
        named = ", ".join(f"{count} in {shard}" for shard, count in shards.most_common(_NAMED))
        return f"{named} and others in {counted(len(shards) - _NAMED, 'more shard')}" if len(shards) > _NAMED else named


def lines_of_all(lines: Sequence[str], accelerator: Accelerator) -> list[str]:
    """The lines of all processes, in their order. They travel as text in tensors: torch's way for objects is pickle."""
    if accelerator.num_processes == 1:
        return list(lines)
    end = b"\n"
    encoded = end.join(line.encode(errors="backslashreplace") for line in lines) + end
    longest = int(gather(torch.tensor([len(encoded)], device=accelerator.device)).max())
    padded = torch.tensor(list(encoded.ljust(longest, end)), dtype=torch.uint8, device=accelerator.device)
    together = bytes(gather(padded).tolist())
    return [line.decode() for line in together.split(end) if line]
