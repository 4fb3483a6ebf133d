"""Layout of run folders, and the default run or checkpoint of a command."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from leoclr.cli.run.checkpoint import JSON, MANIFEST, Sound, newest_sound, verify
from leoclr.cli.run.json_file import read_json_object
from leoclr.cli.run.model_names import is_model_folder, is_named
from leoclr.cli.terminal import warn
from leoclr.datasets.errors import CheckpointError, RunError
from leoclr.datasets.files import cache_root, did_you_mean, write_atomic
from leoclr.datasets.json_text import parse_json_text

FORMAT = 1
RUNS = ("runs/*/run.json", "*/run.json", "*/run/run.json")  # where a run is looked for that was not named


@dataclass(frozen=True)
class RunFolder:
    """The parts of a run folder. Whether they exist is another question."""

    path: Path

    @property
    def settings_file(self) -> Path:
        """What the run was started with: settings, data, versions, command."""
        return self.path / "run.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def failure(self) -> Path:
        """The step that failed, and the first images of its batch."""
        return self.path / "failed-step.json"

    @property
    def bad_images(self) -> Path:
        """One line for each image that cannot be read; missing where all can."""
        return self.path / "bad-images.txt"

    @property
    def evals(self) -> Path:
        return self.path / "evals"

    @property
    def exports(self) -> Path:
        return self.path / "export"

    def read(self) -> dict[str, Any]:
        """The content of run.json.

        Raises:
            RunError: It is missing, damaged, or of a format that this version does not know.
        """
        try:
            content = parse_json_text(self.settings_file.read_bytes())
        except FileNotFoundError as error:
            if not self.path.exists():
                raise RunError(f"{self.path}: no such run{did_you_mean(self.path)}") from None
            raise RunError(f"{self.path} is not a run folder: it has no run.json") from error
        except (OSError, ValueError) as error:
            raise RunError(f"cannot read {self.settings_file}: {error}") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise RunError(f"{self.settings_file} is not a run description of format {FORMAT}")
        for part in ("settings", "data"):
            if not isinstance(content.get(part, {}), dict):
                raise RunError(f"{self.settings_file} is damaged: {part} is no object")
        return content

    def data(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Where the training data and the validation data lie, by run.json.

        Raises:
            RunError: run.json is missing or damaged, or does not say.
        """
        told = self.read().get("data", {})
        train, val = (told.get(split) for split in ("train", "val"))
        if not (_are_texts(train) and _are_texts(val)):
            raise RunError(f"{self.settings_file} does not say where the data lies: name it with --data")
        return tuple(train), tuple(val)

    def write(self, content: Mapping[str, JSON]) -> None:
        """Replace run.json as a whole; `format` is added.

        Raises:
            RunError: The folder cannot be written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"format": FORMAT, **content}, indent=2, allow_nan=False)
            write_atomic(self.settings_file, text.encode())
        except OSError as error:
            raise RunError(f"cannot write {self.settings_file}: {error}") from error

    def moved(self, train: Sequence[str], val: Sequence[str]) -> None:
        """Note where the data lies now, so that the next command finds it there."""
        from leoclr.datasets.shards.locate import absolute  # with numpy, which the help of commands can do without

        content = self.read()
        data = content["data"] | {"train": list(absolute(train)), "val": list(absolute(val))}
        if data != content["data"]:
            self.write({key: value for key, value in content.items() if key != "format"} | {"data": data})

    def extended(self, epochs: int, step: int) -> int | None:
        """Note that a run has more epochs from a step on; returns how many it had, or None where it had as many."""
        content = self.read()
        before = int(content["settings"]["train"]["epochs"])
        if epochs <= before:
            return None
        content["settings"]["train"]["epochs"] = epochs
        content.setdefault("extensions", []).append({"after_step": step, "epochs_before": before, "epochs": epochs})
        self.write({key: value for key, value in content.items() if key != "format"})
        return before

    def note_failure(self, step: int, keys: Sequence[str]) -> None:
        """Keep what `leoclr replay` needs to know of a step that failed."""
        with suppress(OSError):  # the failure itself is what must be told
            write_atomic(self.failure, json.dumps({"step": step, "images": list(keys)}, indent=2).encode())

    def failed_step(self) -> int | None:
        """The step of the newest failure, by number from 0, or None.

        Raises:
            CheckpointError: The note is damaged.
        """
        if not self.failure.exists():
            return None
        step = read_json_object(self.failure).get("step")
        if not isinstance(step, int) or step < 0:
            raise CheckpointError(f"{self.failure} names no step")
        return step

    @contextmanager
    def still_there(self) -> Iterator[None]:
        """Around a save: a folder that somebody moved or removed is not made anew with half a run in it.

        Raises:
            RunError: It is gone, before the save or while it went on.
        """
        vanished = RunError(f"{self.path} has vanished, and with it run.json; nothing is saved in its place")
        if not self.settings_file.exists():
            raise vanished
        try:
            yield
        except CheckpointError:
            if self.settings_file.exists():
                raise
            raise vanished from None


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def feature_folder(run: Path | None) -> Path:
    """Where features are cached: in the run; for other weights where this system keeps caches."""
    return cache_root() / "features" if run is None else run / "features"


def work_folder(run: Path | None) -> Path:
    """The same for long computations."""
    return cache_root() / "evals" if run is None else RunFolder(run).evals / "work"


def newest_run(root: Path = Path(".")) -> Path:
    """The run folder in `root` or `root`/runs that was started last; those of quickstarts count as well.

    Raises:
        RunError: There is none.
    """
    runs = [file.parent for pattern in RUNS for file in root.glob(pattern)]
    if not runs:
        raise RunError(
            f"no run in {root.resolve()} or its runs folder: name one, or make one with `leoclr train --data FOLDER "
            "--preset auto`"
        )
    return max(runs, key=_started)


def find_checkpoint(path: Path | None) -> Sound | Path:
    """The checkpoint folder, verified, or the exported file, folder or name that a command's argument means.

    Args:
        path: A run folder or a folder of checkpoints (its newest sound checkpoint is taken; damaged ones are
            named in a warning), a checkpoint folder, a file, a folder or a name of a model (taken as they are), or None
            for the newest run.

    Raises:
        CheckpointError: It is none of these, it is damaged, or the run has no sound checkpoint.
        RunError: It is None and there is no run.
    """
    path = newest_run() if path is None else path
    if is_named(str(path)) or is_model_folder(path):
        return path
    if path.is_file():
        return path
    if (path / MANIFEST).exists() or path.name.startswith("step-"):
        return verify(path)
    if not path.exists():
        raise _no_such_run(path)
    run = RunFolder(path)
    folder = run.checkpoints if run.settings_file.exists() else path
    newest, damaged = newest_sound(folder)
    if newest is None and damaged:
        raise CheckpointError(f"no sound checkpoint in {folder}: {'; '.join(damaged)}")
    if newest is None and folder == path:
        raise CheckpointError(f"{path} is neither a run, a checkpoint nor an exported file")
    if newest is None:
        raise CheckpointError(f"the run {path} has no checkpoint yet")
    for line in damaged:
        warn(line)
    return newest


def existing_weights(weights: Path | list[Path] | None) -> None:
    """Raise CheckpointError where the argument of a command is nothing at all."""
    for path in [weights] if isinstance(weights, Path) else weights or ():
        if not is_named(str(path)) and not path.exists():
            raise _no_such_run(path)


def _no_such_run(path: Path) -> CheckpointError:
    return CheckpointError(f"{path}: no such run, checkpoint or file{did_you_mean(path)}")


def _started(run: Path) -> tuple[float, float]:
    """When a run was started, in seconds since 1970, and the time of its run.json, which decides a tie.

    The second also stands in for the first where run.json does not say.
    """
    file = RunFolder(run).settings_file
    written = file.stat().st_mtime
    try:
        return datetime.fromisoformat(parse_json_text(file.read_bytes())["started"]).timestamp(), written
    except (OSError, ValueError, KeyError, TypeError):
        return written, written
