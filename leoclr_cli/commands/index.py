"""`leoclr index`: index shards that other tools wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leoclr.cli import terminal as console


def index(
    data: Annotated[
        list[str], typer.Argument(metavar="DATA", help="Shards: brace ranges, globs, folders of shards, or addresses.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Output folder for the index of shards on a server; upload it beside them.",
        ),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File of class names from class 0: one per line, or a JSON list."),
    ] = None,
    image_member: Annotated[
        str | None,
        typer.Option(
            metavar="SUFFIX",
            help="Image member of a sample, by its name after the key's dot, such as jpg or left.png; of several, "
            "separated by commas, the first present is used. Default: the member with an image suffix.",
        ),
    ] = None,
    label_member: Annotated[
        str | None,
        typer.Option(
            metavar="SUFFIX",
            help="Member with the class number or name, such as txt, or json:FIELD for a field of a JSON member. "
            "Default: cls.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Index shards that webdataset, img2dataset or another tool wrote, with a checksum of each.

    Each folder gets an index beside its shards; in a folder of splits, name the splits. Shards on a server are read
    once, and their index is written to --output. The index records the named members, and indexing the shards again
    uses them.

    \b
    Examples:
      leoclr index 'laion/{00000..00099}.tar'
      leoclr index shards/train shards/val --classes names.txt
      leoclr index pairs --image-member left.png --label-member json:species
      leoclr index 'https://data.example.org/x-{000..099}.tar' --output .
    """
    from leoclr.datasets.shards.description import as_json as described
    from leoclr.datasets.shards.description import class_line, contents, hint, remarks
    from leoclr.datasets.shards.reindex import find_shards, read_classes, write_indexes, write_remote_index
    from leoclr.datasets.shards.sample_members import Members

    names = read_classes(classes) if classes else ()
    which = Members(image_member, label_member)
    if output is not None:
        with console.progress("indexing", None, "bytes") as advance:
            written = write_remote_index(data, output, names, advance, which)
    else:
        paths = find_shards(data)
        total = sum(path.stat().st_size for path in paths)
        with console.progress("indexing", total, "bytes") as advance:
            written = write_indexes(paths, names, advance, which if image_member or label_member else None)
    for path, found in written.items():
        for line in remarks(found, data):
            console.warn(f"{path}: {line}")
        if (advice := hint(found)) is not None:
            console.say(f"{path}: {advice}")
    if as_json:
        console.print_json([{"index": str(path)} | described(found) for path, found in written.items()])
        return
    for path, found in written.items():
        print(f"{path}: {contents(found)}")
        if (named := class_line(found)) is not None:
            print(f"    {named}")
