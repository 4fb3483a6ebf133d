"""Pack a source of images into shards, with progress on the terminal."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from leoclr.cli.terminal import progress, say, warn
from leoclr.datasets.errors import DataError
from leoclr.datasets.packing.arrangement import SPLITS, Collection, arrange
from leoclr.datasets.packing.duplicates import find_copies, note_copies, without_copies
from leoclr.datasets.packing.exclusions import Exclusions, without
from leoclr.datasets.packing.file_kinds import advice
from leoclr.datasets.packing.hold_out import hold_out
from leoclr.datasets.packing.journal import Journal, fingerprint, kept_shards
from leoclr.datasets.packing.layouts import Layout
from leoclr.datasets.packing.pack import PackedSplit, PackingRecipe, pack
from leoclr.datasets.packing.parquet_source import BY_SCHEMA, Columns
from leoclr.datasets.packing.sources import Source, open_source
from leoclr.datasets.packing.staging import staged
from leoclr.datasets.shards.description import look_alikes
from leoclr.datasets.wording import counted, printable

_NAMED = 10  # suffixes and folders that a warning names


@dataclass(frozen=True)
class Selection:
    """Which images of a source are packed, and as what.

    Attributes:
        layout: How the folders are to be read.
        encoding: Of names that are not ASCII and do not say what they are.
        columns: Of Parquet files.
        val: Share of the training images to hold out.
        dedupe: Whether copies of an image are left out.
        exclusions: Images to leave out.
    """

    layout: Layout = field(default_factory=Layout)
    encoding: str | None = None
    columns: Columns = BY_SCHEMA
    val: float | None = None
    dedupe: bool = False
    exclusions: Exclusions | None = None


def shard_name(source: str) -> str:
    """What shards are called unless told: as the folder or file, with letters, digits, `-` and `_`."""
    stem = re.sub(r"\.(tar|tar\.gz|tgz|zip|parquet)$", "", Path(source).resolve().name, flags=re.IGNORECASE)
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-") or "images"


def pack_source(
    source: str,
    out: Path,
    recipe: PackingRecipe,
    selection: Selection | None = None,
    root: Path | None = None,
    download: bool = False,
    overwrite: bool = False,
) -> list[PackedSplit]:
    """Pack a source into `out` with progress bars; `out` holds everything or nothing of it. What is left out, and
    what the names leave open, is said before the work begins."""
    selection = selection or Selection()
    with staged(out, recipe.name, SPLITS, overwrite) as staging, ExitStack() as stack:
        archive_bytes = os.path.getsize(source) if os.path.isfile(source) else None
        with progress(f"listing {source}", archive_bytes, "bytes" if archive_bytes else "files") as advance:
            opened = stack.enter_context(
                open_source(source, staging, root, download, advance, selection.encoding, selection.columns)
            )
            collection = arrange(opened, selection.layout)
        _say_passed_over(opened)
        collection = _selected(opened, collection, selection, recipe)
        for line in (*collection.notes.lines(), *look_alikes(collection.classes)):
            warn(line)
        said = set(collection.notes.counts())
        journal = _journal(opened, collection, staging, recipe)
        with progress("packing", len(collection) - journal.pictures, "images") as advance, _told_of_kept(staging):
            recipe = replace(recipe, made=_made(collection, selection, recipe))
            packed = pack(opened, collection, staging, recipe, advance, journal)
        for reason, line in zip(collection.notes.counts(), collection.notes.lines(), strict=True):
            if reason not in said:
                warn(line)
        _say_copies(packed, selection)
        return packed


def _journal(source: Source, collection: Collection, staging: Path, recipe: PackingRecipe) -> Journal:
    """The journal of what an interrupted packing of the same images finished, each shard of it verified."""
    journal = Journal(staging, fingerprint(source, collection, recipe))
    if journal.bytes:
        with progress("verifying finished shards", journal.bytes, "bytes") as advance:
            journal.verify(advance)
        shards = counted(journal.shards, "finished shard")
        say(f"going on from {shards} with {counted(journal.pictures, 'image')} of an interrupted packing")
    else:
        journal.verify()
    return journal


@contextmanager
def _told_of_kept(staging: Path) -> Iterator[None]:
    """Say what is kept where packing ends early."""
    try:
        yield
    except (KeyboardInterrupt, DataError):
        if count := kept_shards(staging):
            say(f"{counted(count, 'finished shard')} kept in {staging}; the same command goes on from there")
        raise


def _selected(source: Source, collection: Collection, selection: Selection, recipe: PackingRecipe) -> Collection:
    if selection.exclusions is not None:
        collection = without(collection, selection.exclusions, source.name)
    copies: dict[str, str] = {}
    if selection.dedupe or selection.val is not None:
        with progress("looking for copies", len(collection), "images") as advance:
            copies = find_copies(source, collection, recipe.workers, advance)
        note_copies(collection, copies)
    if selection.dedupe:
        collection, copies = without_copies(collection, copies), {}
    if selection.val is not None:
        collection = hold_out(collection, selection.val, recipe.seed, copies)
    return collection


def _made(collection: Collection, selection: Selection, recipe: PackingRecipe) -> dict[str, Any]:
    """All that decides what is packed from the same source, for the index; what was not asked for is left out."""
    exclusions = selection.exclusions
    made = {
        "layout": collection.kind,
        "split_names": dict(collection.split_names) or None,
        "encoding": selection.encoding,
        "image_column": selection.columns.image,
        "label_column": selection.columns.label,
        "val": selection.val,
        "dedupe": selection.dedupe or None,
        "without": {"names": len(exclusions.names), "sha256": exclusions.digest} if exclusions else None,
        "shortest_side": recipe.encoding.shortest_side,
        "format": recipe.encoding.format,
        "quality": recipe.encoding.quality,
        "levels": list(recipe.encoding.levels) if recipe.encoding.levels else None,
        "seed": recipe.seed,
    }
    return {name: value for name, value in made.items() if value is not None}


def _say_passed_over(source: Source) -> None:
    """What is not packed although it lies there: nobody should miss a camera's HEIC files only after the training."""
    if source.other_files:
        most = sorted(source.other_files.items(), key=lambda item: (-item[1], item[0]))[:_NAMED]
        kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in most)
        warn(
            f"passed over {counted(source.other_files.total(), 'file')} without an image's suffix: {kinds} "
            f"({printable(source.other_files.first)}{' first' if source.other_files.total() > 1 else ''})"
        )
    if source.repeated:
        shown = ", ".join(map(printable, source.repeated[:_NAMED]))
        warn(f"passed over {counted(len(source.repeated), 'folder')} that links lead to a second time: {shown}")
    for line in (*source.notes.lines(), *advice(source.other_files)):
        warn(line)


def _say_copies(packed: Sequence[PackedSplit], selection: Selection) -> None:
    """How many images are copies of others, as they are stored."""
    for split in packed:
        if copies := split.copies:
            where = f" of the split {split.split}" if split.split else ""
            kept = ", all on one side" if selection.val is not None and split.split in ("train", "val") else ""
            warn(
                f"images{where} that are copies of another, byte for byte: {copies:,}{kept}; "
                "leoclr shard --dedupe leaves them out"
            )
    first = next((split for split in packed if split.split == "train"), None)
    for split in packed if first is not None else ():
        if first is not None and split is not first and (shared := split.shared_with(first)):
            warn(f"images of the split {split.split} that are in train too, byte for byte: {shared:,}")
