"""`leoclr method`: list installed methods, create a package for a new one, check one."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from leoclr.cli.commands.base.lazy import Entry, group_of
from leoclr.cli.terminal import print_json, say
from leoclr.datasets.wording import aligned

_HELP = """List, create and check methods (--backend); list view policies (--views).

\b
Examples:
  leoclr method list
  leoclr method new tiny
  leoclr method check moco
"""

COMMANDS = {
    "list": Entry("leoclr.cli.commands.method:list_methods", "List methods and view policies."),
    "new": Entry("leoclr.cli.commands.method:new", "Create a package for a new method."),
    "check": Entry("leoclr.cli.commands.method:check", "Check that a method keeps the promises of the seam."),
}

app = typer.Typer(help=_HELP, cls=group_of(COMMANDS), rich_markup_mode=None)


def list_methods(
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List installed methods and view policies with their packages.

    \b
    Examples:
      leoclr method list
      leoclr method list --json
    """
    from leoclr.cli.config.plugins import METHODS, VIEWS, Plugin, plugins
    from leoclr.datasets.errors import SettingsError

    def summary(one: Plugin) -> str:
        try:
            return one.summary()
        except SettingsError as error:
            return str(error)

    rows = [
        {"kind": kind, "name": one.name, "package": f"{one.package} {one.version}", "summary": summary(one)}
        for kind, group in (("method", METHODS), ("views", VIEWS))
        for one in plugins(group).values()
    ]
    if json_output:
        print_json(rows)
        return
    print(aligned([list(row.values()) for row in rows], left=4))


def new(
    name: Annotated[str, typer.Argument(help="Name of the method, for --backend.", show_default=False)],
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of the package; default: the name of the method.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the files as JSON.")] = False,
) -> None:
    """Write an installable package with one working method, its test and a README.

    \b
    Examples:
      leoclr method new tiny
      leoclr method new tiny plugins/tiny
    """
    from leoclr.cli.methods.scaffold import write_package

    target = folder if folder is not None else Path(name)
    written = write_package(name, target)
    if json_output:
        print_json({"files": [str(path) for path in written]})
        return
    say("\n".join(str(path) for path in written))
    where = shlex.quote(str(target) if target.is_absolute() else f"./{target}")
    say(f"next:  pip install {where} && leoclr method check {name}")


def check(
    name: Annotated[str, typer.Argument(help="The method.", show_default=False)],
    views: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="View policy to check it with; default: its own, and a loss with each other one."
        ),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Check that a method works with every part of leoclr; exit code 1 on a failure, not on a note.

    Checks loss and gradients, what a step changes, the loss under bf16, two processes against one, a resumed run
    against an uninterrupted one, checkpoints, export, and every installed view policy. Takes about a minute.

    \b
    Examples:
      leoclr method check moco
      leoclr method check moco --views weak-strong
      leoclr method check byol --json
    """
    import tempfile

    from leoclr.cli.config.plugins import METHODS, VIEWS, plugin

    plugin(METHODS, name)  # an unknown name is answered before torch is loaded
    if views is not None:
        plugin(VIEWS, views)
    say(f"checking {name}: small networks on the CPU, about a minute")

    from leoclr.cli.methods.checks import check_method
    from leoclr.cli.methods.outcome import collected

    with tempfile.TemporaryDirectory() as folder:
        results = collected(check_method(name, Path(folder), views=views), show=not json_output)
    failed = [result for result in results if not result.passed]
    if json_output:
        print_json(
            {"method": name, "views": views, "passed": not failed, "checks": [result.as_json() for result in results]}
        )
    if failed:
        raise typer.Exit(1)
