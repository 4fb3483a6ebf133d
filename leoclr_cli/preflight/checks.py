"""Checks of a run before its first step: refusals with their arithmetic, warnings, and the description of the run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from leoclr.backends.extras import asked
from leoclr.backends.settings import NEEDS, RunFacts
from leoclr.cli.config.plugins import METHODS, import_method, method_settings, plugin, plugins
from leoclr.cli.config.settings import Settings
from leoclr.cli.run.versions import environment, versions
from leoclr.datasets.errors import RunError, SettingsError
from leoclr.datasets.shards.description import remarks
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.locate import absolute
from leoclr.datasets.wording import counted, first_of


def micro_batch(settings: Settings, ranks: int) -> int:
    """Images that a process pushes through the encoder at a time.

    Raises:
        RunError: The batch cannot be split evenly over processes and micro-batches.
    """
    batch_size, accumulation = settings.data.batch_size, settings.train.accumulation
    if batch_size % (ranks * accumulation):
        raise RunError(
            f"batch size {batch_size} cannot be split evenly into {ranks * accumulation} parts "
            f"({ranks} processes x {accumulation} micro-batches)"
        )
    return batch_size // (ranks * accumulation)


def facts_of(settings: Settings, images: int, ranks: int) -> RunFacts:
    """What the settings of a method are checked against. Raises RunError as `micro_batch`."""
    policy, size = settings.view_policy, settings.data.image_size
    micro = micro_batch(settings, ranks)
    areas = {name: (side / size) ** 2 for name, side in policy.sides(size).items()}
    return RunFacts(tuple(policy.views), policy.pairs, images, micro, ranks, settings.train.accumulation, areas)


def policy_problems(settings: Settings) -> Iterator[str]:
    """Why the method cannot take these views, whatever the data and the batch."""
    missing = [NEEDS.get(need, need) for need in settings.view_policy.needs if need not in settings.method.offers]
    if missing:
        able = [name for name in plugins(METHODS) if set(settings.view_policy.needs) <= set(_offers(name))]
        yield (
            f"views {settings.views} need {' and '.join(missing)}, which {settings.backend} does not have; "
            f"backends that do: {', '.join(able)}"
        )
        return
    moved = [name for name, view in settings.view_policy.views.items() if view.changes.get("strong")]
    if moved and "boxes" in asked(import_method(settings.backend, settings.views)):
        yield (
            f"{settings.backend} takes boxes, and strong operations may turn and shear {first_of(moved, 3)} of views "
            f"{settings.views}, which no box can say"
        )


def problems(settings: Settings, facts: RunFacts) -> Iterator[str]:
    """Why the method cannot train so, a line for each reason."""
    yield from policy_problems(settings)
    yield from settings.method.problems(facts)


def _offers(method: str) -> tuple[str, ...]:
    try:
        return method_settings(method).offers
    except SettingsError:  # told where it is chosen
        return ()


def refuse_problems(settings: Settings, facts: RunFacts) -> None:
    """Raise RunError where the method cannot train so."""
    found = list(problems(settings, facts))
    if found:
        raise RunError("\n  ".join(found))


def warnings_about(settings: Settings, index: Index, facts: RunFacts) -> Iterator[str]:
    """What will work, but perhaps not as it was meant."""
    yield from settings.method.warnings(facts)
    yield from remarks(index, (*settings.data.train, *settings.data.val))


def resume_remarks(
    settings: Settings, before: Mapping[str, Any], now: Mapping[str, Any], facts: RunFacts, batch_norm: bool
) -> Iterator[str]:
    """What is not the same when a run goes on elsewhere.

    Args:
        before, now: What `environment` said where the checkpoint was made, and says here; nothing is said of what is
            missing.
        batch_norm: Whether the networks have BatchNorm.
    """
    old, ranks = before.get("processes"), facts.ranks
    if isinstance(old, int) and old > 0 and old != ranks:
        same = "the same images in the same order"
        on_gpus = now["device"] == "cuda"
        groups = [settings.method.batch_norm_groups(facts._replace(ranks=count), on_gpus) for count in (old, ranks)]
        if batch_norm and groups[0] != groups[1]:
            same += f", but BatchNorm with {counted(groups[1], 'group')} in place of {groups[0]}"
        else:
            same += "; sums may differ in their last bits"
        yield f"the run goes on in {counted(ranks, 'process', 'processes')}, after {old}: {same}"
    elif now["device"] == "cpu" and isinstance(threads := before.get("threads"), int) and threads != now["threads"]:
        yield (
            f"the run goes on with {counted(now['threads'], 'thread')}, after {threads}: sums may differ in their last "
            f"bits; OMP_NUM_THREADS={threads} keeps them"
        )


def summary_line(settings: Settings, device_type: str, ranks: int) -> str:
    """What is trained, in a line."""
    processes = f" in {ranks} processes" if ranks > 1 else ""
    return (
        f"{settings.views} views under {settings.backend}, {settings.encoder.backbone} at "
        f"{settings.data.image_size} px, {settings.train.precision} on {device_type}{processes}"
    )


def extension_line(before: int, after: int, step: int) -> str:
    """What more epochs mean for a run."""
    return (
        f"the run is extended from {before:,} to {after:,} epochs: after step {step:,} the learning rate and all other "
        f"schedules are those of {after:,} epochs"
    )


def description(
    settings: Settings,
    index: Index,
    val: tuple[str, ...],
    preset: str | None,
    command: list[str],
    device: torch.device,
    ranks: int,
) -> dict[str, Any]:
    """The content of run.json: all that is needed to know, repeat, resume or score the run."""
    found = plugin(METHODS, settings.backend)
    return {
        "settings": settings.model_dump(mode="json"),
        "method": {"package": found.package, "version": found.version},
        "preset": preset,
        "data": {
            "train": list(absolute(settings.data.train)),
            "val": list(absolute(val)),
            "digest": index.digest,
            "samples": len(index),
            "classes": list(index.classes),
            "labelled": index.labelled,
        },
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": command,
        "versions": versions(),
        "environment": environment(device, ranks),
    }
