"""`leoclr eval detection`: fine-tune a detector from the encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from leoclr.cli.scoring.request import AsJson, Backbone, Checkpoint, Device, Workers, finite


def detection(
    checkpoint: Checkpoint = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            "--data",
            metavar="PATH",
            help="Folder or tar file in the layout of PASCAL VOC, such as VOCdevkit or VOC2007. Repeatable.",
        ),
    ] = None,
    preset: Annotated[
        Literal["paper", "small"], typer.Option("--preset", help="The paper's schedule, or a short one for small data.")
    ] = "paper",
    random: Annotated[bool, typer.Option("--random", help="Start from the same network with random weights.")] = False,
    train_split: Annotated[
        str, typer.Option("--train-split", metavar="NAME", help="Training split: ImageSets/Main/NAME.txt.")
    ] = "trainval",
    test_split: Annotated[
        str, typer.Option("--test-split", metavar="NAME", help="Test split: ImageSets/Main/NAME.txt.")
    ] = "test",
    iterations: Annotated[
        int | None,
        typer.Option(
            "--iterations", min=1, metavar="N", help="Iterations; default: the preset's. Decays scale in proportion."
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, metavar="N", help="Images in a step; default: the preset's.")
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option("--lr", min=0, callback=finite, metavar="RATE", help="Learning rate; default: the preset's."),
    ] = None,
    backbone: Backbone = None,
    device: Device = "auto",
    workers: Workers = -1,
    seed: Annotated[
        int,
        typer.Option(
            "--seed", min=0, max=2**32 - 1, metavar="N", help="Seed of new layers, order, flips, sizes and regions."
        ),
    ] = 0,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Store no state for resuming, and no results.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", dir_okay=False, metavar="FILE", help="JSON file; default: in RUN/evals."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune Faster R-CNN with a C4 body on boxes, and report AP50, AP and AP75 (the paper's Table 4).

    The encoder is a ResNet with the imagenet stem; the paper's is ResNet-50. One process, one device: the paper's batch
    of 16 needs a GPU of about 40 GB. Repeat the command to resume interrupted work.

    \b
    Examples:
      leoclr eval detection runs/first --data VOCdevkit
      leoclr eval detection runs/first --data bccd-voc.tar.gz --preset small
      leoclr eval detection runs/first --data bccd-voc.tar.gz --preset small --random --seed 1
    """
    from leoclr.cli.scoring.detection_score import Wanted, score_detection

    wanted = Wanted(preset, random, train_split, test_split, iterations, batch_size, lr, seed)
    score_detection(checkpoint, tuple(data or ()), wanted, backbone, device, workers, no_cache, output, as_json)
