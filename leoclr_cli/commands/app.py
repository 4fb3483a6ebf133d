"""The command `leoclr`: which commands there are, and how errors end. Everything heavy is imported by a command when it
runs, so that `--help` answers at once."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Annotated

import typer

from leoclr.cli.commands import bench as bench_command
from leoclr.cli.commands import check as check_command
from leoclr.cli.commands import embed as embed_command
from leoclr.cli.commands import export as export_command
from leoclr.cli.commands import method as method_command
from leoclr.cli.commands import quickstart as quickstart_command
from leoclr.cli.commands import report as report_command
from leoclr.cli.commands import reproduce as reproduce_command
from leoclr.cli.commands import shard as shard_command
from leoclr.cli.commands import show_config as config_command
from leoclr.cli.commands import train as train_command
from leoclr.cli.commands import views as views_command
from leoclr.cli.commands.eval import group as eval_commands
from leoclr.cli.commands.parsing import LeoclrCommand
from leoclr.cli.terminal import say
from leoclr.datasets.errors import LeoclrError
from leoclr.datasets.storage.addresses import redacted

USER_ERROR = 2

app = typer.Typer(
    name="leoclr",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # takes as long as a tenth of `--help`

        print(f"leoclr {version('leoclr-cli')}")
        raise typer.Exit


@app.callback()
def leoclr(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Pre-train image encoders without labels, with the original image as the anchor (LeOCLR).

    \b
    Examples:
      leoclr quickstart                          see all of it work in a few minutes
      leoclr shard photos/ shards/               pack a folder of images
      leoclr train --data shards/                pre-train an encoder
      leoclr eval linear                         score the newest run
      leoclr export --format torchvision         take the weights away
    """


app.command(cls=LeoclrCommand, short_help="See all of it work in a few minutes.")(quickstart_command.quickstart)
app.command(cls=LeoclrCommand, short_help="Pack images into shards.")(shard_command.shard)
app.command(cls=LeoclrCommand, short_help="Index shards that other tools wrote.")(shard_command.index)
app.command(cls=LeoclrCommand, short_help="Verify shards against their index.")(check_command.check)
app.command(cls=LeoclrCommand, short_help="Draw images as the model sees them.")(views_command.views)
app.command(cls=LeoclrCommand)(train_command.train)
app.command(cls=LeoclrCommand, short_help="Measure the speed of training on this machine.")(bench_command.bench)
app.command("show-config", cls=LeoclrCommand)(config_command.show_config)
app.add_typer(method_command.app, name="method", short_help="Methods: list, write a new one, check one.")
app.add_typer(eval_commands.app, name="eval", short_help="Score an encoder.")
app.command(cls=LeoclrCommand, short_help="Tell of runs on one HTML page.")(report_command.report)
app.command(cls=LeoclrCommand, short_help="Write the features of images.")(embed_command.embed)
app.command(cls=LeoclrCommand, short_help="Run an experiment of the paper.")(reproduce_command.reproduce)
app.add_typer(reproduce_command.ablate_app, name="ablate", short_help="Pre-train again with parts left out.")
app.command(cls=LeoclrCommand, short_help="Take the weights to another program.")(export_command.export)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0, or 2 after one line on stderr for a user's error, or 130 after Ctrl-C."""
    try:
        app(args=arguments)
    except LeoclrError as error:
        say(f"error: {redacted(str(error))}")
        raise SystemExit(USER_ERROR) from None
    except BrokenPipeError:
        raise  # typer's affair: it ends without a word, as Unix tools do
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO):
            raise
        say(f"error: {error.filename or 'the output cannot be written'}: {error.strerror}")
        raise SystemExit(USER_ERROR) from None
