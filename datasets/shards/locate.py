"""Find the index for the values of `--data`.

Accepted, any number of them: a shard, a brace range (`imagenet-{000..999}.tar`, also as `<000..999>` where braces are
awkward to quote), alternatives (`{train,val}.tar`), a glob, a folder of shards, an index file. The same as addresses
(https://, http://, s3://), without globs and folders, which a server cannot list. Nothing is ever run: `pipe:`, `::`
and `${...}`, which webdataset would act on, are refused. All missing shards are named at once.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from leoclr.datasets.errors import DataError
from leoclr.datasets.files import ignore
from leoclr.datasets.shards.concatenation import concatenate
from leoclr.datasets.shards.folder_index import check_files, missing_message, open_group
from leoclr.datasets.shards.index import COLUMNS_SUFFIX, SUFFIX, Index
from leoclr.datasets.shards.shard_names import refuse_images_beside, shard_names, without_shards
from leoclr.datasets.storage.addresses import check_address, is_remote, scheme_of, shown
from leoclr.datasets.storage.block_cache import BlockCache

MAX_EXPANSION = 1_000_000
_SPLITS = ("val", "valid", "validation", "test")
_TARS = "*.[tT][aA][rR]"
_REFUSED = ("pipe:", "::", "${")
_RANGE = re.compile(r"([0-9]{1,18})\.\.([0-9]{1,18})")


def open_data(specs: Sequence[str], advance: Callable[[int], None] = ignore, cache: BlockCache | None = None) -> Index:
    """The index of the data that `specs` name, in their order.

    Shards without an index are indexed now (headers only, so seconds per terabyte of large images), and the index is
    saved beside them where that can be written.

    Args:
        cache: Where blocks of remote shards are kept; by default in the user's cache folder.
        advance: Called with bytes while shards are being indexed.

    Raises:
        DataError: Nothing was named or found, shards are missing, damaged, named twice, or changed since indexed.
    """
    if not specs:
        raise DataError("no data was named; give a folder of images, shards or an index file with --data")
    parts = []
    for remote, group in itertools.groupby(specs, key=is_remote):
        together = list(group)
        parts.append(_open_addresses(together, advance, cache) if remote else _open_files(together, advance))
    index = concatenate(parts)
    _refuse_repeated([shard.path for shard in index.shards])
    if not len(index):
        raise DataError(f"{', '.join(specs)}: the shards hold no images")
    return index


def indexed_data(specs: Sequence[str]) -> list[Index]:
    """The indexes of the data as they are, one for each folder or index file, without a look at the shards."""
    paths = [path for spec in specs if not is_remote(spec) for path in shard_paths(spec)]
    indexes = [open_group(list(group), ignore) for _, group in itertools.groupby(paths, key=_index_or_folder)]
    if addresses := [address for spec in specs if is_remote(spec) for address in shard_addresses(spec)]:
        from leoclr.datasets.shards.remote import remote_indexes

        indexes += remote_indexes(addresses, BlockCache(), ignore)
    return indexes


def with_all_splits(specs: Sequence[str]) -> list[str]:
    """The same, with a folder that holds splits and no shards of its own replaced by its splits: all that hold shards,
    or an index that lists some.

    Raises:
        DataError: A folder holds neither.
    """
    found: list[str] = []
    for spec in specs:
        refuse_commands(spec)
        folder = Path(local_path(spec))
        if is_remote(spec) or not folder.is_dir() or _shards_of_folder(folder):
            found.append(spec)
            continue
        splits = sorted(str(path) for path in folder.iterdir() if path.is_dir() and _shards_of_folder(path))
        if not splits:
            raise DataError(f"{spec}: no .tar shards there; {without_shards(folder)}")
        found += splits
    return found


def check_specs(specs: Sequence[str]) -> None:
    """Raise DataError for all that is wrong with the names alone, every missing file included. Opens no shard and
    asks no server."""
    for spec in specs:
        if is_remote(spec):
            shard_addresses(spec)
    _existing_paths([spec for spec in specs if not is_remote(spec)])


def existing_data(specs: Sequence[str] | None) -> None:
    """Raise DataError where one of the names of data is a plain path and nothing is there. Looks no further."""
    for spec in specs or ():
        refuse_commands(spec)
        if not is_remote(spec) and not glob.has_magic(spec) and not any(character in spec for character in "{}<"):
            if not os.path.exists(path := local_path(spec)):
                raise DataError(missing_message([Path(path)], 1))


def shard_addresses(spec: str) -> list[str]:
    """The shards or the index that an address with braces names, without asking the server."""
    refuse_commands(spec)
    check_address(spec)
    addresses = expand_braces(spec) if any(character in spec for character in "{<") else [spec]
    for address in addresses:
        if not address.endswith((".tar", SUFFIX)) or glob.has_magic(address.partition("://")[2].partition("/")[2]):
            raise DataError(
                f"{address}: a server cannot list its shards; name them as in https://HOST/x-{{000..999}}.tar, or "
                f"name their index, https://HOST/x{SUFFIX}"
            )
    return addresses


def shard_paths(spec: str, whatever_index: bool = False) -> list[Path]:
    """The shards that one specification names, missing ones included, without opening any.

    Args:
        whatever_index: Whether damaged indexes of a folder count for nothing, as they are to be replaced.
    """
    refuse_commands(spec)
    if is_remote(spec):
        raise DataError(f"{shown(spec)}: give the folder for their index with --output")
    spec = local_path(spec)
    path = Path(spec)
    if os.path.isdir(spec):  # unlike pathlib's, these take a name that is too long for one that is not there
        folder = data_folder(path)
        shards = _shards_of_folder(folder, whatever_index)
        if shards and not whatever_index and not any(folder.glob(f"*{SUFFIX}")):
            refuse_images_beside(folder, shards)
        return shards
    if os.path.exists(spec):
        return [path]
    if any(character in spec for character in "{}<"):
        return [Path(name) for name in expand_braces(spec)]
    if glob.has_magic(spec):
        found = sorted(name for name in glob.glob(spec) if not name.endswith((SUFFIX, COLUMNS_SUFFIX)))
        if not found:
            raise DataError(f"{spec}: no file matches")
        return [Path(name) for name in found]
    return [path]


def sibling_split(specs: Sequence[str]) -> tuple[str, ...]:
    """The held-out split beside the training data: the folder `val`, else `test`; () where there is none."""
    for spec in specs:
        for folder in () if is_remote(spec) else _folders_of(local_path(spec)):
            for name in _SPLITS:
                if folder.name != name and any((folder.parent / name).glob(_TARS)):
                    return (str(folder.parent / name),)
    return ()


def absolute(specs: Sequence[str]) -> tuple[str, ...]:
    """The same data by names that hold in any working directory."""
    return tuple(spec if is_remote(spec) else _absolute(local_path(spec)) for spec in specs)


def _absolute(path: str) -> str:
    if all(os.path.isabs(each) for each in expand_braces(path)):  # also "{/data/a,/data/b}/x.tar"
        return path
    return os.path.abspath(path)


def local_path(spec: str) -> str:
    """A path as it is; a file:// address as a path."""
    return unquote(urlsplit(spec).path) if scheme_of(spec) == "file" else spec


