"""The command `leoclr` and the table of its subcommands."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from leoclr.cli.commands.base.errors import exit_code
from leoclr.cli.commands.base.lazy import Entry, group_of
from leoclr.cli.commands.base.loading import announce_loading
from leoclr.cli.run.variables import drop_what_changes_results
from leoclr.cli.terminal import warn
from leoclr.datasets.errors import SettingsError

COMMANDS = {
    "quickstart": Entry("leoclr.cli.commands.quickstart:quickstart", "Try everything in a few minutes."),
    "shard": Entry("leoclr.cli.commands.shard:shard", "Pack images into shards."),
    "index": Entry("leoclr.cli.commands.index:index", "Index shards that other tools wrote."),
    "check": Entry("leoclr.cli.commands.check:check", "Verify shards against their index."),
    "views": Entry("leoclr.cli.commands.views:views", "Draw images as the model sees them."),
    "train": Entry("leoclr.cli.commands.train:train", "Pre-train an encoder on shards."),
    "certify": Entry("leoclr.cli.commands.certify:certify", "Check on this machine that runs lose nothing."),
    "bench": Entry("leoclr.cli.commands.bench:bench", "Measure the speed of training on this machine."),
    "show-config": Entry("leoclr.cli.commands.show_config:show_config", "Show every setting with its origin."),
    "method": Entry("leoclr.cli.commands.method:app", "List methods, create a new one, or check one."),
    "eval": Entry("leoclr.cli.commands.eval.group:app", "Score an encoder."),
    "runs": Entry("leoclr.cli.commands.runs:runs", "List runs and remove unneeded ones."),
    "replay": Entry("leoclr.cli.commands.replay:replay", "Run a failed step again, with figures of every layer."),
    "report": Entry("leoclr.cli.commands.report:report", "Write an HTML report of one or several runs."),
    "embed": Entry("leoclr.cli.commands.embed:embed", "Write the features of images."),
    "duplicates": Entry("leoclr.cli.commands.duplicates:duplicates", "Find near copies among images."),
    "reproduce": Entry("leoclr.cli.commands.reproduce:reproduce", "Run an experiment of the paper."),
    "ablate": Entry("leoclr.cli.commands.reproduce:ablate_app", "Repeat pre-training without single components."),
    "export": Entry("leoclr.cli.commands.export:export", "Export the encoder for another program."),
}

app = typer.Typer(
    name="leoclr",
    cls=group_of(COMMANDS),
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def leoclr(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="With --version: everything for a bug report, including the machine.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --version: print it as JSON.")] = False,
) -> None:
    """Pre-train image encoders without labels, with the original image as the anchor (LeOCLR).

    \b
    Examples:
      leoclr quickstart                          try everything in a few minutes
      leoclr shard photos/ shards/               pack a folder of images for good
      leoclr train --preset auto --data photos/  pre-train an encoder on a folder of images
      leoclr eval linear                         score the newest run
      leoclr export --format torchvision         export the weights
    """
    if show_version:
        from leoclr.cli.commands.version import print_version

        print_version(verbose, as_json)
        raise typer.Exit
    if verbose or as_json:
        raise SettingsError("--verbose and --json go with --version, or behind a command")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the code of the table in docs/faults.md.

    Args:
        arguments: Those of the process if None.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if dropped := drop_what_changes_results(os.environ):  # before any command imports torch or NumPy
        warn(f"ignored from the environment, where it would change results: {', '.join(dropped)}")
    announce_loading()
    command: Any = typer.main.get_command(app)
    raise SystemExit(exit_code(lambda: command.main(words, "leoclr", standalone_mode=False), "--json" in words))
