"""`leoclr train`: pre-train an encoder, or resume a run."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from leoclr.cli.commands.base.flags import resolved as resolve
from leoclr.cli.commands.base.flags import with_settings
from leoclr.cli.config.flags import Given
from leoclr.cli.config.preset_files import AUTO
from leoclr.cli.config.resolve import Resolved
from leoclr.cli.config.sections import EncoderSettings
from leoclr.cli.config.settings import Settings
from leoclr.cli.exporting.formats import usual_format
from leoclr.cli.run.model_names import is_named
from leoclr.cli.terminal import print_json, say, suggest, warn
from leoclr.cli.training.monitoring.progress_line import duration, rate_in_words
from leoclr.datasets.errors import SettingsError
from leoclr.datasets.files import did_you_mean
from leoclr.datasets.wording import counted


@with_settings()
def train(
    given: Given,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="RUN", help="Run folder; default: a new one in runs/."),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="RUN", help="Resume the run in this folder.")
    ] = None,
    num_processes: Annotated[
        int, typer.Option("--num-processes", min=1, metavar="N", help="Processes on this machine, one per GPU.")
    ] = 1,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything and print the plan of the run; train nothing, write no run."),
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Pre-train an encoder on shards, or on a folder of images, which is packed into shards in the user's cache first.

    Other settings come from LEOCLR_ variables, the file, the preset or the defaults; `leoclr show-config` takes the
    same flags and prints all of them. Ctrl-C finishes the step and saves; --resume continues.

    \b
    Examples:
      leoclr train --preset auto --data photos/
      leoclr train --backend moco --views leoclr --data 'shards/imagenet-{000..999}.tar'
      leoclr train --preset cifar10 --data shards/cifar10 --output runs/leoclr
      leoclr train --preset cifar10 --views pairwise --data shards/cifar10 --epochs 100 --set moco.queue=8192
      leoclr train --resume runs/leoclr
    """
    from leoclr.cli.run.recorded import recorded_settings

    base = recorded_settings(resume, _moved(given)) if resume is not None else None
    resolved = resolve(given, base, num_processes)
    run = _run_folder(resolved, output, resume, base)
    _refuse_bad_data(resolved.settings, resume)
    weights = resolved.settings.encoder.weights
    if resume is None and weights and not is_named(weights) and not Path(weights).exists():
        raise SettingsError(f"encoder.weights {weights}: no such run, checkpoint or file{did_you_mean(Path(weights))}")

    if dry_run:
        from leoclr.cli.training.dry_run import as_text, plan_of

        plan = plan_of(resolved.settings, num_processes)
        print_json(plan) if json_output else print(as_text(plan))
        return

    from leoclr.cli.preflight.launch import launch, launched
    from leoclr.cli.run.variables import settle_launch

    settle_launch(os.environ)
    if num_processes > 1 and not launched():
        arguments = [*sys.argv[1:]]
        if output is None and resume is None:
            arguments += ["--output", str(run)]  # all processes must mean the same folder
        raise typer.Exit(launch(num_processes, arguments))

    main = os.environ.get("RANK", "0") == "0"
    for line in resolved.warnings if main else ():
        warn(line)
    if given.preset == AUTO and base is None:
        from leoclr.cli.training.auto_settings import choice_line

        say(choice_line(resolved.settings))

    from leoclr.cli.training.trainer import train as run_training

    result = run_training(resolved.settings, run, given.preset, sys.argv, resume=resume is not None)
    try:
        if main:
            _report(asdict(result), resolved.settings.encoder, json_output)
    finally:  # also where nobody listens any more
        if result.stopped_by:
            raise typer.Exit(128 + result.stopped_by)


def _moved(given: Given) -> str | Sequence[str] | None:
    """Training data that is named anew, without validation data."""
    return None if "data.val" in given.values else given.values.get("data.train")


def _run_folder(resolved: Resolved, output: Path | None, resume: Path | None, base: Settings | None) -> Path:
    from leoclr.cli.run.recorded import refuse_changes

    if resume is not None and base is not None:
        if output is not None and output.resolve() != resume.resolve():
            raise SettingsError(f"--resume {resume} goes on in that folder; leave out --output {output}")
        refuse_changes(resume, base, resolved.settings)
        return resume
    if output is not None:
        return output
    settings = resolved.settings
    name = f"{settings.views}-{settings.backend}-{settings.encoder.backbone.replace(':', '-').replace('/', '-')}"
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"


def _refuse_bad_data(settings: Settings, resume: Path | None) -> None:
    """What can be said about the data without torch is said before it is imported. Folders of images are packed here,
    before other processes are started, which would wait for it no longer than `run.timeout_minutes`."""
    from leoclr.cli.image_folders import as_shards, shards_of_run
    from leoclr.datasets.shards.locate import check_specs

    announce = "RANK" not in os.environ
    for specs, flag in ((settings.data.train, "--data"), (settings.data.val or (), "--val-data")):
        if resume is None:
            check_specs(as_shards(specs, announce))
        else:
            shards_of_run(specs, flag, announce)


def _report(result: dict[str, Any], encoder: EncoderSettings, json_output: bool) -> None:
    run = result["run"]
    if json_output:
        print_json(result)
    if result["stopped_by"]:
        say(f"saved after step {result['step']:,} of {result['steps']:,}")
        suggest(("train", "--resume", run))
        return
    if result["loss"] is None:
        say(f"the run is complete already, with {counted(result['steps'], 'step')}")
    else:
        say(
            f"done in {duration(result['seconds'])}: {counted(result['step'], 'step')}, loss {result['loss']:.4f}, "
            f"{rate_in_words(result['images_per_second'])} images/s"
        )
    say(f"checkpoint: {result['checkpoint']}")
    score = ("eval", "linear", run) if result["labelled"] else ("report", run)  # which shows neighbours without labels
    suggest(score, ("export", run, "--format", usual_format(encoder.backbone, encoder.width)))
