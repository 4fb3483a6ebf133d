"""Folders of images where shards are expected: packed once into the user's cache, then found there.

    CACHE/packed/photos-1f0c2a9d4e/     for one folder, by its real path
        lock                            held while somebody looks for shards here, or packs
        5f2b.../                        the shards, by the folder's listing: names, sizes and times of its files
        5f2b.../listing.json            where they come from; held (shared) by the processes that read the shards

The packing is that of `leoclr shard` without options, so that shards made by it later are the same data for a run. The
shards get their place by a rename. Shards of an older listing are removed once no process reads them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from leoclr.cli.packing import pack_source, shard_name
from leoclr.cli.terminal import progress, say, warn
from leoclr.datasets.errors import DataError, RunError
from leoclr.datasets.files import cache_root, fsync_folder, write_atomic
from leoclr.datasets.images.file_names import is_image
from leoclr.datasets.json_text import parse_json_text
from leoclr.datasets.packing.folder_source import FolderSource
from leoclr.datasets.packing.journal import kept_shards
from leoclr.datasets.packing.pack import PackedSplit, PackingRecipe
from leoclr.datasets.packing.staging import STAGING_NAME
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.locate import check_specs, local_path, open_data, refuse_commands, shard_paths
from leoclr.datasets.shards.shard_names import without_shards
from leoclr.datasets.storage.addresses import is_remote
from leoclr.datasets.storage.block_cache import BlockCache
from leoclr.datasets.wording import counted, in_bytes

_FORMAT = 1
_LISTING, _LOCK, _PARTIAL = "listing.json", "lock", ".partial"
_OPTIONS = ("--layout", "--split-names", "--encoding", "--max-bad", "--levels")  # that an error of packing may name
_MOST_OF_THE_DISK = 0.9
_in_use: dict[Path, int] = {}  # descriptors of the listings of shards that this process reads


class Listing(NamedTuple):
    """What a folder of images holds.

    Attributes:
        digest: Of names, sizes and times of modification.
        bytes: Of all files together.
    """

    digest: str
    images: int
    bytes: int


def as_shards(specs: Sequence[str], announce: bool = True) -> tuple[str, ...]:
    """The same data, with the cached shards in place of each folder of images. What is not cached is packed now.

    Args:
        announce: Whether to say where shards lie that are cached already.

    Raises:
        DataError: A folder holds neither shards nor images, can be read in two ways, or has no room in the cache.
        RunError: The cache cannot be written.
    """
    return tuple(_cached(spec, announce) if is_image_folder(spec) else spec for spec in specs)


def shards_of_run(specs: Sequence[str], flag: str, announce: bool = True) -> tuple[str, ...]:
    """`as_shards` for the data that a run names, which may have moved since.

    Args:
        flag: Of the command, that names other data instead.

    Raises:
        DataError, RunError: As `as_shards`, and where files are missing.
    """
    try:
        shards = as_shards(specs, announce)
        check_specs(shards)
    except DataError as error:
        raise DataError(f"{error}; {flag} says where they have moved to") from None
    return shards


def open_with_progress(shards: Sequence[str], cache: BlockCache | None = None) -> Index:
    """`open_data` with a progress bar while shards are indexed; it raises the same."""
    with progress("reading shard headers", None, "bytes") as advance:
        return open_data(shards, advance, cache)


def is_image_folder(spec: str) -> bool:
    """Whether a value of `--data` is a folder without shards, which is one of images or an error."""
    if is_remote(spec):
        return False
    refuse_commands(spec)
    return os.path.isdir(local_path(spec)) and not shard_paths(spec)


def list_folder(spec: str, folder: Path) -> Listing:
    """List a folder of images; DataError where it holds none."""
    with progress(f"listing {spec}", None, "files") as advance:
        source = FolderSource(folder, advance=advance)
    images = sum(is_image(path) for path in source.paths)
    if not images:
        if shards := sorted(folder.glob("*/*.tar")):
            inner = shlex.quote(f"{spec.rstrip('/')}/{shards[0].parent.name}")
            raise DataError(f"{spec}: there are no shards but in its folders; name one of these, as in --data {inner}")
        what = without_shards(Path(local_path(spec)))
        if source.tables:
            what = f"`leoclr shard {shlex.quote(spec)} OUT` packs Parquet files"
        raise DataError(f"{spec}: the folder holds neither .tar shards nor images; {what}")
    digest = hashlib.sha256(json.dumps(_FORMAT).encode())
    total = 0
    for path in sorted(source.paths):
        size, modified = source.stamp(path) or (-1, -1)
        digest.update(json.dumps([path, size, modified]).encode())
        total += max(0, size)
    return Listing(digest.hexdigest()[:16], images, total)


def _cached(spec: str, announce: bool) -> str:
    folder = Path(os.path.realpath(local_path(spec)))
    listing = list_folder(spec, folder)
    name = f"{shard_name(local_path(spec))}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:10]}"
    place = cache_root() / "packed" / name
    try:
        place.mkdir(parents=True, exist_ok=True)
        with _locked(place / _LOCK, spec):
            shards = place / listing.digest
            known = _read(shards / _LISTING)
            if known is None:
                known = _pack(spec, folder, shards, listing)
            elif announce and shards / _LISTING not in _in_use:  # or it has been said before
                say(f"{spec}: {_what(known)}, packed before in {shards}")
            _hold(shards / _LISTING)
            _remove_others(place, shards)
    except OSError as error:
        raise RunError(
            f"{spec}: the cache {place} cannot be used ({error.strerror or error}); set XDG_CACHE_HOME to another "
            f"folder, or pack the images yourself: {_by_hand(spec)}"
        ) from error
    return str(shards / known["train"])


def _by_hand(spec: str) -> str:
    """The command that packs a folder where the user can see the shards."""
    return shlex.join(("leoclr", "shard", spec, f"shards/{shard_name(local_path(spec))}"))


def _pack(spec: str, folder: Path, shards: Path, listing: Listing) -> dict[str, Any]:
    """Pack a folder into `shards`, which appears complete; what `listing.json` says of it."""
    name = shard_name(local_path(spec))
    by_hand = _by_hand(spec)
    partial = shards.with_name(f"{_PARTIAL}-{shards.name}")
    there = sum(file.stat().st_size for file in partial.rglob("*.tar"))
    free = shutil.disk_usage(shards.parent).free
    if listing.bytes - there > _MOST_OF_THE_DISK * free:
        raise DataError(
            f"{spec}: {in_bytes(listing.bytes)} of images, and {in_bytes(free)} are free where the cache is, in "
            f"{shards.parent}; set XDG_CACHE_HOME to a folder with more room, or pack them there: {by_hand}"
        )
    if not kept_shards(partial / STAGING_NAME):
        shutil.rmtree(partial, ignore_errors=True)
    try:
        packed = pack_source(local_path(spec), partial, PackingRecipe(name, workers=os.cpu_count() or 1))
        known = _known(folder, packed)
        write_atomic(partial / _LISTING, json.dumps(known, indent=1).encode())
        os.replace(partial, shards)
        fsync_folder(shards.parent)
    except DataError as error:
        named = [option for option in _OPTIONS if option in str(error)]
        hint = f"; {named[0]} is an option of `{by_hand}`, to be followed by --data shards/{name}" if named else ""
        raise DataError(f"{error}{hint}") from None
    finally:
        if not kept_shards(partial / STAGING_NAME):
            shutil.rmtree(partial, ignore_errors=True)
    if skipped := [line for split in packed for line in split.skipped]:
        warn(f"left out {counted(len(skipped), 'image')} that cannot be read, {skipped[0]}")
    say(f"{spec}: {_what(known)}, packed into {shards}; to keep the shards elsewhere: {by_hand}")
    return known


def _known(folder: Path, packed: Sequence[PackedSplit]) -> dict[str, Any]:
    splits = {split.split: split for split in packed}
    train = next(name for name in ("train", "", "unlabeled", *splits) if name in splits)
    classes = max(split.index.class_count for split in packed)
    images = {split: one.images for split, one in splits.items()}
    return {"format": _FORMAT, "source": str(folder), "images": images, "classes": classes, "train": train}


def _what(known: dict[str, Any]) -> str:
    images: dict[str, int] = known["images"]
    splits = ", ".join(f"{count:,} {split}" for split, count in images.items() if split)
    classes = counted(known["classes"], "class", "classes") if known["classes"] else "no classes"
    return f"{counted(sum(images.values()), 'image')}{f' ({splits})' if splits else ''}, {classes}"


def _read(file: Path) -> dict[str, Any] | None:
    """What is known of cached shards; None where there are none, or of another format."""
    try:
        found = parse_json_text(file.read_bytes())
        return found if found["format"] == _FORMAT and isinstance(found["train"], str) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _locked(file: Path, spec: str) -> Iterator[None]:
    """Hold the lock of a folder's cache; another process that packs it is waited for."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{spec}: waiting for another process, which packs it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _hold(file: Path) -> None:
    """Keep the shards beside a listing from being removed for as long as this process lives, or one that it forks."""
    if file not in _in_use:
        descriptor = os.open(file, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        _in_use[file] = descriptor


def _remove_others(place: Path, shards: Path) -> None:
    """Remove the shards of older listings that no process reads, and what killed processes left."""
    for other in place.iterdir():
        if other == shards or not other.is_dir() or other / _LISTING in _in_use:
            continue
        if not other.name.startswith(_PARTIAL) and _is_held(other / _LISTING):
            continue
        doomed = other.with_name(f"{_PARTIAL}-removed-{other.name.removeprefix('.')}")
        os.replace(other, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _is_held(file: Path) -> bool:
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
