"""Checks of a run's promises on the user's machine, settings and data: `leoclr certify`.

Runs of a few steps are trained in processes of their own: one without interruption, one that is stopped, one that is
killed, and one that goes on in other numbers of processes. The settings are the user's but for a small batch and, in
the last, the learning rate.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from leoclr.backends.networks.batchnorm import has_batch_norm
from leoclr.backends.weights import weights_digest
from leoclr.cli.config.fields import get, keys_of, replaced
from leoclr.cli.config.settings import Settings
from leoclr.cli.image_folders import as_shards
from leoclr.cli.methods.checks import two_processes
from leoclr.cli.methods.outcome import Failure, Result, refuse_different, result_of
from leoclr.cli.methods.processes import Ended, refuse_failed, run_processes
from leoclr.cli.methods.session import Session, samples_file
from leoclr.cli.preflight.checks import facts_of, problems
from leoclr.cli.preflight.remote_cache import block_cache
from leoclr.cli.run.checkpoint import step_folder
from leoclr.cli.run.devices import choose_device
from leoclr.cli.run.folder import RunFolder
from leoclr.cli.run.versions import environment, versions
from leoclr.cli.scoring.records import FORMAT, Record, described_data
from leoclr.cli.training import build
from leoclr.datasets.errors import SettingsError
from leoclr.datasets.loading.plan import Plan
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.locate import open_data
from leoclr.datasets.wording import counted

_STEPS, _STOPPED_AT, _KILLED_AT = 6, 3, 4
_PROCESSES = (2, 1, 3)  # that a run goes on in, two steps each
_LARGEST_BATCH = 512
_SMALL_RATE = 1e-6
_TOLERANCE, _COARSE = {"float32": 1e-4}, 1e-2  # of a loss, relative, by precision


@dataclass(frozen=True)
class Plans:
    """What is certified.

    Attributes:
        settings: Of the runs that are made.
        changes: Settings that are not the user's, with the user's value and theirs.
        index: The data.
    """

    settings: Settings
    changes: dict[str, tuple[Any, Any]]
    index: Index


def plans_of(settings: Settings) -> Plans:
    """The user's settings with a batch that takes minutes on a CPU too and can be split among one to three processes.

    Raises:
        LeoclrError: The data cannot be opened, or no such batch can be made of it.
    """
    index = open_data(as_shards(settings.data.train, announce=False), cache=block_cache(settings.run))
    unit = 6 * settings.train.accumulation
    for batch in range(2 * unit, _LARGEST_BATCH + 1, unit):
        small = replaced(settings, {"data.batch_size": batch})
        if not any(list(problems(small, facts_of(small, len(index), ranks))) for ranks in (1, 2, 3)):
            break
    else:
        reason = next(problems(small, facts_of(small, len(index), 3)), "")
        raise SettingsError(f"no batch of up to {_LARGEST_BATCH} images can be split into 1, 2 and 3 parts: {reason}")
    if len(index) < batch:
        raise SettingsError(f"{counted(len(index), 'image')} are too few: with these settings a step takes {batch}")
    epochs = -(-_STEPS // (len(index) // batch))
    wanted = {
        "data.batch_size": batch,
        "train.epochs": max(epochs, settings.train.epochs),
        "run.log_steps": 1,
        "run.checkpoint_minutes": 0.0,
        "run.checkpoint_epochs": 0,
        "run.keep_weights_only": False,
        "run.knn_epochs": 0,
        "run.trackers": (),
        "run.deterministic": settings.run.deterministic or choose_device(settings.run.device).type == "cuda",
    }
    changes = {key: (get(settings, key), value) for key, value in wanted.items() if get(settings, key) != value}
    return Plans(replaced(settings, wanted), changes, index)


def certify_all(plans: Plans, folder: Path) -> Iterator[Result]:
    """Run the checks in an empty folder, one result after another."""
    runs = _Runs(plans.settings, folder)
    checks = {
        "every image once": partial(_every_image_once, plans),
        "two processes equal one": partial(two_processes, replaced(plans.settings, {"train.compile": False}), folder),
        "stopped equals uninterrupted": partial(_stopped, runs),
        "killed equals uninterrupted": partial(_killed, runs),
        "other numbers of processes": partial(_other_processes, runs, plans),
    }
    for name, check in checks.items():
        yield result_of(name, check)


def certificate(settings: Settings, plans: Plans, results: Sequence[Result], folder: Path, began: float) -> Record:
    """The record of what `certify_all` found.

    Args:
        settings: The user's.
        began: When, by `time.monotonic`.
    """
    weights = step_folder(RunFolder(folder / "uninterrupted").checkpoints, _STEPS) / "model.safetensors"
    return {
        "format": FORMAT,
        "kind": "certificate",
        "passed": all(result.passed for result in results),
        "checks": [result.as_json() for result in results],
        "settings": {key: _plain(get(settings, key)) for key in keys_of(settings)},
        "changes": {
            key: {"yours": _plain(yours), "checked": _plain(checked)} for key, (yours, checked) in plans.changes.items()
        },
        "data": described_data(plans.index, settings.data.train),
        "weights": weights_digest(load_file(weights)) if weights.exists() else None,
        "environment": environment(choose_device(settings.run.device), 1),
        "versions": versions(),
        "command": sys.argv,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seconds": round(time.monotonic() - began, 3),
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


class _Runs:
    """Runs of a few steps in a folder, each made once."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder = settings, folder

    def uninterrupted(self, settings: Settings, name: str = "uninterrupted") -> Path:
        run = self.folder / name
        if not run.exists():
            refuse_failed(self.session(Session(settings=settings, run=run, until=_STEPS)))
        return run

    def session(self, session: Session, processes: int = 1) -> list[Ended]:
        threads = 1 if processes > 1 else None
        return run_processes("leoclr.cli.methods.session", [], session.model_dump_json(), processes, threads)


