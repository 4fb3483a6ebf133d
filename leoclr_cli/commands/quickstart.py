"""`leoclr quickstart`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from leoclr.cli.commands import flags
from leoclr.cli.config.resolve import resolve
from leoclr.cli.terminal import print_json

PRESET = "quickstart"


def quickstart(
    output: Annotated[Path, typer.Option("--output", metavar="FOLDER", help="Where everything goes.")] = Path(
        "quickstart"
    ),
    epochs: flags.Epochs = None,
    seed: flags.Seed = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """See all of it work in a few minutes: pack, pre-train, score, draw and export, on images that need no download.

    The images are scikit-learn's 1,797 handwritten digits. LeOCLR trains on 1,297 of them on the CPU, without their
    labels; the other 500 test the encoder, beside the same encoder untrained and beside the bare pixels. Typed again,
    the command takes up what is there, also after Ctrl-C.

    \b
    Examples:
      leoclr quickstart
      leoclr quickstart --output first --epochs 20
    """
    given = flags.given_flags(epochs=epochs, seed=seed)
    resolved = resolve(PRESET, None, os.environ, given.values, flag_names=given.names)

    from leoclr.cli.quickstart.walkthrough import Quickstart

    work = Quickstart(output, resolved.settings, PRESET, sys.argv)
    if stopped_by := work.pretrain():
        raise typer.Exit(128 + stopped_by)
    outcome = work.report()
    if json_output:
        print_json(outcome.as_json())
    else:
        print(outcome.as_text())
