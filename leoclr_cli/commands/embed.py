"""`leoclr embed`: write features for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leoclr.cli.scoring.request import Backbone, BatchSize, Checkpoint, Device, ImageSize, Precision, Workers
from leoclr.datasets.wording import counted


def embed(
    checkpoint: Checkpoint = None,
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
    backbone: Backbone = None,
    image_size: ImageSize = None,
    batch_size: BatchSize = 256,
    device: Device = "auto",
    precision: Precision = "float32",
    workers: Workers = -1,
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

    embedding = Embedding(checkpoint, data, output, backbone, image_size, batch_size, device, precision, workers)
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
