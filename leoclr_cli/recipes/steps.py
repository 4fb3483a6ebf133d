"""Steps of a recipe as commands: planned, finished, and the next one to run.

Every step runs as a `leoclr` command in its own process, exactly as a user would type it, and Ctrl-C stops it in the
same way. A step is finished when its record exists.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from leoclr.cli.config.flags import parse_flags
from leoclr.cli.recipes.definition import Column, Recipe
from leoclr.cli.run.checkpoint import MANIFEST, step_folders
from leoclr.datasets.errors import RunError, SettingsError
from leoclr.datasets.files import write_atomic
from leoclr.datasets.json_text import parse_json_text

_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_DATA_FLAGS = {"transfer": ("--data", "--test-data"), "detection": ("--data", "--test-data")}  # of `leoclr eval`


@dataclass(frozen=True)
class RecipePlan:
    """What a recipe is carried out with.

    Attributes:
        folder: Holds runs, records and results.
        data: Shards by data set.
        scale: Of all epochs; 1 is the paper's.
        seeds: Of the pre-trainings.
        changes: Settings of the pre-trainings, KEY=VALUE, where the recipe does not say otherwise.
        precision: Of the forward passes; None leaves it to the commands, and to the detector in any case.
        processes: Of each pre-training.
        flags: Added to each command; they change no figure.
        any_data: Whether other data than the recipe's are taken, as a trial.
    """

    recipe: Recipe
    folder: Path
    data: Mapping[str, str]
    scale: float = 1.0
    seeds: tuple[int, ...] = (0,)
    changes: tuple[str, ...] = ()
    precision: str | None = None
    processes: int = 1
    flags: tuple[str, ...] = ()
    any_data: bool = False

    def shards(self, split: str) -> str:
        """What a command is told to read for NAME or NAME/SPLIT."""
        name, slash, part = split.partition("/")
        return f"{self.data[name]}{slash}{part}"

    def epochs(self, number: float) -> int:
        return max(1, round(self.scale * number))

    def precision_flags(self) -> tuple[str, ...]:
        return ("--precision", self.precision) if self.precision else ()

    def commands(self) -> dict[str, str]:
        """All that decides the figures: the command of each step, by the name of its record."""
        plain = replace(self, folder=Path("OUTPUT"), flags=())
        steps = [step for unit in plain.units() for step in unit.steps()]
        return {step.record.name: shlex.join(("leoclr", *step.command_as_planned())) for step in steps}

    def units(self) -> Iterator[Unit]:
        """Every pre-training that some column needs, for each method and seed."""
        for seed in self.seeds:
            for name in self.recipe.pretrain:
                if any(column.pretrain == name for column in self.recipe.columns):
                    for method, about in self.recipe.methods.items():
                        if about.arguments is not None:
                            yield Unit(self, method, name, seed)


@dataclass(frozen=True)
class Unit:
    """One method pre-trained once, with all of its evaluations."""

    plan: RecipePlan = field(repr=False)
    method: str
    pretrain: str
    seed: int

    @property
    def name(self) -> str:
        parts = (self.method, self.pretrain, f"seed-{self.seed}")
        return "-".join("".join(c if c.isalnum() else "-" for c in part).strip("-").lower() for part in parts)

    @property
    def run(self) -> Path:
        return self.plan.folder / "runs" / self.name

    def columns(self) -> list[Column]:
        return [column for column in self.plan.recipe.columns if column.pretrain == self.pretrain]

    def record(self, column: Column) -> Path:
        """Columns that are figures of one evaluation share its record."""
        epochs = f"{column.epochs}-epochs" if column.epochs else ""
        parts = (*column.command, column.train_data, column.test_data, epochs)
        words = "-".join(part.strip("-") for part in parts if part)
        safe = "".join(c if c.isalnum() else "-" for c in words)
        return self.plan.folder / "records" / f"{self.name}-{safe}.json"

    def recipe_flags(self) -> tuple[str, ...]:
        recipe = self.plan.recipe
        return recipe.pretrain[self.pretrain].arguments + (recipe.methods[self.method].arguments or ())

    def changes(self) -> tuple[str, ...]:
        """The plan's, but for settings that the recipe sets here: what it compares must stay apart."""
        own = parse_flags(self.recipe_flags()).values
        return tuple(change for change in self.plan.changes if change.partition("=")[0] not in own)

    def settings_flags(self) -> tuple[str, ...]:
        """Flags that `leoclr train` and `leoclr show-config` share: all that decides the weights."""
        plan, pretraining = self.plan, self.plan.recipe.pretrain[self.pretrain]
        epochs = plan.epochs(pretraining.epochs * plan.recipe.methods[self.method].epochs)
        return (
            *(*self.recipe_flags(), "--data", plan.shards(pretraining.data)),
            *("--epochs", str(epochs), "--seed", str(self.seed)),
            *(word for change in self.changes() for word in ("--set", change)),
            *(plan.precision_flags() + plan.flags),
        )

    def pretraining(self) -> Pretrain:
        processes = self.plan.processes
        several = ("--num-processes", str(processes)) if processes > 1 else ()
        record = self.plan.folder / "records" / f"{self.name}-train.json"
        return Pretrain(record, ("train", *self.settings_flags(), *several), self.run)

    def evaluations(self) -> list[Evaluate]:
        """One for each record, in the order of the columns; SettingsError where two would share one."""
        steps: dict[Path, Evaluate] = {}
        for column in self.columns():
            record = self.record(column)
            arguments = ["eval", *column.command, str(self.run)]
            flags = _DATA_FLAGS.get(column.command[0], ("--train-data", "--data"))
            for flag, split in zip(flags, (column.train_data, column.test_data), strict=True):
                arguments += [flag, self.plan.shards(split)] if split else []
            arguments += ["--epochs", str(self.plan.epochs(column.epochs))] if column.epochs else []
            arguments += () if column.command[0] == "detection" else self.plan.precision_flags()
            step = Evaluate(record, (*arguments, *self.plan.flags, "-o", str(record)))
            if steps.setdefault(record, step) != step:
                raise SettingsError(f"column {column.name!r} would share {record.name} with another command")
        return list(steps.values())

    def steps(self) -> list[Pretrain | Evaluate]:
        return [self.pretraining(), *self.evaluations()]


