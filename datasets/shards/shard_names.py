"""The names of the shards of an index."""

from __future__ import annotations

import itertools
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from leoclr.datasets.errors import DataError
from leoclr.datasets.images.file_names import is_image
from leoclr.datasets.shards.index_format import read_json

_ARCHIVE = re.compile(r"\.(zip|7z|rar|tgz|tar\.(gz|bz2|xz|zst|lz4|lzma|z))$", re.IGNORECASE)
_ENTRIES_LOOKED_AT = 64  # of a folder
_LEVELS = 3  # as in train/cat/1.png


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


def refuse_images_beside(folder: Path, shards: Sequence[Path]) -> None:
    """Raise DataError where folders of images lie beside tars without an index as a data set would: several of them,
    `train`, or one called like a tar. Nothing says then that the tars are the data, and not archives left there."""
    images = [path.name for path in _first_entries(folder) if path.is_dir() and _has_image(path, _LEVELS)]
    if len(images) > 1 or set(images) & {"train", *(shard.stem for shard in shards)}:
        raise DataError(
            f"{folder}: holds both tars ({shards[0].name}) and folders of images ({images[0]}); if the tars are "
            f"shards, name them, as in --data {shlex.quote(str(folder / '*.tar'))}, else move them away"
        )


def _has_image(folder: Path, levels: int) -> bool:
    entries = _first_entries(folder)
    if any(is_image(path.name) for path in entries):
        return True
    return levels > 1 and any(path.is_dir() and _has_image(path, levels - 1) for path in entries)


def _first_entries(folder: Path) -> list[Path]:
    """A few of what lies in a folder and is not hidden; nothing where that cannot be read."""
    try:
        with os.scandir(folder) as found:
            shown = (Path(entry.path) for entry in found if not entry.name.startswith("."))
            return sorted(itertools.islice(shown, _ENTRIES_LOOKED_AT))
    except OSError:
        return []
