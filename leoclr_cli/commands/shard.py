"""`leoclr shard`: pack images into tar shards."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leoclr.cli import terminal as console
from leoclr.datasets.errors import DataError
from leoclr.datasets.wording import counted

if TYPE_CHECKING:
    from leoclr.datasets.packing.pack import PackedSplit

_MEGABYTE = 1_000_000
_NAMED_SKIPPED = 10  # unreadable images that are named on the terminal; --json names all


class LayoutOption(StrEnum):
    """What --layout takes."""

    flat = "flat"
    classes = "classes"
    splits = "splits"
    classes_splits = "classes-splits"


class StoredFormat(StrEnum):
    """What --format takes."""

    jpg = "jpg"
    webp = "webp"


def shard(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Folder with one sub-folder per class, or of images without classes; a .tar, .tar.gz or .zip of "
            "either; a .parquet file or a folder of them; or cifar10, cifar100, stl10, cars, pets.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the shards.")],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the shards; default: the name of SOURCE.")
    ] = None,
    shard_size: Annotated[
        float, typer.Option(min=0.001, metavar="MB", help="Largest size of a shard, in 10^6 bytes.")
    ] = 256.0,
    shortest_side: Annotated[
        int | None,
        typer.Option(min=1, metavar="PIXELS", help="Shrink larger images to this shortest side."),
    ] = None,
    format: Annotated[
        StoredFormat | None, typer.Option(help="Store every image in this format; default: keep its bytes unchanged.")
    ] = None,
    quality: Annotated[
        int | None,
        typer.Option(min=1, max=100, metavar="1..100", help="Quality of re-encoded JPEG and WebP; default: 90."),
    ] = None,
    layout: Annotated[
        LayoutOption | None,
        typer.Option(
            help="Folders of SOURCE: none (flat), CLASS/, SPLIT/CLASS/ or CLASS/SPLIT/ (classes-splits). "
            "Default: recognised by name."
        ),
    ] = None,
    split_names: Annotated[
        str | None,
        typer.Option(metavar="SPLIT=FOLDER,...", help="Folders of the splits, such as train=Training,test=Testing."),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Encoding of file names that are not UTF-8 (old zips), such as gbk."),
    ] = None,
    image_member: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Image column of a Parquet source.")
    ] = None,
    label_member: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Label column of a Parquet source.")
    ] = None,
    levels: Annotated[
        str | None,
        typer.Option(
            metavar="LOW:HIGH",
            help="Values stored as black and white, for images of more than 8 bits; default: the range that the file "
            "declares.",
        ),
    ] = None,
    val: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Share of each class's training images to hold out as OUT/val; equal images stay together.",
        ),
    ] = None,
    dedupe: Annotated[
        bool,
        typer.Option("--dedupe", help="Drop images with equal bytes, those in train first."),
    ] = False,
    without: Annotated[
        Path | None,
        typer.Option(metavar="LIST", help="Text file of images to drop, by path in SOURCE or by key, one per line."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the image order and the held-out images.")] = 0,
    workers: Annotated[
        int, typer.Option(min=0, metavar="N", help="Threads; 0: one per core. The output does not depend on it.")
    ] = 0,
    max_bad: Annotated[
        int, typer.Option(min=0, metavar="N", help="Number of unreadable images to skip before failing.")
    ] = 100,
    root: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder of torchvision's data sets; default: data."),
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Let torchvision download the data set.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace shards of the same name when the new ones are complete.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Pack images into WebDataset shards with an exact index beside them.

    Split folders (train, val, test, unlabeled) at the top of SOURCE stay splits. Ambiguous folders need --layout or
    --split-names. Skipped files are counted and the first one is named. The same source, options and seed give the same
    bytes. OUT receives the shards only when all of them are complete.

    \b
    Examples:
      leoclr shard photos/ shards/photos
      leoclr shard imagenet.tar shards/imagenet --shortest-side 256 --quality 90 --val 0.01
      leoclr shard photos/ shards/photos --split-names train=2019,test=2020 --dedupe
      leoclr shard stl10 shards/stl10 --root data --download
    """
    name = _shard_name(name, source)
    if val is not None and not 0 < val < 1:
        raise DataError(f"--val {val}: expected a share above 0 and below 1, such as 0.1")
    if quality is not None and format is None and shortest_side is None:
        raise DataError("--quality needs --format or --shortest-side: without them images keep their bytes")

    from leoclr.cli.config.preset_files import AUTO, preset_names
    from leoclr.cli.packing import Selection, pack_source
    from leoclr.datasets.packing.encoding import Encoding
    from leoclr.datasets.packing.exclusions import read_exclusions
    from leoclr.datasets.packing.layouts import Layout
    from leoclr.datasets.packing.pack import PackingRecipe
    from leoclr.datasets.packing.parquet_source import Columns
    from leoclr.datasets.packing.split_names import parse_split_names

    selection = Selection(
        Layout(layout.value if layout else None, parse_split_names(split_names or "")),
        encoding,
        Columns(image_member, label_member),
        val,
        dedupe,
        read_exclusions(without) if without else None,
    )
    recipe = PackingRecipe(
        name=name,
        shard_bytes=round(shard_size * _MEGABYTE),
        encoding=Encoding(shortest_side, format.value if format else None, quality, _levels(levels)),
        seed=seed,
        workers=workers or os.cpu_count() or 1,
        max_bad=max_bad,
    )
    splits = pack_source(source, out, recipe, selection, root=root, download=download, overwrite=overwrite)
    if as_json:
        console.print_json(_report(out, name, splits))
    else:
        _print_table(splits)
    _say_skipped(splits)
    preset = source if source in preset_names() else AUTO
    console.suggest(("train", "--preset", preset, "--data", _to_train_on(out, splits)))


