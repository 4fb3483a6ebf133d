"""What lies beside local shards and may be data too, but is not read."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from leoclr.datasets.images.file_names import is_image
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.locate import data_folder, local_path, shard_paths
from leoclr.datasets.storage.addresses import is_remote
from leoclr.datasets.wording import counted, first_of, printable

_LIKE_SHARDS = re.compile(r"\.(tgz|tar\.[a-z0-9]{1,10})$", re.IGNORECASE)
_SHOWN = 10
_FOLDERS_LOOKED_INTO = 256
_FILES_LOOKED_AT = 64  # of a folder, before it counts for nothing


def not_read(index: Index, packed: Collection[str], named: Sequence[str] = ()) -> Iterator[str]:
    """A line for each kind: archives that look like shards, images that were packed, of which there may be more by now,
    and shards in the folders of a folder that was named.

    Args:
        packed: Names of images and of their folders that the shards hold.
        named: All data that the user named.
    """
    folders = sorted({shard.path.rpartition("/")[0] for shard in index.shards if not is_remote(shard.path)})
    beside = {f"{folder}/{entry.name}": entry for folder in folders for entry in _entries(folder)}
    if archives := sorted(name for name in beside if _LIKE_SHARDS.search(name)):
        which = counted(len(archives), "file")
        yield f"not read, {which} beside the shards that may be shards, compressed or incomplete: {_shown(archives)}"
    if images := sorted(name for name, entry in beside.items() if _is_packed(entry, packed)):
        yield f"not read, images beside the shards, which hold them as they were when packed: {_shown(images)}"
    if inner := _inner_shards(index, named):
        which = counted(sum(inner.values()), "shard")
        where = "a folder" if len(inner) == 1 else "folders"
        yield f"not read, {which} in {where} beside the shards, to be named too if this is data: {_shown([*inner])}"


def _inner_shards(index: Index, named: Sequence[str]) -> dict[str, int]:
    """The folders in those that were named and hold shards of `index`, with the number of shards in each. A level deep,
    and without folders that were named as well. Who names files means these alone."""
    local = [local_path(spec) for spec in named if not is_remote(spec)]
    whole = {data_folder(Path(path)) for path in local if os.path.isdir(path)}
    whole &= {Path(shard.path).parent for shard in index.shards if not is_remote(shard.path)}
    found: dict[str, int] = {}
    for folder in sorted(whole):
        inside = sorted(str(Path(entry.path)) for entry in _entries(str(folder)) if _is_folder(entry))
        for path in inside[:_FOLDERS_LOOKED_INTO]:
            if any(_is_shard(entry) for entry in _entries(path, _FILES_LOOKED_AT)):
                found[path] = sum(_is_shard(entry) for entry in _entries(path))
    if found:
        read = {os.path.realpath(path.parent) for spec in local for path in shard_paths(spec, whatever_index=True)}
        found = {path: count for path, count in found.items() if os.path.realpath(path) not in read}
    return found


def _is_shard(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(".tar") and not _is_folder(entry)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_packed(entry: os.DirEntry[str], packed: Collection[str]) -> bool:
    """Whether this is an image, or a folder with one among its first files, under a name of `packed`."""
    if is_image(entry.name):
        return entry.name.rpartition(".")[0] in packed
    return entry.name in packed and any(is_image(file.name) for file in _entries(entry.path, _FILES_LOOKED_AT))


def _entries(folder: str, most: int | None = None) -> list[os.DirEntry[str]]:
    """What lies in a folder and is not hidden, at most so many; nothing where that cannot be read."""
    try:
        with os.scandir(folder or ".") as found:
            return [entry for entry in itertools.islice(found, most) if not entry.name.startswith(".")]
    except OSError:
        return []


def _shown(names: Sequence[str]) -> str:
    return printable(first_of(names, _SHOWN))