def refuse_commands(spec: str) -> None:
    """Raise DataError for what webdataset would run, chain or substitute, and for addresses that nothing reads."""
    if not spec.strip():
        raise DataError("no data was named (an empty name); give a folder of images, shards or an index file")
    for token in _REFUSED:
        if token in spec:
            raise DataError(f"{shown(spec)}: {token!r} is refused: data is named by files, and nothing is run")
    scheme = scheme_of(spec)
    if scheme == "hf":
        raise DataError(f"{shown(spec)}: hf:// is not read; give the files' https://huggingface.co/... addresses")
    if scheme and scheme != "file" and not is_remote(spec):
        raise DataError(f"{shown(spec)}: {scheme}:// is not read; give files, https://, http:// or s3:// addresses")
    if scheme == "file" and urlsplit(spec).netloc not in ("", "localhost"):
        raise DataError(f"{shown(spec)}: a file:// address names a file of this machine, as in file:///data/x.tar")


def expand_braces(pattern: str) -> list[str]:
    """Expand `{000..999}` (zero-padded as written), `<000..999>` and `{a,b}`; at most a million names."""
    pattern = re.sub(r"<([0-9]+\.\.[0-9]+)>", r"{\1}", pattern)
    pieces = re.split(r"\{([^{}]*)\}", pattern)
    if any(character in piece for piece in pieces[::2] for character in "{}"):
        raise DataError(f"{pattern}: the braces are not balanced, or are nested")
    choices = [[piece] if number % 2 == 0 else _alternatives(piece, pattern) for number, piece in enumerate(pieces)]
    total = 1
    for choice in choices:
        total *= len(choice)
        if total > MAX_EXPANSION:
            raise DataError(f"{pattern}: names more than {MAX_EXPANSION:,} shards")
    return ["".join(parts) for parts in itertools.product(*choices)]