def _levels(text: str | None) -> tuple[float, float] | None:
    """The two numbers of LOW:HIGH."""
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        low, high = 0.0, 0.0
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise DataError(f"--levels {text}: expected the numbers for black and white, such as 0:4095 or -1000:400")
    return low, high


def _to_train_on(out: Path, splits: Sequence[PackedSplit]) -> str:
    """The data that `leoclr train` should take of what was packed."""
    packed = {split.split for split in splits}
    name = next((name for name in ("train", "unlabeled") if name in packed), splits[0].split)
    return str(out if name == "train" else out / name)


def _shard_name(name: str | None, source: str) -> str:
    if name is None:
        from leoclr.cli.packing import shard_name

        return shard_name(source)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise DataError(f"--name {name!r}: expected letters, digits, '-', '_' and '.', such as imagenet-256")
    return name


def _report(out: Path, name: str, splits: Sequence[PackedSplit]) -> dict[str, object]:
    return {
        "out": str(out),
        "name": name,
        "splits": [
            {
                "split": split.split,
                "folder": str(out / split.split),
                "images": split.images,
                "classes": list(split.classes),
                "labels": split.index.class_count,
                "copies": split.copies,
                "shards": split.shards,
                "bytes": split.bytes,
                "skipped": list(split.skipped),
            }
            for split in splits
        ],
    }


def _print_table(splits: Sequence[PackedSplit]) -> None:
    from leoclr.datasets.shards.description import named_classes

    print(f"{'split':<10} {'images':>12} {'classes':>8} {'shards':>7} {'MB':>10} {'skipped':>8}")
    for split in splits:
        megabytes = split.bytes / _MEGABYTE
        print(
            f"{split.split or '-':<10} {split.images:>12,} {split.index.class_count or '-':>8} {split.shards:>7,} "
            f"{megabytes:>10,.1f} {len(split.skipped):>8,}"
        )
    classes = next((split.classes for split in splits if split.classes), ())
    if classes:
        print(named_classes(classes, [label for split in splits for label in split.index.occurring.tolist()]))


def _say_skipped(splits: Sequence[PackedSplit]) -> None:
    lines = [line for split in splits for line in split.skipped]
    for line in lines[:_NAMED_SKIPPED]:
        console.warn(f"skipped {line}")
    if len(lines) > _NAMED_SKIPPED:
        console.warn(f"skipped {counted(len(lines) - _NAMED_SKIPPED, 'more image')}; --json names them all")
