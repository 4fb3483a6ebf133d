"""The index of a folder's shards: read, combined or created, and verified to be unchanged."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from leoclr.datasets.errors import DataError
from leoclr.datasets.files import did_you_mean
from leoclr.datasets.shards.concatenation import concatenate
from leoclr.datasets.shards.index import SUFFIX, Index
from leoclr.datasets.shards.scan import build_index
from leoclr.datasets.shards.shard_names import common_name
from leoclr.datasets.wording import first_of


def open_group(paths: list[Path], advance: Callable[[int], None]) -> Index:
    """The index of shards that lie in one folder, or the index file itself.

    Args:
        advance: Called with bytes while shards are being indexed.

    Raises:
        DataError: The indexes that are there have different classes, or list a part of the shards and name its classes.
    """
    if paths[0].name.endswith(SUFFIX):
        return Index.load(paths[0])
    folder, wanted = paths[0].parent, [path.name for path in paths]
    places: dict[str, tuple[Index, int]] = {}
    for index_path in sorted(folder.glob(f"*{SUFFIX}")):
        index = Index.load(index_path)
        numbers = {Path(shard.path).name: number for number, shard in enumerate(index.shards)}
        if all(name in numbers for name in wanted):
            if wanted == list(numbers):
                return index
            return index.with_shards([numbers[name] for name in wanted])
        places |= {name: (index, number) for name, number in numbers.items()}
    known = [name for name in wanted if name in places]
    if len(known) == len(wanted):  # class names that differ are refused here
        return concatenate([index.with_shards([number]) for index, number in (places[name] for name in wanted)])
    if any(places[name][0].classes for name in known):
        unknown = next(name for name in wanted if name not in places)
        command = shlex.join(("leoclr", "index", str(folder)))
        raise DataError(
            f"{folder}: its indexes list {len(known)} of these {len(wanted)} shards, and not {unknown}; the numbers of "
            f"classes may differ. Keep data sets in folders of their own, or make one index: {command}"
        )
    index = build_index(paths, checksum=False, advance=advance)
    index_path = folder / f"{common_name(wanted)}{SUFFIX}"
    if not index_path.exists():
        with suppress(OSError):  # a folder that cannot be written, or is full: the index is made again next time
            index.save(index_path)
    return index


def check_files(index: Index) -> None:
    """Raise DataError where shards have gone since they were indexed, or are others."""
    missing = [Path(shard.path) for shard in index.shards if not os.path.isfile(shard.path)]
    if missing:
        raise DataError(missing_message(missing, len(index.shards)))
    for shard in index.shards:
        size = os.path.getsize(shard.path)
        if size != shard.bytes:
            how = "truncated or replaced" if size < shard.bytes else "replaced"
            raise DataError(
                f"{shard.path} has {size:,} bytes where its index says {shard.bytes:,}: it was {how}; "
                "restore it, or run `leoclr index` on the data again"
            )
    _compare_younger(index)


def _compare_younger(index: Index) -> None:
    """Read the headers of shards that are younger than the indexes beside them: one that was written anew may have the
    size of before, since tars are padded. Those found as they were are not looked at again."""
    from leoclr.datasets.shards.check import difference_of_members  # which hardly any data needs

    indexes = {
        folder: list(folder.glob(f"*{SUFFIX}")) for folder in {Path(shard.path).parent for shard in index.shards}
    }
    newest = {
        folder: max((path.stat().st_mtime_ns for path in paths), default=None) for folder, paths in indexes.items()
    }
    compared = set[Path]()
    for number, shard in enumerate(index.shards):
        path = Path(shard.path)
        indexed = newest[path.parent]
        if indexed is None or path.stat().st_mtime_ns <= indexed:
            continue
        if what := difference_of_members(index, number):
            raise DataError(f"{path}: {what}; restore it, or run `leoclr index` on the data again")
        compared.add(path.parent)
    for folder in compared:
        for path in indexes[folder]:
            with suppress(OSError):  # a folder that cannot be written: they are compared again next time
                os.utime(path)


def missing_message(missing: Sequence[Path], total: int) -> str:
    """What to say of missing shards: their names, but for a great many."""
    shown = first_of([str(path) for path in missing], 20)
    home = "; no shell replaces ~ within quotes" if str(missing[0]).startswith("~") else ""
    if total == 1:
        return f"{missing[0]}: no such file or folder{home or did_you_mean(missing[0])}"
    return f"{len(missing)} of {total} shards are missing: {shown}{home}"
