"""`leoclr train --dry-run`: the plan of a run without training."""

from __future__ import annotations

from typing import Any

import numpy as np

from leoclr.cli.config.settings import Settings
from leoclr.cli.image_folders import as_shards
from leoclr.cli.preflight.checks import facts_of, refuse_problems, warnings_about
from leoclr.cli.preflight.initial_weights import start_from_weights
from leoclr.cli.preflight.memory import estimate, memory_line, memory_record, refuse_too_much
from leoclr.cli.preflight.remote_cache import block_cache, check_cache
from leoclr.cli.preflight.step_time import seconds_of_steps
from leoclr.cli.run.devices import check_precision, choose_device
from leoclr.cli.training import build
from leoclr.cli.training.data import worker_count
from leoclr.cli.training.extra_inputs import extras_of
from leoclr.cli.training.monitoring.progress_line import duration
from leoclr.datasets.loading.plan import Plan
from leoclr.datasets.shards.locate import open_data
from leoclr.datasets.wording import counted

_FIRST_KEYS = 8


def plan_of(settings: Settings, processes: int) -> dict[str, Any]:
    """The plan of a run as JSON values.

    Raises:
        LeoclrError: The data cannot be read, or the batch cannot be made from it.
    """
    shards = as_shards(settings.data.train, announce=False)
    index = open_data(shards, cache=block_cache(settings.run))
    check_cache(settings, index)
    window, batch = settings.data.shuffle_window, settings.data.batch_size
    plan = Plan.of(index, batch, settings.train.seed, 0, processes, window)
    share = batch // processes
    first = plan.order(0, np.arange(min(_FIRST_KEYS, len(index))))
    facts = facts_of(settings, len(index), processes)
    refuse_problems(settings, facts)
    device = choose_device(settings.run.device)
    check_precision(settings.train.precision, device)
    extras_of(settings, index)
    method = build.method(settings, device, len(index), processes)
    start_from_weights(method, settings)
    workers = worker_count(settings.run.workers, device.type)
    together = processes if device.type == "cpu" else 1
    memory = estimate(method, settings, facts.micro, workers, together)
    remarks = refuse_too_much(memory, device, settings)
    steps = plan.steps_per_epoch * settings.train.epochs
    return {
        "packed": {spec: place for spec, place in zip(settings.data.train, shards, strict=True) if spec != place},
        "samples": len(index),
        "shards": len(index.shards),
        "bytes": sum(shard.bytes for shard in index.shards),
        "data_digest": index.digest,
        "epochs": settings.train.epochs,
        "steps_per_epoch": plan.steps_per_epoch,
        "steps": steps,
        "left_out_each_epoch": plan.size % batch,
        "batch_size": batch,
        "images_per_process": [share] * processes,
        "shuffle_window": window or len(index),
        "memory": memory_record(memory, device, facts.micro),
        "seconds_of_steps": seconds_of_steps(method, settings, facts.micro, steps * share),
        "warnings": [*warnings_about(settings, index, facts), *remarks],
        "first_keys": [index.key(int(number)) for number in first],
    }


def as_text(plan: dict[str, Any]) -> str:
    """The same for people."""
    mib = 1 << 20
    mixed = (
        "the whole data set" if plan["shuffle_window"] == plan["samples"] else "a window of the shards' random order"
    )
    return "\n".join(
        (
            *(f"packed    {spec}, as shards in {place}" for spec, place in plan["packed"].items()),
            f"data      {counted(plan['samples'], 'sample')} in {counted(plan['shards'], 'shard')}, "
            f"{plan['bytes'] / mib:,.1f} MiB, "
            f"digest {plan['data_digest'][:12]}",
            f"steps     {plan['steps']:,} in {counted(plan['epochs'], 'epoch')} of {plan['steps_per_epoch']:,}; "
            f"{plan['left_out_each_epoch']:,} samples left out, other ones each time",
            f"a step    {plan['batch_size']:,} images: {' + '.join(f'{n:,}' for n in plan['images_per_process'])} "
            "by process",
            f"shuffle   {plan['shuffle_window']:,} samples mixed at a time ({mixed})",
            f"memory    {memory_line(plan['memory'])}",
            f"time      roughly {duration(plan['seconds_of_steps'])}: a pass of a few images, times {plan['steps']:,} "
            "steps, without loading and scores; `leoclr bench` measures all of it",
            f"order     {', '.join(plan['first_keys'])}, ...",
            *(f"warning   {line}" for line in plan["warnings"]),
        )
    )
