"""Parsing of arguments where it differs from typer's.

A shell expands `--data shards-{0..9}.tar` before leoclr sees it. Repeatable options therefore take all values up to the
next option, in commands without positional arguments. An unknown flag is reported like any other wrong setting: in one
line with the nearest name.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from typer.core import TyperCommand

from leoclr.cli.options import spread_values
from leoclr.datasets.errors import SettingsError


class LeoclrCommand(TyperCommand):
    """Use as `app.command(cls=LeoclrCommand)`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        parameters = self.get_params(ctx)
        options = [parameter for parameter in parameters if parameter.param_type_name == "option"]
        names = {name for option in options for name in (*option.opts, *option.secondary_opts)}
        refuse_unknown(args, names)
        if len(options) == len(parameters):
            repeatable = {name for option in options if getattr(option, "multiple", False) for name in option.opts}
            args = list(spread_values(args, repeatable))
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        for parameter in self.get_params(ctx):
            if parameter.param_type_name == "argument":
                setattr(parameter, "display_type_rich", lambda ctx: "")  # noqa: B010  Python's type, beside the metavar
        super().format_options(ctx, formatter)


def refuse_unknown(args: Sequence[str], names: Collection[str]) -> None:
    """Raise SettingsError for a flag that is none of `names`, with the nearest one."""
    for argument in args:
        if argument == "--":
            return
        flag = argument.partition("=")[0]
        if flag.startswith("--") and flag not in names:
            from leoclr.cli.config.flags import no_such_flag  # and with it pydantic

            raise SettingsError(no_such_flag(flag, names))
