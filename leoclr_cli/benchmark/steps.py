"""Steps of training for `leoclr bench`, and their memory."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator

from leoclr.cli.config.settings import Settings
from leoclr.cli.preflight.memory import estimate, memory_record, refuse_too_much
from leoclr.cli.training import build
from leoclr.cli.training.graph import STEPS_BEFORE_REPLAY, use_graph
from leoclr.cli.training.step import MakeViews, RunLength, TrainStep

END = 1  # step of a schedule of one: its learning rate is zero, so weights stay finite however often it is taken


def bench_step(
    settings: Settings, accelerator: Accelerator, images: int, make_views: MakeViews | None = None
) -> TrainStep:
    """A step as training takes it, to be called with `END`.

    Args:
        images: Images in the data set.
        make_views: As `TrainStep` takes it.
    """
    method, pairs = build.method(settings, accelerator.device, images), settings.view_policy.pairs
    take = TrainStep(settings, accelerator, method, pairs, settings.data.batch_size, RunLength(END, 1), make_views)
    use_graph(take, lambda line: None)
    return take


def uncounted(take: TrainStep) -> int:
    """How many steps do not count: the first, and those before replays alone, where there are any."""
    return 1 if take.replay is None else 1 + STEPS_BEFORE_REPLAY


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
