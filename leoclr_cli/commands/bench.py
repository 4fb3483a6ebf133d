"""`leoclr bench`: how fast this machine makes views and takes steps, what limits, and what would help."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from leoclr.cli.commands import flags
from leoclr.cli.config.resolve import resolve
from leoclr.cli.terminal import print_json, progress, warn

_IMAGES = 192


def bench(
    data: flags.Data = None,
    preset: flags.Preset = None,
    config: flags.Config = None,
    backend: flags.Backend = None,
    views: flags.Views = None,
    backbone: flags.Backbone = None,
    batch_size: flags.BatchSize = None,
    device: flags.Device = None,
    precision: flags.Precision = None,
    compile: flags.Compile = None,
    workers: flags.Workers = None,
    assignments: flags.Assignments = None,
    seconds: Annotated[
        float, typer.Option(min=1, max=3600, metavar="N", help="About how long the measurements may take.")
    ] = 30.0,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure the speed of training here, part by part: read, decode, augment, step, and all together.

    It says whether the data or the model is what limits, and which setting would help. Without --data it makes images
    that cost as much as photographs. On a CPU the batch is smaller than in training, which changes the rate little.

    \b
    Examples:
      leoclr bench
      leoclr bench --data shards --preset cifar10
      leoclr bench --data shards --workers 8 --precision bf16 --json
    """
    given = flags.given_flags(
        backend=backend,
        views=views,
        data=data,
        batch_size=batch_size,
        backbone=backbone,
        precision=precision,
        compile=compile,
        device=device,
        workers=workers,
        assignments=[*(assignments or ()), "run.trackers="],
    )
    resolved = resolve(preset, config, os.environ, given.values, flag_names=given.names)
    for line in resolved.warnings:
        warn(line)

    from leoclr.datasets.packing.photo_like import photo_like
    from leoclr.cli.benchmark.measure import Bench

    settings = resolved.settings
    with tempfile.TemporaryDirectory() as folder, progress("measuring", None, "parts") as advance:
        if not settings.data.train:
            made = photo_like(Path(folder), _IMAGES, settings.data.image_size)
            where = settings.data.model_copy(update={"train": (str(made),)})
            settings = settings.model_copy(update={"data": where})
        report = Bench(settings, seconds, Path(folder, "run"), lambda name: advance(1)).measure()
    print_json(report.as_json()) if json_output else print(report.as_text())
