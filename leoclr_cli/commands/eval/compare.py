"""`leoclr eval compare`: compare two files of predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leoclr.cli.scoring.request import AsJson


def compare(
    first: Annotated[Path, typer.Argument(metavar="FIRST", help="File written by --predictions.")],
    second: Annotated[Path, typer.Argument(metavar="SECOND", help="Second file, for the same test images.")],
    as_json: AsJson = False,
) -> None:
    """Compare two classifiers on the same test images by McNemar's exact test.

    The difference of their accuracies has a 95 % interval over the test images, without the variation between seeds of
    pre-training.

    \b
    Examples:
      leoclr eval knn runs/leoclr --predictions leoclr.csv
      leoclr eval knn runs/baseline --predictions baseline.csv
      leoclr eval compare leoclr.csv baseline.csv
      leoclr eval compare leoclr.csv baseline.csv --json
    """
    from dataclasses import asdict

    from leoclr.cli.scoring.predictions import compare_files
    from leoclr.cli.terminal import print_json

    found = compare_files(first, second)
    if as_json:
        tests = {name: asdict(test) for name, test in found.items()}
        print_json({"kind": "comparison", "first": str(first), "second": str(second), "tests": tests})
    else:
        print("\n".join([f"{first} less {second}", *(f"{name}: {test}" for name, test in found.items())]))
