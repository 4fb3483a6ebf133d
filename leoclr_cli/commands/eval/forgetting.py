"""`leoclr eval forgetting`: the gain on new data beside the loss on the old."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from leoclr.cli.scoring.request import AsJson, Request, with_request


def _shards(flag: str, help: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(flag, metavar="SHARDS", help=help)
    return option


@with_request("checkpoint", "train_data", "data")
def forgetting(
    request: Request,
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help="The encoder that was gone on from.")],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="The encoder that came of it.")],
    new: Annotated[list[str], _shards("--new", "Labelled data of the new kind, for the classifier. Repeatable.")],
    old: Annotated[list[str], _shards("--old", "Labelled data of the old kind, for the classifier. Repeatable.")],
    new_test: Annotated[
        list[str] | None, _shards("--new-test", "Its test data; when left out the split beside it, or a fifth of it.")
    ] = None,
    old_test: Annotated[
        list[str] | None, _shards("--old-test", "Its test data; when left out the split beside it, or a fifth of it.")
    ] = None,
    probe: Annotated[Literal["knn", "linear"], typer.Option("--probe", help="The classifier.")] = "knn",
    output: Annotated[Path, typer.Option("--output", "-o", dir_okay=False, metavar="FILE", help="JSON file.")] = Path(
        "forgetting.json"
    ),
    as_json: AsJson = False,
) -> None:
    """Score an encoder before and after it was trained on new data: the gain there, and the loss on the old data.

    The same test images are classified by both, so that each change has a 95 % interval over the images and McNemar's
    test.

    \b
    Examples:
      leoclr eval forgetting timm:resnet50 runs/own --new shards/own --old shards/imagenet/train
      leoclr eval forgetting runs/first runs/own --new shards/own --old shards/old --probe linear -o change.json
    """
    from leoclr.cli.scoring.forgetting import Data
    from leoclr.cli.scoring.forgetting import forgetting as measure

    data = {"new": Data(new, new_test or ()), "old": Data(old, old_test or ())}
    measure(request, before, after, data, probe, output, as_json)
