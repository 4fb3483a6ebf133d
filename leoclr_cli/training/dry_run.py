"""What a run would read, and when, without training: `leoclr train --dry-run`."""

from __future__ import annotations

from typing import Any

import numpy as np

from leoclr.cli.config.settings import Settings
from leoclr.cli.training.preflight import facts_of, refuse_problems
from leoclr.cli.training.remote_cache import block_cache, check_cache
from leoclr.datasets.loading.plan import Plan
from leoclr.datasets.shards.locate import open_data
from leoclr.datasets.wording import counted

_FIRST_KEYS = 8


def plan_of(settings: Settings, processes: int) -> dict[str, Any]:
    """The plan of a run as JSON values.

    Raises:
        LeoclrError: The data cannot be read, or the batch cannot be made from it.
    """
    index = open_data(settings.data.train, cache=block_cache(settings.run))
    check_cache(settings, index)
    window, batch = settings.data.shuffle_window, settings.data.batch_size
    plan = Plan.of(index, batch, settings.train.seed, 0, processes, window)
    share = batch // processes
    first = plan.order(0, np.arange(min(_FIRST_KEYS, len(index))))
    refuse_problems(settings, facts_of(settings, len(index), processes))
    pixels = sum(view.side(settings.data.image_size) ** 2 for view in settings.view_policy.views.values())
    return {
        "samples": len(index),
        "shards": len(index.shards),
        "bytes": sum(shard.bytes for shard in index.shards),
        "data_digest": index.digest,
        "epochs": settings.train.epochs,
        "steps_per_epoch": plan.steps_per_epoch,
        "steps": plan.steps_per_epoch * settings.train.epochs,
        "left_out_each_epoch": plan.size % batch,
        "batch_size": batch,
        "images_per_process": [share] * processes,
        "shuffle_window": window or len(index),
        "batch_bytes_per_process": share * 3 * pixels,
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
            f"data      {counted(plan['samples'], 'sample')} in {counted(plan['shards'], 'shard')}, "
            f"{plan['bytes'] / mib:,.1f} MiB, "
            f"digest {plan['data_digest'][:12]}",
            f"steps     {plan['steps']:,} in {counted(plan['epochs'], 'epoch')} of {plan['steps_per_epoch']:,}; "
            f"{plan['left_out_each_epoch']:,} samples left out, others each epoch",
            f"a step    {plan['batch_size']:,} images: {' + '.join(f'{n:,}' for n in plan['images_per_process'])} "
            "by process",
            f"shuffle   {plan['shuffle_window']:,} samples mixed at a time ({mixed})",
            f"memory    {plan['batch_bytes_per_process'] / mib:,.1f} MiB for a batch of views, of which each loader "
            "worker holds up to three",
            f"order     {', '.join(plan['first_keys'])}, ...",
        )
    )
