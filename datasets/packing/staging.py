"""Staging: a folder of shards appears complete or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from leoclr.datasets.errors import DataError, RunError
from leoclr.datasets.files import fsync_folder
from leoclr.datasets.packing.journal import JOURNAL_NAME, kept_shards
from leoclr.datasets.shards.index import COLUMNS_SUFFIX, SUFFIX
from leoclr.datasets.wording import counted

STAGING_NAME = ".packing"


@contextmanager
def staged(out: Path, name: str, splits: tuple[str, ...], overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder inside `out`; when the block ends well, what was written there moves to `out`.

    Shards move first and index files last, so that an index never names a shard that is not there. When the block
    raises, also by Ctrl-C, everything it wrote is removed, unless there is a journal of finished shards: then all stays
    for the next packing, as it does where the process is killed. What is left without a journal is removed by the next.

    Args:
        name: What the new files are called, up to `-` or `.`.
        splits: Folders inside `out` that may hold shards, too.
        overwrite: Whether files of the same name are replaced, once the new ones are complete.

    Raises:
        DataError: There are shards in `out` that are not to be replaced.
        RunError: The disk is full, `out` cannot be written, or another process is packing there.
    """
    folders = [out, *(out / split for split in splits)]
    old = _files_in_the_way(folders, out, name, overwrite)
    made = not out.exists()
    try:
        with _named_errors(out):
            out.mkdir(parents=True, exist_ok=True)
            with _private_folder(out) as staging:
                yield staging
                (staging / JOURNAL_NAME).unlink(missing_ok=True)
                for path in old:
                    path.unlink()
                _move(staging, out)
    finally:
        if made and out.is_dir() and not any(out.iterdir()):
            out.rmdir()


def _files_in_the_way(folders: list[Path], out: Path, name: str, overwrite: bool) -> list[Path]:
    """Files to be replaced, an index before the shards it describes; DataError for those that must stay."""
    suffixes = (SUFFIX, COLUMNS_SUFFIX, ".tar")
    found = [path for folder in folders for suffix in suffixes for path in sorted(folder.glob(f"*{suffix}"))]
    replaceable = {path for path in found if overwrite and _is_called(path, name)}
    if kept := [path for path in found if path not in replaceable]:
        shown = ", ".join(str(path.relative_to(out)) for path in kept[:3]) + (", ..." if len(kept) > 3 else "")
        hint = "name another folder" if overwrite else f"--overwrite replaces those called {name}"
        raise DataError(f"{out}: there are shards already ({shown}); {hint}")
    return found


def _is_called(path: Path, name: str) -> bool:
    rest = path.name.removeprefix(name)
    number = rest.removeprefix("-").removesuffix(".tar")
    return rest != path.name and (rest in (SUFFIX, COLUMNS_SUFFIX) or (len(number) == 6 and number.isdigit()))


@contextmanager
def _private_folder(out: Path) -> Iterator[Path]:
    """The staging folder, locked against other processes, and empty but for finished shards; removed at the end unless
    a journal says that there are some."""
    staging = out / STAGING_NAME
    staging.mkdir(exist_ok=True)
    descriptor = os.open(staging, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{out}: another process is packing here; wait for it or name another folder") from None
        try:
            if not kept_shards(staging):
                _empty(staging)
            yield staging
        finally:
            if not kept_shards(staging):
                shutil.rmtree(staging, ignore_errors=True)
    finally:
        os.close(descriptor)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _move(staging: Path, out: Path) -> None:
    files = [path for path in staging.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: (path.suffix == ".json", path.suffix == ".safetensors", path)):
        target = out / path.relative_to(staging)
        target.parent.mkdir(exist_ok=True)
        os.replace(path, target)
    for folder in {path.parent for path in files}:
        fsync_folder(out / folder.relative_to(staging))


@contextmanager
def _named_errors(out: Path) -> Iterator[None]:
    """One line for what the operating system refuses, most of all a full disk."""
    try:
        yield
    except OSError as error:
        outside = error.filename and not str(error.filename).startswith(str(out))
        place = error.filename if outside else out
        count = kept_shards(out / STAGING_NAME)
        kept = f"{counted(count, 'finished shard')} kept, and the same command goes on from there" if count else ""
        raise RunError(f"{place}: {error.strerror or error}; {kept or 'nothing was kept of this packing'}") from error
