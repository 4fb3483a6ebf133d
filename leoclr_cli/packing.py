"""Pack a source of images into shards, with progress on the terminal."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from leoclr.cli.terminal import progress, warn
from leoclr.datasets.packing.arrangement import SPLITS, arrange, hold_out
from leoclr.datasets.packing.pack import PackedSplit, Recipe, pack
from leoclr.datasets.packing.sources import Source, open_source
from leoclr.datasets.packing.staging import staged

_NAMED = 10  # suffixes and folders that a warning names


def pack_source(
    source: str,
    out: Path,
    recipe: Recipe,
    val: float | None = None,
    root: Path | None = None,
    download: bool = False,
    overwrite: bool = False,
) -> list[PackedSplit]:
    """Pack a source into `out` with progress bars; `out` holds everything or nothing of it."""
    with staged(out, recipe.name, SPLITS, overwrite) as staging, ExitStack() as stack:
        archive_bytes = os.path.getsize(source) if os.path.isfile(source) else None
        with progress(f"listing {source}", archive_bytes, "bytes") as advance:
            opened = stack.enter_context(open_source(source, staging, root, download, advance))
            collection = arrange(opened)
        _say_passed_over(opened)
        if val is not None:
            collection = hold_out(collection, val, recipe.seed)
        with progress("packing", len(collection), "images") as advance:
            return pack(opened, collection, staging, recipe, advance)


def _say_passed_over(source: Source) -> None:
    """What is not packed although it lies there: nobody should miss a camera's HEIC files only after the training."""
    if source.other_files:
        most = sorted(source.other_files.items(), key=lambda item: (-item[1], item[0]))[:_NAMED]
        kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in most)
        warn(f"passed over {source.other_files.total():,} files that are no images by their suffix: {kinds}")
    if source.repeated:
        shown = ", ".join(source.repeated[:_NAMED])
        warn(f"passed over {len(source.repeated):,} folders that links lead to a second time: {shown}")
