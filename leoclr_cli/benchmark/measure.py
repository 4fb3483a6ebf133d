"""Measure every part of training on this machine: `leoclr bench`.

Each part is repeated until its share of the time is used, at least once after a warm-up repetition, which counts only
if it takes longer than several shares. The parts are those of training itself: the same reader, executors, loader and
step.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from leoclr.backends.extras import examples
from leoclr.cli.benchmark.operations import operations
from leoclr.cli.benchmark.steps import END, bench_step, memory_of_a_step, uncounted
from leoclr.cli.benchmark.summary import Alternative, Part, Rate, Report
from leoclr.cli.config.augmentation import augmentation_spec
from leoclr.cli.config.fields import get, replaced
from leoclr.cli.config.settings import Settings
from leoclr.cli.image_folders import as_shards
from leoclr.cli.preflight.auto import DataFacts, settle
from leoclr.cli.preflight.checks import facts_of, policy_problems
from leoclr.cli.run.devices import accelerated, check_precision, choose_device
from leoclr.cli.run.versions import environment, versions
from leoclr.cli.training.data import TrainingData, worker_count
from leoclr.cli.training.extra_inputs import as_inputs, extras_of
from leoclr.datasets.errors import RunError
from leoclr.datasets.images.decode import decode_image, decode_pixels
from leoclr.datasets.loading.device_feed import Pace
from leoclr.datasets.loading.loader import StepDataset
from leoclr.datasets.loading.plan import Plan
from leoclr.datasets.loading.resident import first_size
from leoclr.datasets.shards.locate import open_data
from leoclr.datasets.shards.reader import SampleReader

_PARTS = 20  # that the time is divided into
_LONG = 10  # shares of the time; what takes longer is done once
_MOST_AT_ONCE, _TIMES = 50, 8  # steps between two looks at the clock on a GPU; and how many looks there should be
_SAMPLES = 64  # different images that single operations are measured on
_CPU_BATCH = 64  # where a step of the whole batch would take too long to repeat
_LARGEST_BATCH = 4096  # that is looked for where a method refuses smaller ones
Advance = Callable[[str], None]


class Bench:
    """The measurements for some settings, whose data is there.

    Args:
        seconds: About how long all of it may take; a large model takes longer on a slow machine.
        folder: For what a run writes.
        advance: Called with the name of each part before it is measured.
    """

    def __init__(self, settings: Settings, seconds: float, folder: Path, advance: Advance) -> None:
        for problem in policy_problems(settings):
            raise RunError(problem)
        self._device = choose_device(settings.run.device)
        check_precision(settings.train.precision, self._device)
        self._index = open_data(as_shards(settings.data.train))
        facts = DataFacts(len(self._index), first_size(self._index))
        chosen = settle(settings, self._device.type, facts, None)
        self._workers = worker_count(settings.run.workers, self._device.type)
        self._settings = replaced(chosen, {"data.batch_size": self._batch(chosen), "train.accumulation": 1})
        self._memory = memory_of_a_step(chosen, self._settings, self._device, len(self._index), self._workers)
        self._folder, self._advance, self._slice = folder, advance, seconds / _PARTS
        self._extras, self._resident = extras_of(chosen, self._index), False

    def measure(self) -> Report:
        """All of it."""
        began = time.monotonic()
        stages = (self._read(), self._decode(), self._one_worker(self._settings))
        operations = tuple(self._operations())
        data = self._loaded(self._settings)
        model = self._step(self._settings)
        end_to_end = self._end_to_end()
        alternatives = (*self._other_data(stages[-1], data), *self._other_steps(model))
        return Report(
            machine=self._machine(),
            settings=self._about(),
            stages=stages,
            operations=operations,
            data=data,
            model=model,
            end_to_end=end_to_end,
            alternatives=alternatives,
            memory=self._memory,
            seconds=round(time.monotonic() - began, 1),
        )

    def _batch(self, settings: Settings) -> int:
        """The batch of the settings; less on a CPU, where speed hardly depends on it, and for little data."""
        most = min(settings.data.batch_size, len(self._index))
        if self._device.type == "cpu":
            large = settings.data.image_size > 64
            most = min(most, _CPU_BATCH // 4 if large else _CPU_BATCH)
        alone = replaced(settings, {"train.accumulation": 1})
        candidates = (*range(most, 0, -1), *range(most + 1, min(len(self._index), _LARGEST_BATCH) + 1))
        batch: int | None = next((size for size in candidates if not self._problems(alone, size)), None)
        if batch is None:
            raise RunError(f"{len(self._index)} images are too few: {self._problems(alone, most)[0]}")
        return batch

    def _problems(self, settings: Settings, batch: int) -> list[str]:
        """Why the method refuses such a batch."""
        facts = facts_of(replaced(settings, {"data.batch_size": batch}), len(self._index), 1)
        return list(settings.method.problems(facts))

    def _read(self) -> Rate:
        reader = SampleReader(self._index)
        return self._repeat("read", "data", lambda: _count(reader.read(number) for number in self._numbers()))

    def _decode(self) -> Rate:
        reader = SampleReader(self._index)
        encoded = [reader.read(number) for number in self._numbers()]
        decode: Callable[[bytes], Any] = decode_image if self._executor == "pillow" else decode_pixels
        return self._repeat("decode", "data", lambda: _count(decode(data) for data in encoded))

    def _one_worker(self, settings: Settings) -> Rate:
        """From shards to views, as one loader process does it."""
        plan = Plan.of(self._index, settings.data.batch_size, settings.train.seed)
        dataset = StepDataset(self._index, plan, settings.view_policy, augmentation_spec(settings), self._extras)
        step = iter(range(1 << 30))
        name = f"views, one process, {settings.augmentation.executor}"
        return self._repeat(name, "data", lambda: len(dataset[next(step)].samples))

    def _loaded(self, settings: Settings) -> Rate:
        """Views as training gets them: from all loader processes, or from images that live on the device."""
        with accelerated(settings, self._folder) as accelerator:
            data = TrainingData(settings, accelerator)
            self._resident = data.settings.data.resident == "yes"
            workers = 0 if self._resident else worker_count(settings.run.workers, self._device.type)
            place = "of images on the device" if self._resident else "in the trainer's process"
            name = f"views, {workers} loader processes" if workers else f"views, {place}"
            with closing(data.batches(0, 1 << 30)) as loaded:  # type: ignore[type-var]
                for _ in range(max(1, 2 * workers)):
                    next(loaded)  # made while the processes started
                rounds = range(max(1, workers))  # batches come in bursts of one from each process

                def work() -> int:
                    for _ in rounds:
                        data.make_views(next(loaded).inputs)
                    return len(rounds) * settings.data.batch_size

                return self._repeat(name, "data", work)

    def _operations(self) -> Iterator[Rate]:
        """Each augmentation by itself, on one view of each image."""
        reader = SampleReader(self._index)
        images = [reader.image(number) for number in self._numbers()]
        spec, batch = augmentation_spec(self._settings), self._settings.data.batch_size
        for name, work in operations(images, spec, batch, self._device):
            yield self._repeat(f"  {name}", "data", work)

    def _step(self, settings: Settings) -> Rate:
        """Bare steps: forward, backward, update, queue."""
        batch = settings.data.batch_size
        sides = settings.view_policy.sides(settings.data.image_size)
        generator = torch.Generator().manual_seed(0)
        with accelerated(settings, self._folder) as accelerator:
            take_step = bench_step(settings, accelerator, len(self._index))
            extras = examples(take_step.method, sides, batch, accelerator.device)
            inputs = as_inputs(extras) | {
                name: torch.randint(0, 256, (batch, 3, side, side), generator=generator, dtype=torch.uint8)
                .to(accelerator.device)
                .contiguous(memory_format=torch.channels_last)
                for name, side in sides.items()
            }

            def work() -> int:
                take_step(inputs, END)
                return batch

            return self._repeat(f"model step, batch {batch}", "model", work, first=uncounted(take_step))

    def _end_to_end(self) -> Rate:
        """Steps on loaded batches, as in training."""
        with accelerated(self._settings, self._folder) as accelerator:
            data, pace = TrainingData(self._settings, accelerator), Pace(accelerator.device)
            take_step = bench_step(self._settings, accelerator, len(self._index), data.make_views)
            loaded = data.batches(0, 1 << 30)
            with closing(loaded):  # type: ignore[type-var]

                def work() -> int:
                    batch = next(loaded)
                    take_step(batch.inputs, END)
                    pace.step_taken()
                    return len(batch.samples)

                began = time.perf_counter()
                for _ in range(2 * self._workers):  # batches that were made while the model was
                    if time.perf_counter() - began < self._slice:
                        work()
                return self._repeat("end to end", "all", work, slices=3, first=uncounted(take_step))

    def _other_data(self, one: Rate, data: Rate) -> Iterator[Alternative]:
        for executor in ("fast",) if self._settings.augmentation.reduced_decoding else ("fast", "pillow"):
            if executor != self._executor:
                setting = f"augmentation.executor={executor}"
                rate = self._one_worker(replaced(self._settings, {"augmentation.executor": executor}))
                yield Alternative(setting, "data", rate.images_per_second / one.images_per_second)
        processors = os.cpu_count() or 1
        if self._workers < processors and not self._resident:
            rate = self._loaded(replaced(self._settings, {"run.workers": processors}))
            yield Alternative(f"run.workers={processors}", "data", rate.images_per_second / data.images_per_second)

    def _other_steps(self, model: Rate) -> Iterator[Alternative]:
        """Left out where a single step takes longer than a measurement should."""
        if self._settings.data.batch_size / model.images_per_second > self._slice * _LONG / 2:
            return
        train = self._settings.train
        tried: dict[str, bool | str] = {"train.channels_last": not train.channels_last}
        if train.precision == "float32":
            tried["train.precision"] = "bf16"
        for key, value in tried.items():
            try:
                rate = self._step(replaced(self._settings, {key: value}))
            except RunError:  # the device cannot compute so
                continue
            yield Alternative(f"{key}={str(value).lower()}", "model", rate.images_per_second / model.images_per_second)

    def _repeat(self, name: str, part: Part, work: Callable[[], int], slices: int = 1, first: int = 1) -> Rate:
        """The rate of `work`, which returns how many images it did, after the `first` times, which do not count."""
        self._advance(name.strip())
        for _ in range(first - 1):
            work()
        began = time.perf_counter()
        images = work()
        self._wait()
        seconds = time.perf_counter() - began
        if seconds > self._slice * _LONG:
            return Rate.of(name, part, [images / seconds])
        at_once = self._at_once(work, slices * self._slice)
        rates = list[float]()
        ends = time.perf_counter() + slices * self._slice
        while not rates or time.perf_counter() < ends:
            began = time.perf_counter()
            images = sum(work() for _ in range(at_once))
            self._wait()
            rates.append(images / (time.perf_counter() - began))
        return Rate.of(name, part, rates)

    def _at_once(self, work: Callable[[], int], seconds: float) -> int:
        """How often `work` is done before the host waits for a GPU, which in training it hardly does."""
        if self._device.type != "cuda":
            return 1
        began = time.perf_counter()
        work()
        self._wait()
        return max(1, min(_MOST_AT_ONCE, int(seconds / _TIMES / (time.perf_counter() - began))))

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    @property
    def _executor(self) -> str:
        return self._settings.augmentation.executor

    def _numbers(self) -> list[int]:
        return list(range(min(_SAMPLES, len(self._index))))

    def _machine(self) -> dict[str, Any]:
        about = environment(self._device, 1)
        return {
            "device": about["device_name"] if self._device.type == "cuda" else "cpu",
            "processors": os.cpu_count() or 1,
            "threads": about["threads"],
            "torch": versions()["torch"],
        }

    def _about(self) -> dict[str, Any]:
        settings = self._settings
        keys = ("views", "backend", "encoder.backbone", "train.precision", "augmentation.executor", "data.image_size")
        return {key.rpartition(".")[2]: get(settings, key) for key in keys} | {
            "batch": settings.data.batch_size,
            "workers": self._workers,
        }


def _count(done: Iterator[object]) -> int:
    return sum(1 for _ in done)
