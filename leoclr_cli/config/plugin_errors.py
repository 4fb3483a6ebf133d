"""What to say of an error that comes out of another package's method or view policy: the place in its file."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from types import FrameType

from leoclr.cli.config.light_import import module_of
from leoclr.cli.config.plugins import METHODS, VIEWS, WRAPPERS, plugins
from leoclr.datasets.errors import LeoclrError


def place_in_plugin(error: BaseException) -> str | None:
    """Where in the file of an installed package that is not leoclr an error came about: `file.py, line 3, in forward`.

    It is the innermost of its lines, which torch's functions may have been called from; None where there is none.
    """
    packages = _packages()
    found = innermost(error, lambda frame: _package(frame) in packages)
    return None if found is None else place_of(*found)


def place_of(frame: FrameType, line: int) -> str:
    """A line of a file: `file.py, line 3, in forward`."""
    return f"{frame.f_code.co_filename.rpartition('/')[2]}, line {line}, in {frame.f_code.co_name}"


def innermost(error: BaseException, wanted: Callable[[FrameType], bool]) -> tuple[FrameType, int] | None:
    """The innermost frame that an error went through of those that are `wanted`, and its line; None where none is."""
    return next((found for found in reversed([*traceback.walk_tb(error.__traceback__)]) if wanted(found[0])), None)


def told_with_place(error: Exception) -> str:
    """An error in a line, with its place where that is in another package's file."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    place = place_in_plugin(error)
    return text if place is None else f"{text} ({place})"


def _package(frame: FrameType) -> str:
    return module_of(str(frame.f_globals.get("__name__", ""))).partition(".")[0]


def _packages() -> set[str]:
    try:
        found = [one for group in (METHODS, VIEWS, WRAPPERS) for one in plugins(group).values()]
    except LeoclrError:  # told where it is chosen
        return set()
    return {one.entry.module.partition(".")[0] for one in found if not one.builtin}