def _every_image_once(plans: Plans) -> str:
    data, index, seed = plans.settings.data, plans.index, plans.settings.train.seed
    for epoch in range(2):
        orders = []
        for ranks in (1, 2, 3):
            of_ranks = [
                Plan.of(index, data.batch_size, seed, rank, ranks, data.shuffle_window) for rank in range(ranks)
            ]
            steps = of_ranks[0].steps_per_epoch
            numbers = range(epoch * steps, (epoch + 1) * steps)
            orders.append(np.concatenate([plan.step(number).samples for number in numbers for plan in of_ranks]))
        seen = np.bincount(orders[0], minlength=len(index))
        if len(seen) > len(index) or seen.max() > 1 or seen.sum() != len(index) // data.batch_size * data.batch_size:
            raise Failure(f"epoch {epoch}: {int((seen > 1).sum())} images come twice")
        if not all(np.array_equal(orders[0], other) for other in orders[1:]):
            raise Failure(f"epoch {epoch}: the order depends on the number of processes")
    images, left_out = counted(len(index), "image"), len(index) % data.batch_size
    return f"two epochs of {images}, in one order for 1, 2 and 3 processes; {left_out} left out of each"


def _stopped(runs: _Runs) -> str:
    return _interrupted(runs, "stopped", signal.SIGTERM, _STOPPED_AT)


def _killed(runs: _Runs) -> str:
    return _interrupted(runs, "killed", signal.SIGKILL, _KILLED_AT)


