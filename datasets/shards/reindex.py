"""Index existing shards of any tool, with checksums."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from leoclr.datasets.errors import DataError
from leoclr.datasets.files import LINE_END, ignore
from leoclr.datasets.json_text import parse_json_text
from leoclr.datasets.shards.check import sha256_of
from leoclr.datasets.shards.folder_index import missing_message
from leoclr.datasets.shards.index import NO_LABEL, SUFFIX, Index
from leoclr.datasets.shards.joining import joined
from leoclr.datasets.shards.locate import local_path, shard_addresses, shard_paths
from leoclr.datasets.shards.sample_members import BY_SUFFIX, Members
from leoclr.datasets.shards.scan import build_index, index_file
from leoclr.datasets.shards.shard_names import common_name, without_shards
from leoclr.datasets.shards.tar import REFUSED_IN_NAMES
from leoclr.datasets.storage.addresses import folder_of, is_remote, name_of
from leoclr.datasets.storage.block_cache import BlockCache
from leoclr.datasets.storage.opening import as_file

_MOST_NAME_BYTES = 1 << 25  # of a file of class names: more than as many names as an index takes


def find_shards(specs: Sequence[str]) -> list[Path]:
    """All shards that `specs` name (as after `--data`); DataError with every name that is missing, or for none."""
    paths = [path for spec in specs for path in shard_paths(spec, whatever_index=True)]
    if missing := [path for path in paths if not path.is_file()]:
        raise DataError(missing_message(missing, len(paths)))
    if not paths:
        raise DataError(f"{', '.join(specs)}: no .tar shards there; {without_shards(Path(local_path(specs[0])))}")
    return paths


def write_indexes(
    paths: Iterable[Path],
    classes: Sequence[str] = (),
    advance: Callable[[int], None] = ignore,
    which: Members | None = None,
) -> dict[Path, Index]:
    """Index the shards of each folder and save the index there; one of the same name is replaced.

    Args:
        classes: Class names by number, where they are known. Without them those of the index before are kept, where it
            was of the same shards: these hold numbers alone.
        advance: Called with the bytes of each shard that is done.
        which: Which members are images and labels. None: those that the index before records, where it was of the same
            shards.

    Raises:
        DataError: A shard cannot be indexed, or an index cannot be written.
    """
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for path in dict.fromkeys(paths):
        by_folder[path.parent].append(path)
    for folder in by_folder:  # before hours of reading
        if not os.access(folder, os.W_OK):
            raise DataError(f"{folder}: the index lies beside its shards, and nothing can be written there")
    written = {}
    for folder, shards in by_folder.items():
        path = folder / f"{common_name([shard.name for shard in shards])}{SUFFIX}"
        before = _index_before(path, shards)
        members = which or (before.shards[0].members if before else BY_SUFFIX)
        index = build_index(shards, classes=classes, advance=advance, which=members)
        if before:
            names = before.classes if not index.classes and not classes else ()
            fitting = index.label.max(initial=NO_LABEL) < len(names)
            index = replace(index, classes=names if fitting else index.classes, made=before.made)
        _save(index, path)
        written[path] = index
    return written


def _save(index: Index, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        index.save(path)
    except OSError as error:
        raise DataError(f"{path}: the index cannot be written ({error.strerror or error})") from None


def _index_before(path: Path, shards: Sequence[Path]) -> Index | None:
    """The index that is there, if it is of the same shards as far as names and sizes tell."""
    try:
        before = Index.load(path)
    except (DataError, OSError):
        return None
    same = [(shard.path, shard.bytes) for shard in before.shards] == [(str(p), p.stat().st_size) for p in shards]
    return before if same and shards else None


def write_remote_index(
    specs: Sequence[str],
    output: Path,
    classes: Sequence[str] = (),
    advance: Callable[[int], None] = ignore,
    which: Members = BY_SUFFIX,
) -> dict[Path, Index]:
    """Index the shards that addresses name, all in one folder of a server, and save the index in the folder `output`,
    to be put beside them.

    Args:
        advance: Called with the bytes of each shard that is done.
        which: Which members are images and labels.
    """
    from leoclr.datasets.shards.remote import cached_file  # not for those who read files alone

    if refused := [spec for spec in specs if not is_remote(spec) or spec.endswith(SUFFIX)]:
        raise DataError(f"{refused[0]}: --output is for shards on a server; the index of files lies beside them")
    addresses = [address for spec in specs for address in shard_addresses(spec)]
    if len(folders := sorted({folder_of(address) for address in addresses})) > 1:
        raise DataError(f"the shards lie in {len(folders)} folders ({', '.join(folders[:3])}); index one at a time")
    cache = BlockCache()
    cache.prepare()
    parts = []
    for address in addresses:
        with closing(cached_file(address, cache)) as storage:
            digest = sha256_of(storage)
            part = index_file(as_file(storage), address, checksum=True, which=which)
        parts.append(replace(part, shards=(replace(part.shards[0], sha256=digest),)))
        advance(storage.size())
    index = joined(parts, classes)
    path = output / f"{common_name([name_of(address) for address in addresses])}{SUFFIX}"
    _save(index, path)
    return {path: index}


def read_classes(path: Path) -> tuple[str, ...]:
    """Class names from a text file, one a line, or a JSON list; the class number is the place from 0."""
    try:
        with path.open("rb") as file:  # which may be a device, or a shard named by mistake
            data = file.read(_MOST_NAME_BYTES + 1)
        text = data[:_MOST_NAME_BYTES].decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: class names cannot be read ({error})") from error
    if len(data) > _MOST_NAME_BYTES:
        raise DataError(f"{path}: has more than {_MOST_NAME_BYTES:,} bytes: no list of class names")
    names = _names_of_json(path, text)
    if names is None:
        names = tuple(LINE_END.split(text))
        names = names if names[-1] else names[:-1]  # the last line has an end, too
    if fault := _fault(names):
        raise DataError(f"{path}: expected one class name a line, each different and none empty, but {fault}")
    if refused := [name for name in names if REFUSED_IN_NAMES.search(name)]:
        raise DataError(f"{path}: a class name is text without control characters, not {refused[0]!a}")
    return names


def _fault(names: Sequence[str]) -> str:
    """What is wrong with a list of names, which number the classes by their places; nothing where all is well."""
    places: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if not name.strip():
            return f"name {number:,} is empty"
        if places.setdefault(name, number) != number:
            return f"name {number:,}, {name!a}, is name {places[name]:,} again"
    return "" if names else "there is none"


def _names_of_json(path: Path, text: str) -> tuple[str, ...] | None:
    """The names of a JSON list; None where the text is no JSON list or object, as lines that begin with a bracket."""
    try:
        value = parse_json_text(text.encode()) if text.lstrip()[:1] in ("[", "{") else None
    except ValueError:
        return None
    if value is not None and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        raise DataError(f"{path}: expected one class name a line, or a JSON list of them in the order of their numbers")
    return None if value is None else tuple(value)
