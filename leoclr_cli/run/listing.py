"""List run folders from small files, without verifying or loading checkpoints."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from leoclr.cli.run.checkpoint import MANIFEST, STATE, step_folders
from leoclr.cli.run.folder import RUNS, RunFolder
from leoclr.cli.run.json_file import number, read_json_object
from leoclr.cli.run.lock import is_locked
from leoclr.datasets.errors import CheckpointError, RunError
from leoclr.datasets.files import did_you_mean
from leoclr.datasets.json_text import parse_json_text

State = Literal["running", "complete", "stopped", "empty", "damaged"]
_MOST_BYTES = 16 << 20  # of metrics.jsonl, from its end: a hundred thousand lines


@dataclass(frozen=True)
class ListedRun:
    """One run.

    Attributes:
        state: running: a process holds its lock; complete: all steps are made; stopped: it can be resumed; empty: it
            has no checkpoint; damaged: its run.json cannot be read.
        step, steps: Optimizer steps that are saved (of a running run: logged), and all; None where nothing tells.
        loss, knn: The last that were logged; the score is a share in [0, 1].
        bytes: Of all files in the folder.
        started: Seconds since 1970.
    """

    path: Path
    state: State
    step: int
    steps: int | None
    loss: float | None
    knn: float | None
    bytes: int
    started: float

    @property
    def age(self) -> float:
        """Seconds since it was started."""
        return max(0.0, time.time() - self.started)


def list_runs(places: Sequence[Path]) -> list[ListedRun]:
    """The runs that are named, and those in folders that are named, the newest first.

    Raises:
        RunError: A place does not exist.
    """
    if missing := [place for place in places if not place.is_dir()]:
        raise RunError(f"{missing[0]}: no such folder{did_you_mean(Path(missing[0]))}")
    found = {path.resolve(): path for place in places for path in _runs_of(place)}
    return sorted((_listed(path) for path in found.values()), key=lambda run: (-run.started, run.path))


def _runs_of(place: Path) -> Iterator[Path]:
    if RunFolder(place).settings_file.is_file():
        yield place
    else:
        yield from sorted(file.parent for pattern in RUNS for file in place.glob(pattern))


def _listed(path: Path) -> ListedRun:
    run = RunFolder(path)
    try:
        content: dict[str, Any] | None = run.read()
    except RunError:
        content = None
    lines = _last_values(run.metrics)
    saved, steps = _newest_saved(run.checkpoints)
    logged, epoch = lines.get("step"), lines.get("epoch")
    running = is_locked(path)
    if steps is None and logged and epoch and (epochs := _epochs(content)) is not None:
        steps = round(logged / epoch * epochs)
    step = int(logged) if running and logged else saved or 0
    state: State = "stopped"
    if content is None:
        state = "damaged"
    elif running:
        state = "running"
    elif saved is None:
        state = "empty"
    elif steps is not None and saved >= steps:
        state = "complete"
    size, started = _bytes_of(path), _started(content, run.settings_file)
    return ListedRun(path, state, step, steps, lines.get("loss"), lines.get("knn"), size, started)


def _last_values(metrics: Path) -> dict[str, float]:
    """The last value of each measure in metrics.jsonl; lines that are no JSON objects are passed over."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _MOST_BYTES))
            lines = file.read(_MOST_BYTES).splitlines()
    except OSError:
        return {}
    values: dict[str, float] = {}
    for line in lines:
        try:
            content = parse_json_text(line)
        except ValueError:
            continue
        if isinstance(content, dict):
            values |= {name: value for name, told in content.items() if (value := number(told)) is not None}
    return values


def _epochs(content: dict[str, Any] | None) -> float | None:
    train = (content or {}).get("settings", {}).get("train")
    return number(train.get("epochs")) if isinstance(train, dict) else None


def _newest_saved(checkpoints: Path) -> tuple[int | None, int | None]:
    """Step of the newest checkpoint, and all steps of its run."""
    for step, folder in reversed(step_folders(checkpoints)):
        if (folder / MANIFEST).is_file():
            try:
                steps = read_json_object(folder / STATE).get("steps")
            except CheckpointError:
                continue
            return step, steps if isinstance(steps, int) else None
    return None, None


def _bytes_of(path: Path) -> int:
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:  # removed meanwhile
                continue
    return total


def _started(content: dict[str, Any] | None, file: Path) -> float:
    try:
        return datetime.fromisoformat((content or {})["started"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return file.stat().st_mtime