def _interrupted(runs: _Runs, name: str, number: signal.Signals, step: int) -> str:
    whole, run = runs.uninterrupted(runs.settings), runs.folder / name
    first = Session(settings=runs.settings, run=run, until=_STEPS, signal=number, signal_step=step)
    (ended,) = runs.session(first)
    if ended.code not in (0, -signal.SIGKILL):
        raise Failure(f"the run failed before {number.name}: {ended.last_line}")
    if (step_folder(RunFolder(run).checkpoints, _STEPS)).exists():
        raise Failure(f"the run did not end at {number.name} after step {step}")
    refuse_failed(runs.session(Session(settings=runs.settings, run=run, until=_STEPS, resume=True)))
    _compare_samples(whole, run)
    refuse_different(*(step_folder(RunFolder(path).checkpoints, _STEPS) for path in (whole, run)))
    return f"{number.name} after step {step} of {_STEPS}: the same images, and the same bits of weights and optimizer"


def _other_processes(runs: _Runs, plans: Plans) -> str:
    # At the usual rate, rounding grows a hundredfold a step, and losses tell nothing.
    settings, device = replaced(runs.settings, {"optimizer.lr": _SMALL_RATE}), choose_device(runs.settings.run.device)
    where = ""
    if device.type == "cuda" and torch.cuda.device_count() < max(_PROCESSES):
        settings = replaced(settings, {"run.device": "cpu", "train.precision": "float32"})
        where = ", on the CPU as there are too few GPUs"
    whole, run = runs.uninterrupted(settings, "one-process"), runs.folder / "processes"
    share = _STEPS // len(_PROCESSES)
    for number, processes in enumerate(_PROCESSES):
        session = Session(settings=settings, run=run, resume=number > 0, until=(number + 1) * share)
        refuse_failed(runs.session(session, processes))
    _compare_samples(whole, run)
    compared = share * _same_groups(settings, len(plans.index))
    losses = [[json.loads(line)["loss"] for line in _lines(RunFolder(path).metrics)] for path in (whole, run)]
    tolerance = _TOLERANCE.get(settings.train.precision, _COARSE)
    for step, (one, other) in enumerate(zip(*losses, strict=True), 1):
        if step <= compared and not abs(one - other) <= tolerance * abs(one):
            raise Failure(f"the loss of step {step} is {other:.6g} instead of {one:.6g}")
    words = f"{' then '.join(map(str, _PROCESSES))} processes{where}: the same images in each step"
    tolerance_words = f"within {tolerance:g} (learning rate {_SMALL_RATE:g})"
    if compared == _STEPS:
        return f"{words}, and losses {tolerance_words}"
    then = "then the groups of BatchNorm are others"
    return f"{words}, losses of {compared} of {_STEPS} steps {tolerance_words}; {then}"


def _same_groups(settings: Settings, images: int) -> int:
    """In how many of `_PROCESSES`, from the first on, BatchNorm has the groups that one process has."""
    on_gpus = choose_device(settings.run.device).type == "cuda"
    if not has_batch_norm(build.method(settings, torch.device("cpu"), images)):
        return len(_PROCESSES)
    one, *several = (
        settings.method.batch_norm_groups(facts_of(settings, images, ranks), on_gpus) for ranks in (1, *_PROCESSES)
    )
    return next((number for number, groups in enumerate(several) if groups != one), len(_PROCESSES))


def _compare_samples(whole: Path, run: Path) -> None:
    one, other = _samples(whole), _samples(run)
    if len(one) != _STEPS:
        raise Failure(f"the uninterrupted run noted {counted(len(one), 'step')} instead of {_STEPS}")
    different = [step for step in one if one[step] != other.get(step)]
    if different:
        raise Failure(f"step {different[0] + 1} trained on other images")


def _samples(run: Path) -> dict[int, list[int]]:
    """What each step trained on, over all processes; of a step that was repeated, the last time."""
    found: dict[int, dict[int, list[int]]] = {}
    for rank in range(max(_PROCESSES)):
        for line in _lines(samples_file(run, rank)):
            noted = json.loads(line)
            found.setdefault(noted["step"], {})[rank] = noted["samples"]
    return {step: [number for _, part in sorted(parts.items()) for number in part] for step, parts in found.items()}


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