def _alternatives(inside: str, pattern: str) -> list[str]:
    if match := _RANGE.fullmatch(inside):
        first, last = match.groups()
        if not int(first) <= int(last) < int(first) + MAX_EXPANSION:
            raise DataError(f"{pattern}: the range {inside} must go up, by less than {MAX_EXPANSION:,}")
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        return [str(number).zfill(width) for number in range(int(first), int(last) + 1)]
    if "," in inside:
        return inside.split(",")
    raise DataError(f"{pattern}: {{{inside}}} is neither a range such as {{000..999}} nor alternatives such as {{a,b}}")


def _open_files(specs: Sequence[str], advance: Callable[[int], None]) -> Index:
    paths = _existing_paths(specs)
    _refuse_repeated([str(path) for path in paths])
    parts = [open_group(list(group), advance) for _, group in itertools.groupby(paths, key=_index_or_folder)]
    index = concatenate(parts)
    check_files(index)
    return index


def _open_addresses(specs: Sequence[str], advance: Callable[[int], None], cache: BlockCache | None) -> Index:
    from leoclr.datasets.shards.remote import open_remote  # not for those who read files alone

    addresses = [address for spec in specs for address in shard_addresses(spec)]
    _refuse_repeated(addresses)
    return open_remote(addresses, cache or BlockCache(), advance)


def _existing_paths(specs: Sequence[str]) -> list[Path]:
    """The shards and index files that all specifications name; DataError for the missing ones, all at once."""
    paths: list[Path] = []
    for spec in specs:
        refuse_commands(spec)
        named = [Path(local_path(spec))] if spec.endswith(SUFFIX) else shard_paths(spec)
        if not named:
            pack = shlex.join(("leoclr", "shard", spec, "OUT"))
            raise DataError(f"{spec}: the folder holds no .tar shards; pack images with `{pack}`")
        paths += named
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise DataError(missing_message(missing, len(paths)))
    return paths


def _index_or_folder(path: Path) -> Path:
    """What paths share that are opened together: shards one behind the other in a folder take one index."""
    return path if path.name.endswith(SUFFIX) else path.parent


def _refuse_repeated(paths: Sequence[str]) -> None:
    seen: set[str] = set()
    for path in paths:
        name = path if is_remote(path) else os.path.realpath(path)
        if name in seen:
            raise DataError(f"{path} is named twice; its images would count double")
        seen.add(name)


def _shards_of_folder(folder: Path, whatever_index: bool = False) -> list[Path]:
    """All tars, and what the indexes beside them list: a shard that has gone must be missed, not passed over."""
    listed = set[Path]()
    for index in folder.glob(f"*{SUFFIX}"):
        try:
            listed |= {folder / name for name in shard_names(index)}
        except DataError:
            if not whatever_index:
                raise
    return sorted(listed | {shard for shard in folder.glob(_TARS) if not shard.name.startswith(".")})


def data_folder(folder: Path) -> Path:
    """A folder of splits stands for its training split."""
    train = folder / "train"
    return train if train.is_dir() and not any(folder.glob(_TARS)) else folder


def _folders_of(spec: str) -> Iterator[Path]:
    path = Path(spec)
    if os.path.isdir(spec):
        yield data_folder(path).absolute()
    else:
        yield path.absolute().parent
