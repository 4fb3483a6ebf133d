"""Command groups that import a command when it is called, so that `--help` is fast."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from itertools import takewhile
from typing import Any, NamedTuple

import typer
from typer.core import TyperGroup

from leoclr.cli.commands.base.errors import USER_ERROR
from leoclr.cli.commands.base.parsing import LeoclrCommand, refuse_unknown
from leoclr.cli.terminal import say


class Entry(NamedTuple):
    """A command before it is imported.

    Attributes:
        place: "module:name" of a function, or of a `typer.Typer` with commands of its own.
        summary: What the list of commands says of it.
    """

    place: str
    summary: str


def group_of(entries: Mapping[str, Entry]) -> type[TyperGroup]:
    """The class of a group with these commands, for `typer.Typer(cls=...)`."""

    class Group(TyperGroup):
        def __init__(self, **attributes: Any) -> None:
            super().__init__(**attributes)
            self.commands: Any = _Commands(entries)

        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            if not args:
                say(ctx.get_help())
                raise typer.Exit(USER_ERROR)
            names = {name for option in self.get_params(ctx) for name in option.opts}
            refuse_unknown(list(takewhile(lambda word: word.startswith("-"), args)), names)
            return super().parse_args(ctx, args)

        def list_commands(self, ctx: Any) -> list[str]:
            return list(entries)

        def format_commands(self, ctx: Any, formatter: Any) -> None:
            with formatter.section("Commands"):
                formatter.write_dl([(name, entry.summary) for name, entry in entries.items()])

    return Group


class _Commands(Mapping[str, Any]):
    """The commands by name, each imported when it is asked for."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._entries = entries

    def __getitem__(self, name: str) -> Any:
        module, _, attribute = self._entries[name].place.partition(":")
        found = getattr(import_module(module), attribute)
        if isinstance(found, typer.Typer):
            command: Any = typer.main.get_group(found)
        else:
            alone = typer.Typer(add_completion=False, rich_markup_mode=None)
            alone.command(name, cls=LeoclrCommand)(found)
            command = typer.main.get_command(alone)
        command.name = name
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
