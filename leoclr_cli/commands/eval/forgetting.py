"""`leoclr eval forgetting`: gain on new data and loss on old data after further training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from leoclr.cli.run.folder import existing_weights
from leoclr.cli.scoring.request import AsJson, Request, with_request


def _shards(flag: str, help: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(flag, metavar="SHARDS", help=help)
    return option


@with_request("checkpoint", "train_data", "data")
def forgetting(
    request: Request,
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help="Encoder before further training.")],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="Encoder after further training.")],
    new: Annotated[list[str], _shards("--new", "Labelled new data, for the classifier. Repeatable.")],
    old: Annotated[list[str], _shards("--old", "Labelled old data, for the classifier. Repeatable.")],
    new_test: Annotated[
        list[str] | None, _shards("--new-test", "New test data; default: the split beside --new, or a fifth of it.")
    ] = None,
    old_test: Annotated[
        list[str] | None, _shards("--old-test", "Old test data; default: the split beside --old, or a fifth of it.")
    ] = None,
    probe: Annotated[Literal["knn", "linear"], typer.Option("--probe", help="The classifier.")] = "knn",
    output: Annotated[Path, typer.Option("--output", "-o", dir_okay=False, metavar="FILE", help="JSON file.")] = Path(
        "forgetting.json"
    ),
    as_json: AsJson = False,
) -> None:
    """Score an encoder before and after training on new data: the gain on the new data and the loss on the old.

    Both encoders classify the same test images, so each change has a 95 % interval over the images and McNemar's test.

    \b
    Examples:
      leoclr eval forgetting timm:resnet50 runs/own --new shards/own --old shards/imagenet/train
      leoclr eval forgetting runs/first runs/own --new shards/own --old shards/old --probe linear -o change.json
    """
    existing_weights([before, after])
    from leoclr.cli.scoring.forgetting import Data
    from leoclr.cli.scoring.forgetting import forgetting as measure

    data = {"new": Data(new, new_test or ()), "old": Data(old, old_test or ())}
    measure(request, before, after, data, probe, output, as_json)
