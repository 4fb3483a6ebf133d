"""`leoclr embed`: write features for other programs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from leoclr.cli.scoring.request import Request, with_request
from leoclr.datasets.wording import counted


@with_request("train_data", "data", "seed", "no_cache")
def embed(
    request: Request,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="SHARDS", help="Data to embed; default: the run's training data. Repeatable."),
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            dir_okay=False,
            metavar="FILE",
            help="A .npy file, with the keys beside it, or a .parquet file.",
        ),
    ] = Path("features.npy"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Write the features of a frozen encoder for every image, with its key and label, in the order of the index.

    Labels are not needed. The same command resumes interrupted work. FILE.json records the protocol and the digests of
    weights and data.

    \b
    Examples:
      leoclr embed -o features.npy
      leoclr embed runs/first --data shards/val -o features.parquet
      leoclr embed resnet50.pth --data 'shards/imagenet-{000..999}.tar' -o imagenet.parquet --precision bf16
    """
    from leoclr.cli.scoring.embedding import Embedding
    from leoclr.cli.terminal import print_json, say

    embedding = Embedding(replace(request, data=data), output)
    try:
        record = embedding.run()
    except KeyboardInterrupt:
        say(f"{counted(embedding.pieces.done, 'image')} done; the same command goes on from there")
        raise
    if as_json:
        print_json(record)
    else:
        print(f"{record['rows']:,} x {record['dimension']} float32 in {', '.join(record['files'])}")
        for line in record["protocol"]:
            print(line)