@dataclass(frozen=True)
class Evaluate:
    """`leoclr eval`, which writes the record itself."""

    record: Path
    arguments: tuple[str, ...]

    def done(self) -> bool:
        return self.record.exists()

    def begun(self) -> bool:
        return self.done()

    def command(self) -> tuple[str, ...]:
        """What is run now."""
        return self.arguments

    def command_as_planned(self) -> tuple[str, ...]:
        """What does all of it from the start."""
        return self.arguments

    def run(self) -> None:
        self.record.parent.mkdir(parents=True, exist_ok=True)
        _run(self.command())


@dataclass(frozen=True)
class Pretrain:
    """`leoclr train`. The record is a list of its sessions, the last of which came to the end when the step is done."""

    record: Path
    arguments: tuple[str, ...]
    folder: Path

    def sessions(self) -> list[dict[str, Any]]:
        return list(read_json(self.record)["sessions"]) if self.record.exists() else []

    def done(self) -> bool:
        sessions = self.sessions()
        return bool(sessions) and sessions[-1].get("stopped_by") == 0

    def begun(self) -> bool:
        return self.record.exists() or (self.folder / "metrics.jsonl").exists()

    def command_as_planned(self) -> tuple[str, ...]:
        return *self.arguments, "--output", str(self.folder)

    def command(self) -> tuple[str, ...]:
        if (self.folder / "run.json").exists():
            return "train", "--resume", str(self.folder), "--json"
        return *self.command_as_planned(), "--json"

    def run(self) -> None:
        self.record.parent.mkdir(parents=True, exist_ok=True)
        saved = [step for step, folder in step_folders(self.folder / "checkpoints") if (folder / MANIFEST).is_file()]
        code, output = _start(self.command())
        result = json.loads(output) if output.strip() else {}
        if "error" not in result and result:  # a start that was refused is no session
            session = {**result, "first_step": max(saved, default=0), "commit": _commit(), "cores": os.cpu_count()}
            content = {"sessions": [*self.sessions(), session]}
            write_atomic(self.record, json.dumps(content, indent=2).encode())
        _refuse_failure(code, self.command())


def data_by_name(recipe: Recipe, given: Sequence[str]) -> dict[str, str]:
    """`NAME=SHARDS`, or SHARDS alone for a recipe with one data set, as a mapping.

    Raises:
        SettingsError: A data set is missing, unknown or named twice.
    """
    data: dict[str, str] = {}
    for text in given:
        name, equals, shards = text.partition("=")
        if not equals or name not in recipe.data:
            if len(recipe.data) > 1:
                raise SettingsError(f"--data {text}: expected NAME=SHARDS, where NAME is {' or '.join(recipe.data)}")
            name, shards = next(iter(recipe.data)), text
        if name in data:
            raise SettingsError(f"--data {text}: {name} is named twice")
        data[name] = shards
    if missing := [f"{name} ({about})" for name, about in recipe.data.items() if name not in data]:
        raise SettingsError(f"the recipe needs --data for {'; '.join(missing)}")
    return data


def read_json(path: Path) -> dict[str, Any]:
    """The content of a record; RunError where it is damaged."""
    try:
        content = parse_json_text(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error}); remove it, and the step is done again") from None
    if not isinstance(content, dict):
        raise RunError(f"{path}: not a record; remove it, and the step is done again")
    return content


def _commit() -> str:
    """Of the checkout that leoclr runs from; "" where it runs from none."""
    try:
        found = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def _run(command: tuple[str, ...]) -> None:
    code, _ = _start(command)
    _refuse_failure(code, command)


def _start(command: tuple[str, ...]) -> tuple[int, str]:
    """Exit code and stdout of a leoclr command. In a session of its own, so that it hears Ctrl-C once: from here."""
    child = subprocess.Popen(
        [sys.executable, "-m", "leoclr.cli", *command], stdout=subprocess.PIPE, text=True, start_new_session=True
    )

    def pass_on(number: int, frame: FrameType | None) -> None:
        if child.poll() is None:
            child.send_signal(number)

    previous = {number: signal.signal(number, pass_on) for number in _STOPS}
    try:
        output, _ = child.communicate()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return child.returncode, output


def _refuse_failure(code: int, command: tuple[str, ...]) -> None:
    if code in {sign * number + offset for number in _STOPS for sign, offset in ((1, 128), (-1, 0))}:
        raise KeyboardInterrupt
    if code:
        raise RunError(
            f"a step failed with exit code {code}; the same command goes on from it: {shlex.join(('leoclr', *command))}"
        )
