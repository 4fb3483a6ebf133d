"""How the commands of leoclr read their arguments, where that differs from typer's way.

A shell expands `--data shards-{0..9}.tar` before leoclr sees it. So an option that may be repeated takes every value up
to the next option, in a command without positional arguments, which would otherwise be swallowed. And an unknown flag
is answered like any other wrong setting: by one line with the nearest name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from typer.core import TyperCommand

from leoclr.cli.config.fields import FIELDS, nearest, nearest_key
from leoclr.datasets.errors import SettingsError


class LeoclrCommand(TyperCommand):
    """Use as `app.command(cls=LeoclrCommand)`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        parameters = self.get_params(ctx)
        options = [parameter for parameter in parameters if parameter.param_type_name == "option"]
        names = {name for option in options for name in (*option.opts, *option.secondary_opts)}
        _refuse_unknown(args, names)
        if len(options) == len(parameters):
            repeatable = {name for option in options if getattr(option, "multiple", False) for name in option.opts}
            args = list(spread(args, repeatable))
        return super().parse_args(ctx, args)


def spread(args: Sequence[str], repeatable: Collection[str]) -> Iterator[str]:
    """`--data a b c` as `--data a --data b --data c`, for the options in `repeatable`.

    Values run up to the next argument that starts with a dash.
    """
    option = ""
    values = 0
    for argument in args:
        if argument.startswith("-"):
            name, equals, _ = argument.partition("=")
            option, values = (name if name in repeatable else ""), int(bool(equals))
        elif option:
            if values:
                yield option
            values += 1
        yield argument


def _refuse_unknown(args: Sequence[str], names: Collection[str]) -> None:
    for argument in args:
        if argument == "--":
            return
        flag = argument.partition("=")[0]
        if flag.startswith("--") and flag not in names:
            raise SettingsError(f"{flag}: no such flag{_hint(flag, names)}")


def _hint(flag: str, names: Collection[str]) -> str:
    word = flag.removeprefix("--").replace("-", "_")
    dashed = "--" + word.replace("_", "-")
    if dashed in names:
        return f"; did you mean {dashed}?"
    if "--set" in names:
        keys = [key for key in FIELDS if word in (key, key.rpartition(".")[2], key.replace(".", "_"))]
        if keys:
            return f"; did you mean {' or '.join(f'--set {key}=VALUE' for key in keys)}?"
    if guess := nearest(flag, names):
        return f"; did you mean {guess}?"
    if "--set" in names and (key := nearest_key(word)):
        return f"; did you mean --set {key}=VALUE?"
    return ""
