"""`leoclr bench`: the speed of each part of training, the bottleneck, and settings that would help."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from leoclr.cli.commands.base.flags import settings_of, with_settings
from leoclr.cli.config.flags import Given
from leoclr.cli.terminal import print_json, progress

_IMAGES = 192


@with_settings(
    *("--data", "--preset", "--config", "--backend", "--views", "--backbone", "--batch-size", "--device"),
    *("--precision", "--compile", "--workers", "--set"),
)
def bench(
    given: Given,
    seconds: Annotated[
        float, typer.Option(min=1, max=3600, metavar="N", help="Approximate time for the measurements, in seconds.")
    ] = 30.0,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure the speed of training on this machine by parts: read, decode, augment, step, and all together.

    Reports whether data or model is the bottleneck, which setting would help, and the memory of a step. Without --data
    it generates images that cost as much as photographs. On a CPU the batch is smaller than in training, which changes
    the rate little.

    \b
    Examples:
      leoclr bench
      leoclr bench --data shards --preset cifar10
      leoclr bench --data shards --workers 8 --precision bf16 --json
    """
    settings = settings_of(replace(given, values={**given.values, "run.trackers": ""}))

    from leoclr.cli.benchmark.measure import Bench
    from leoclr.datasets.photo_like import photo_like

    with tempfile.TemporaryDirectory() as folder, progress("measuring", None, "parts") as advance:
        if not settings.data.train:
            made = photo_like(Path(folder), _IMAGES, settings.data.image_size)
            where = settings.data.model_copy(update={"train": (str(made),)})
            settings = settings.model_copy(update={"data": where})
        report = Bench(settings, seconds, Path(folder, "run"), lambda name: advance(1)).measure()
    print_json(report.as_json()) if json_output else print(report.as_text())
