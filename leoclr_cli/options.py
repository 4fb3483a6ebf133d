"""Options shared by several commands: declared once, passed to a command as one value."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import fields
from functools import wraps
from typing import Any, get_type_hints

Command = Callable[..., None]


def with_shared(shared: Sequence[inspect.Parameter], gather: Callable[..., Any]) -> Callable[[Command], Command]:
    """Let a command whose first parameter is what `gather` returns be called with the options in `shared` instead,
    which come before the command's own.

    Args:
        shared: Keyword-only parameters with a default, each annotated with the option that typer is to read.
        gather: Called with the values of these options by name.
    """

    def expand(command: Command) -> Command:
        hints = get_type_hints(command, include_extras=True)
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[parameter.name])
            for parameter in list(inspect.signature(command).parameters.values())[1:]
        ]

        @wraps(command)
        def expanded(**options: Any) -> None:
            asked = {parameter.name: options.pop(parameter.name) for parameter in shared}
            command(gather(**asked), **options)

        parameters = [*shared, *own]
        expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
        expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return expanded

    return expand


def with_fields(declared: type, *without: str) -> Callable[[Command], Command]:
    """`with_shared` for the fields of a dataclass, whose annotations declare the options.

    Args:
        without: Fields that the command does not offer and that keep their default.
    """
    hints = get_type_hints(declared, include_extras=True)
    shared = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(declared)
        if field.name not in without
    ]
    return with_shared(shared, declared)


def spread_values(args: Sequence[str], repeatable: Collection[str]) -> Iterator[str]:
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
