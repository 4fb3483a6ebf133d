"""An index, with checksums, beside shards that are there already, whoever wrote them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from leoclr.datasets.errors import DataError
from leoclr.datasets.files import ignore
from leoclr.datasets.index import SUFFIX, Index, common_name
from leoclr.datasets.locate import shard_paths
from leoclr.datasets.scan import build_index


def find_shards(specs: Sequence[str]) -> list[Path]:
    """All shards that `specs` name (as after `--data`); DataError with every name that is missing, or for none."""
    paths = [path for spec in specs for path in shard_paths(spec)]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 20} more" if len(missing) > 20 else ""
        raise DataError(f"{len(missing)} of {len(paths)} shards are missing: {', '.join(missing[:20])}{more}")
    if not paths:
        raise DataError(f"{', '.join(specs)}: no .tar shards there; `leoclr shard` packs images into shards")
    return paths


def write_indexes(
    paths: Iterable[Path], classes: Sequence[str] = (), advance: Callable[[int], None] = ignore
) -> dict[Path, Index]:
    """Index the shards of each folder and save the index there; one of the same name is replaced.

    Args:
        classes: Class names by number, where they are known.
        advance: Called with the bytes of each shard that is done.
    """
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for path in dict.fromkeys(paths):
        by_folder[path.parent].append(path)
    written = {}
    for folder, shards in by_folder.items():
        index = build_index(shards, classes=classes, advance=advance)
        path = folder / f"{common_name([shard.name for shard in shards])}{SUFFIX}"
        index.save(path)
        written[path] = index
    return written


def read_classes(path: Path) -> tuple[str, ...]:
    """Class names from a text file, one a line, the class number being the line number from 0."""
    try:
        names = tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: class names cannot be read ({error})") from error
    if not names or not all(name.strip() for name in names) or len(set(names)) != len(names):
        raise DataError(f"{path}: expected one class name a line, each different and none empty")
    return names
