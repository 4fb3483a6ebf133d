"""`leoclr runs`: list runs, and remove unneeded ones."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from leoclr.datasets.errors import RunError
from leoclr.datasets.wording import aligned, counted, in_bytes

if TYPE_CHECKING:
    from leoclr.cli.run.listing import ListedRun

_PARTIAL = ".removed-"


def runs(
    places: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PLACE", help="Runs or folders of runs; default: the working directory."),
    ] = None,
    state: Annotated[
        Literal["running", "complete", "stopped", "empty", "damaged"] | None,
        typer.Option("--state", help="Only runs in this state; empty runs have no checkpoint."),
    ] = None,
    prune: Annotated[
        bool,
        typer.Option("--prune", help="Ask, then remove the empty runs, or the runs in --state."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove without asking.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """List runs with state, step, loss, k-NN score, size and age, newest first.

    A running run is never removed; complete and stopped runs only if --state names their state.

    \b
    Examples:
      leoclr runs
      leoclr runs runs/ablation --state stopped
      leoclr runs --prune
      leoclr runs runs/first --state complete --prune --yes
    """
    from leoclr.cli.run.listing import list_runs
    from leoclr.cli.terminal import print_json, say

    if prune and state == "running":
        raise RunError("--prune --state running: a run is removed when no process writes to it any more")
    wanted = state or ("empty" if prune else None)
    found = [run for run in list_runs(places or [Path(".")]) if wanted is None or run.state == wanted]
    removed = _removed(found, yes, as_json) if prune else []
    if as_json:
        listed = [{**asdict(run), "path": str(run.path), "age": run.age} for run in found]
        print_json({"runs": listed, "removed": [str(path) for path in removed]} if prune else {"runs": listed})
    elif not prune:
        print(_table(found) if found else "no runs")
    else:
        say(f"removed {counted(len(removed), 'run')}")


def _removed(found: Sequence[ListedRun], yes: bool, quiet: bool) -> list[Path]:
    """Remove runs, once that is confirmed; the folders that are gone."""
    from leoclr.cli.terminal import say

    if not found:
        return []
    if not yes:
        if quiet or not sys.stdin.isatty():
            raise RunError(f"{counted(len(found), 'run')} would be removed: say so with --yes")
        say(_table(found))
        size = in_bytes(sum(run.bytes for run in found))
        if not typer.confirm(f"remove {counted(len(found), 'run')}, {size}?", err=True):
            return []
    return [run.path for run in found if _remove(run.path)]


def _remove(path: Path) -> bool:
    """Remove one run folder: renamed first, under its lock, so that half of a run never looks like one."""
    from leoclr.cli.run.lock import RunLock
    from leoclr.cli.terminal import warn

    doomed = path.with_name(f"{_PARTIAL}{path.name}")
    try:
        if path.is_symlink():
            raise RunError(f"{path} is a link; remove what it leads to by its own name")
        with RunLock(path):
            os.replace(path, doomed)
        shutil.rmtree(doomed)
    except (RunError, OSError) as error:
        warn(f"not removed: {error}")
        return False
    return True


def _table(found: Sequence[ListedRun]) -> str:
    rows = [["run", "state", "step", "loss", "k-NN", "size", "age"]]
    for run in found:
        steps = "" if run.steps is None else f" of {run.steps:,}"
        loss = "" if run.loss is None else f"{run.loss:.3f}"
        knn = "" if run.knn is None else f"{run.knn:.1%}"
        rows.append([str(run.path), run.state, f"{run.step:,}{steps}", loss, knn, in_bytes(run.bytes), _age(run.age)])
    return aligned(rows)


def _age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
