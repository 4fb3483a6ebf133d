"""`leoclr quickstart`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from leoclr.cli.commands.flags import settings_of, with_settings
from leoclr.cli.config.flags import Given
from leoclr.cli.terminal import print_json

PRESET = "quickstart"


@with_settings("--epochs", "--seed")
def quickstart(
    given: Given,
    output: Annotated[Path, typer.Option("--output", metavar="FOLDER", help="Where everything goes.")] = Path(
        "quickstart"
    ),
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
    settings = settings_of(replace(given, preset=PRESET))

    from leoclr.cli.quickstart.walkthrough import Quickstart

    work = Quickstart(output, settings, PRESET, sys.argv)
    if stopped_by := work.pretrain():
        raise typer.Exit(128 + stopped_by)
    outcome = work.report()
    if json_output:
        print_json(outcome.as_json())
    else:
        print(outcome.as_text())
