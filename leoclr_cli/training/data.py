"""Training data: data sets, plan of the steps, and loader."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator

from leoclr.cli.config.augmentation import augmentation_spec
from leoclr.cli.config.fields import replaced
from leoclr.cli.config.settings import Settings
from leoclr.cli.image_folders import as_shards, open_with_progress
from leoclr.cli.preflight.auto import DataFacts, settle
from leoclr.cli.preflight.remote_cache import block_cache, cache_line, check_cache
from leoclr.cli.terminal import progress
from leoclr.cli.training.extra_inputs import extras_of
from leoclr.datasets.errors import RunError
from leoclr.datasets.images.augmentation import view_specs
from leoclr.datasets.loading.device_feed import on_device
from leoclr.datasets.loading.handover import processes_here, shared_memory_line
from leoclr.datasets.loading.loader import Batch, StepDataset, batches
from leoclr.datasets.loading.plan import Plan
from leoclr.datasets.loading.resident import ResidentImages, first_size, load_resident, resident_batches
from leoclr.datasets.loading.view_maker import ViewMaker
from leoclr.datasets.shards.description import class_line, contents, remarks
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.locate import sibling_split
from leoclr.datasets.wording import counted

_MOST_WORKERS = 16


class TrainingData:
    """The data of one process of a run.

    Attributes:
        index: The images to train on.
        val_specs, val: Labelled data for the k-NN score, as it was named and opened; empty and None where there is
            none.
        plan: Which samples make up which step.
        settings: Those of the run, with nothing `auto` about the views.
        images: All images to train on, where they are resident, or None.
        make_views: From the inputs of a batch to its views.

    Args:
        recorded: The settings in the run.json of a run that is resumed.

    Raises:
        LeoclrError: The data cannot be opened, or cannot be used as the settings say.
    """

    def __init__(self, settings: Settings, accelerator: Accelerator, recorded: Mapping[str, Any] | None = None) -> None:
        data = settings.data
        self._device = accelerator.device
        with accelerator.main_process_first():
            train = as_shards(data.train, announce=False)
            self.index = open_with_progress(train, block_cache(settings.run))
            check_cache(settings, self.index)
            self.val_specs = data.val or sibling_split(data.train)  # of folders of images, found anew each time
            val = as_shards(data.val, announce=False) or sibling_split(train)
            self.val = open_with_progress(val, block_cache(settings.run)) if val else None
        rank, ranks = accelerator.process_index, accelerator.num_processes
        self.plan = Plan.of(self.index, data.batch_size, settings.train.seed, rank, ranks, data.shuffle_window)
        self.workers = worker_count(settings.run.workers, self._device.type)
        facts = DataFacts(len(self.index), first_size(self.index) if self._device.type == "cuda" else None)
        self.settings = settle(settings, self._device.type, facts, recorded)
        self.images = None
        if self.settings.data.resident == "yes":
            self.images = resident_images(self.index, self._device, self.workers, must=data.resident == "yes")
            if self.images is None:
                self.settings = replaced(self.settings, {"data.resident": "no"})
        self._extras = extras_of(self.settings, self.index)
        specs = view_specs(self.settings.view_policy, augmentation_spec(self.settings))
        self.make_views = ViewMaker(specs, None if self.images is None else self.images.pixels)

    def batches(self, start: int, stop: int, asked_to_stop: Callable[[], bool] = lambda: False) -> Iterator[Batch]:
        """This process's part of the steps from `start` to before `stop`, their inputs on its device.

        They end early where it is asked to stop and no batch comes.
        """
        policy, spec = self.settings.view_policy, augmentation_spec(self.settings)
        if self.images is not None:
            drawn = resident_batches(self.images, self.plan, policy, spec, start, stop, self._extras)
            return on_device(drawn, self._device)
        dataset = StepDataset(self.index, self.plan, policy, spec, self._extras)
        pin = self._device.type == "cuda"
        return on_device(batches(dataset, start, stop, self.workers, pin, asked_to_stop), self._device)

    def describe(self) -> Iterator[str]:
        """Lines for a person: how much there is, and in what steps it comes."""
        plan, rest = self.plan, self.plan.size % self.plan.batch_size
        yield (
            f"{counted(plan.size, 'image')} in {counted(len(self.index.shards), 'shard')}; "
            f"{counted(self.settings.train.epochs, 'epoch')} of "
            f"{counted(plan.steps_per_epoch, 'step')} of {plan.batch_size:,} images"
            + (f"; each epoch leaves out another {counted(rest, 'image')}" if rest else "")
        )
        if line := class_line(self.index):
            yield line
        if self.val is not None:
            yield f"data for the k-NN score: {contents(self.val)}"
        resident = ", all resident on the device" if self.images is not None else ""
        yield f"views by augmentation.executor {self.settings.augmentation.executor}{resident}"
        if line := cache_line(self.settings, self.index):
            yield line
        sides = self.settings.view_policy.sides(self.settings.data.image_size).values()
        batch_bytes = plan.batch_size // plan.ranks * 3 * sum(side * side for side in sides)
        if self.images is None and (short := shared_memory_line(batch_bytes, self.workers * processes_here())):
            yield short

    def val_remarks(self) -> Iterator[str]:
        """What a person should not miss of the labelled data for the k-NN score."""
        for line in remarks(self.val, (*self.settings.data.train, *self.val_specs)) if self.val is not None else ():
            yield f"data for the k-NN score: {line}"


def resident_images(index: Index, device: torch.device, workers: int, must: bool) -> ResidentImages | None:
    """All images on the device; None where they have several sizes or do not fit, unless they `must`.

    All processes of a run find the same, as it depends on the data and the kind of device alone, but where one has too
    little memory: that one has loader processes, for the same steps.

    Raises:
        RunError: They must, and cannot.
    """
    try:
        with progress("decoding", len(index), "images") as advance:
            images = load_resident(index, device, workers, advance)
    except torch.OutOfMemoryError:
        if must:
            raise RunError("the decoded images do not fit on the device; take --set data.resident=no") from None
        return None
    if images is None and must:
        raise RunError("data.resident yes needs images that all have one size; take --set data.resident=no")
    return images


def worker_count(asked: int, device_type: str) -> int:
    """Loader processes for each process: what was asked for, or where that is -1, by the processors."""
    if asked >= 0:
        return asked
    cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(_MOST_WORKERS, cores) if device_type == "cuda" else max(1, cores // 2)
