"""The memory of a step of training, for `leoclr bench`."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from leoclr.cli.config.settings import Settings
from leoclr.cli.preflight.memory import estimate, memory_record, refuse_too_much
from leoclr.cli.training import build


def memory_of_a_step(
    trained: Settings, measured: Settings, device: torch.device, images: int, workers: int
) -> Mapping[str, int | None]:
    """The estimate for a step of training with its own batch, as `train --dry-run` states it, and that batch.

    Args:
        measured: The settings that are measured, which may have a smaller batch.

    Raises:
        RunError: A step of the measurements does not fit into the memory that is free.
    """
    method = build.method(trained, device, images)
    refuse_too_much(estimate(method, measured, measured.data.batch_size, workers), device, measured)
    micro = trained.data.batch_size // trained.train.accumulation
    return {"batch": trained.data.batch_size} | memory_record(estimate(method, trained, micro, workers), device, micro)
