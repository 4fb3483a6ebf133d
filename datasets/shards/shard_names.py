"""The names of the shards of an index."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from leoclr.datasets.shards.index_format import read_json

_ARCHIVE = re.compile(r"\.(zip|7z|rar|tgz|tar\.(gz|bz2|xz|zst|lz4|lzma|z))$", re.IGNORECASE)


def common_name(names: Sequence[str]) -> str:
    """What the index of these shards is called: the start that their names share, without the number."""
    start = os.path.commonprefix([Path(name).stem for name in names])
    return start.rstrip("0123456789").rstrip("-_.") or "shards"


def shard_names(path: Path) -> list[str]:
    """The file names of the shards that an index file lists, without reading its columns."""
    return [shard.name for shard in read_json(path).shards]


def without_shards(folder: Path) -> str:
    """What to do about a folder in which no shards are."""
    found = sorted(path for place in (folder, folder / "train") if place.is_dir() for path in place.iterdir())
    archive = next((path for path in found if _ARCHIVE.search(path.name)), None)
    if archive is None:
        return f"`{shlex.join(('leoclr', 'shard', str(folder), 'OUT'))}` packs images into shards"
    return (
        f"{archive} is not opened: uncompress it if it is a shard; unpack it if it holds images, and name their folder"
    )
