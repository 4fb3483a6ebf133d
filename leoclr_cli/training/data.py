"""What a run reads: its data sets, the plan of its steps, and the loader that makes them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from accelerate import Accelerator

from leoclr.cli.config.settings import Settings
from leoclr.cli.terminal import progress
from leoclr.cli.training.augmentation import augmentation_spec, settle_executor
from leoclr.cli.training.remote_cache import block_cache, cache_line, check_cache
from leoclr.cli.training.resident_choice import settle_resident
from leoclr.datasets.loading.device_feed import on_device
from leoclr.datasets.loading.handover import shared_memory_line
from leoclr.datasets.loading.loader import Batch, StepDataset, batches
from leoclr.datasets.loading.plan import Plan
from leoclr.datasets.loading.resident import resident_batches
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.locate import open_data, sibling_split
from leoclr.datasets.views import POLICIES

_MOST_WORKERS = 16


class TrainingData:
    """The data of one process of a run.

    Attributes:
        index: The images to train on.
        val_specs, val: Labelled data for the k-NN score, as it was named and opened; empty and None where there is
            none.
        plan: Which samples make up which step.
        settings: Those of the run, with what was auto about the views settled.

    Args:
        recorded: The settings in the run.json of a run that is gone on with.

    Raises:
        LeoclrError: The data cannot be opened, or cannot be used as the settings say.
    """

    def __init__(self, settings: Settings, accelerator: Accelerator, recorded: Mapping[str, Any] | None = None) -> None:
        data = settings.data
        self._device = accelerator.device
        settings = settle_executor(settings, self._device.type, recorded)
        with accelerator.main_process_first():
            self.index = _open(data.train, settings)
            check_cache(settings, self.index)
            self.val_specs = data.val or sibling_split(data.train)
            self.val = _open(self.val_specs, settings) if self.val_specs else None
        rank, ranks = accelerator.process_index, accelerator.num_processes
        self.plan = Plan.of(self.index, data.batch_size, settings.train.seed, rank, ranks, data.shuffle_window)
        self._workers = worker_count(settings.run.workers, self._device.type)
        self.settings, self._images = settle_resident(settings, self.index, self._device, self._workers, recorded)

    def batches(self, start: int, stop: int, asked_to_stop: Callable[[], bool] = lambda: False) -> Iterator[Batch]:
        """This process's part of the steps from `start` to before `stop`, on its device.

        They end early where it is asked to stop and no batch comes.
        """
        policy, spec = POLICIES[self.settings.views], augmentation_spec(self.settings)
        if self._images is not None:
            return on_device(resident_batches(self._images, self.plan, policy, spec, start, stop), self._device)
        dataset = StepDataset(self.index, self.plan, policy, spec)
        pin = self._device.type == "cuda"
        return on_device(batches(dataset, start, stop, self._workers, pin, asked_to_stop), self._device)

    def describe(self) -> Iterator[str]:
        """Lines for a person: how much there is, and in what steps it comes."""
        plan = self.plan
        yield (
            f"{plan.size:,} images in {len(self.index.shards):,} shards; {self.settings.train.epochs:,} epochs of "
            f"{plan.steps_per_epoch:,} steps of {plan.batch_size:,} images; {plan.size % plan.batch_size:,} left out, "
            "others each epoch"
        )
        resident = ", all resident on the device" if self._images is not None else ""
        yield f"views by augmentation.executor {self.settings.augmentation.executor}{resident}"
        if line := cache_line(self.settings, self.index):
            yield line
        views, size = len(POLICIES[self.settings.views].views), self.settings.data.image_size
        batch_bytes = plan.batch_size // plan.ranks * views * 3 * size * size
        if self._images is None and (short := shared_memory_line(batch_bytes, self._workers)):
            yield short


def worker_count(asked: int, device_type: str) -> int:
    """Loader processes for each process: what was asked for, or where that is -1, by the processors."""
    if asked >= 0:
        return asked
    cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(_MOST_WORKERS, cores) if device_type == "cuda" else max(1, cores // 2)


def _open(specs: tuple[str, ...], settings: Settings) -> Index:
    with progress("reading shard headers", None, "bytes") as advance:
        return open_data(specs, advance, block_cache(settings.run))
