"""`leoclr duplicates`: near copies in a data set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from leoclr.cli.scoring.request import Request, with_request
from leoclr.datasets.errors import SettingsError
from leoclr.datasets.wording import counted

_MIB = 1 << 20


@with_request("train_data", "data", "seed")
def duplicates(
    request: Request,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="SHARDS", help="Data to search; default: the run's training data. Repeatable."),
    ] = None,
    threshold: Annotated[
        float, typer.Option(min=0.0, max=1.0, metavar="COSINE", help="Least cosine of features that makes a copy.")
    ] = 0.95,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", dir_okay=False, metavar="FILE", help="Text file for the keys of the copies, one per line."
        ),
    ] = Path("duplicates.txt"),
    picture: Annotated[
        Path | None,
        typer.Option(dir_okay=False, metavar="FILE", help="PNG file for the groups; default: beside the list."),
    ] = None,
    memory: Annotated[int, typer.Option(min=1, metavar="MIB", help="Memory for the comparison, in MiB.")] = 512,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record, with all groups, as JSON.")] = False,
) -> None:
    """Find near copies among images by the features of an encoder, and images with equal bytes.

    Of each group the largest file is kept, of equally large ones the first in the shards; the list names the others,
    and `leoclr shard --without` takes it. The picture shows the least similar groups, by which to choose the threshold.
    More than a tenth of the images as copies, equal bytes aside, gives a warning. Labels are not needed. Features are
    cached.

    \b
    Examples:
      leoclr duplicates
      leoclr duplicates runs/first --data photos/ --threshold 0.9 -o copies.txt
      leoclr duplicates resnet50.pth --data 'shards/imagenet-{000..999}.tar' --precision bf16 --memory 4096
    """
    picture = picture or output.with_suffix(".png")
    if picture.suffix.lower() != ".png":
        raise SettingsError(f"--picture {picture}: the picture is a PNG file; give a name that ends in .png")
    if picture == output:
        raise SettingsError(f"-o {output}: the list is a text file; give another name than that of the picture")

    from leoclr.cli.packing import shard_name
    from leoclr.cli.scoring.duplicates import find_duplicates
    from leoclr.cli.terminal import print_json, say, suggest

    record = find_duplicates(replace(request, data=data), threshold, output, picture, memory * _MIB)
    if as_json:
        print_json(record)
        return
    print(
        f"{counted(record['images'], 'image')}, {counted(len(record['groups']), 'group')} of near copies: "
        f"{counted(record['copies'], 'copy', 'copies')}, {record['same_bytes']:,} of them with equal bytes"
    )
    for line in record["protocol"]:
        print(line)
    say(f"written to {output}" + (f" and {record['picture']}" if record["picture"] else ""))
    if record["copies"] and not record["doubtful"] and (folder := record["folder"]):
        suggest(("shard", folder, f"shards/{shard_name(folder)}", "--without", str(output)))
