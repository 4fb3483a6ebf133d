"""`leoclr quickstart`: every step of leoclr on images that need no download."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from leoclr.cli.commands.base.flags import settings_of, with_settings
from leoclr.cli.config.flags import Given
from leoclr.cli.terminal import print_json

PRESET = "quickstart"


@with_settings("--epochs", "--seed")
def quickstart(
    given: Given,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Output folder.")] = Path(
        "quickstart"
    ),
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Try everything in a few minutes: pack, pre-train, score, draw and export, on images that need no download.

    The images are scikit-learn's 1,797 handwritten digits. LeOCLR trains on 1,297 of them on the CPU, without their
    labels. The other 500 are used to compare the encoder with the same encoder untrained and with raw pixels. Repeat
    the command to continue after Ctrl-C.

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
