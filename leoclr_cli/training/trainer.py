"""The training run: prepare data and method, run the steps, save and resume.

A step depends on the settings and its number alone: data order, augmentation, shuffles and dropout are drawn from
(seed, step). Checkpoints therefore need no random generator and no stream position to resume a run exactly.
"""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from leoclr.backends.waits import Waits
from leoclr.cli.config.fields import get, keys_of
from leoclr.cli.config.settings import Settings
from leoclr.cli.preflight.checks import (
    description,
    extension_line,
    facts_of,
    refuse_problems,
    summary_line,
    warnings_about,
)
from leoclr.cli.preflight.disk import check_disk
from leoclr.cli.preflight.initial_weights import start_from_weights
from leoclr.cli.preflight.memory import check_memory
from leoclr.cli.run.checkpoint import Sound, newest_sound
from leoclr.cli.run.devices import accelerated, agree, check_kernels, explained, refuse_different_steps
from leoclr.cli.run.folder import RunFolder
from leoclr.cli.run.lock import RunLock
from leoclr.cli.run.weights_only import is_weights_only, refusal
from leoclr.cli.terminal import say, warn
from leoclr.cli.training import build
from leoclr.cli.training.bad_images import BadImages
from leoclr.cli.training.data import TrainingData
from leoclr.cli.training.graph import use_graph
from leoclr.cli.training.monitoring.health import Alarm
from leoclr.cli.training.monitoring.knn_monitor import KnnMonitor
from leoclr.cli.training.monitoring.meter import Meter
from leoclr.cli.training.monitoring.metrics import Listener, MetricsLog, require_trackers, start_trackers
from leoclr.cli.training.monitoring.progress_line import ProgressLine, StepReading
from leoclr.cli.training.monitoring.throughput import Clock, slowest
from leoclr.cli.training.rescue import Unsound, not_finite, saved_by_one, saved_on_failure
from leoclr.cli.training.result import TrainResult
from leoclr.cli.training.saver import Saver
from leoclr.cli.training.signals import GracefulStop, patience
from leoclr.cli.training.state import RunState, SavedValues
from leoclr.cli.training.step import RunLength, StepResult, TrainStep
from leoclr.datasets.errors import RunError
from leoclr.datasets.loading.device_feed import Pace
from leoclr.datasets.loading.loader import Batch


def train(
    settings: Settings,
    output: Path,
    preset: str | None,
    command: list[str],
    resume: bool,
    on_metrics: Listener | None = None,
    asked_to_stop: Callable[[], bool] | None = None,
) -> TrainResult:
    """Pre-train an encoder as the settings say, in the run folder `output`.

    Args:
        preset, command: The preset's name and the command line, for the record.
        resume: Whether to go on from the run's newest sound checkpoint.
        on_metrics: Called with each line of metrics.jsonl, on the first process.
        asked_to_stop: Asked after each step whether to save and end; on any process.

    Raises:
        LeoclrError: The data, the settings, the device, the run folder or the loss do not allow to go on; what was
            saved before stays.
    """
    require_trackers(settings.run.trackers)
    try:
        with contextlib.ExitStack() as stack:
            accelerator = stack.enter_context(accelerated(settings, output))
            trainer = Trainer(settings, RunFolder(output), accelerator, resume)
            if accelerator.is_main_process:
                stack.enter_context(RunLock(output))  # after all that the settings and the data can be refused for
            trainer.start(resume, preset, command)
            stop = GracefulStop(asked_to_stop, patience(accelerator))
            return trainer.fit(stack.enter_context(stop), on_metrics)
    except RuntimeError as error:
        raise explained(error) or error from None
    except OSError as error:
        raise RunError(f"the run in {output} cannot go on, but its checkpoints are as they were: {error}") from None


class Trainer:
    """One process's part of a run. `state` and `step` are all that must survive a resume."""

    def __init__(self, settings: Settings, run: RunFolder, accelerator: Accelerator, resume: bool) -> None:
        recorded = run.read()["settings"] if resume and run.settings_file.exists() else None
        self.run, self.accelerator = run, accelerator
        self.main, self.device, self.ranks = accelerator.is_main_process, accelerator.device, accelerator.num_processes
        self.data = TrainingData(settings, accelerator, recorded)
        self.settings = settings = self.data.settings
        self.index, self.plan = self.data.index, self.data.plan
        self.facts = facts_of(settings, len(self.index), self.ranks)
        refuse_problems(settings, self.facts)
        self.steps = settings.train.epochs * self.plan.steps_per_epoch
        self.method = build.method(settings, self.device, len(self.index), self.ranks)
        self.remarks = check_memory(self.method, settings, self.facts.micro, self.data.workers, self.device)
        self.remarks += check_kernels(self.device, settings.train.precision)
        self.remarks += check_disk(run.path, self.method, settings.optimizer.name)
        per_epoch = self.plan.steps_per_epoch
        length = RunLength(self.steps, per_epoch, round(settings.optimizer.warmup_epochs * per_epoch))
        self.take_step = TrainStep(
            settings, accelerator, self.method, self.facts.pairs, self.facts.micro, length, self.data.make_views
        )
        if self.main:  # several processes have no graph, which one of them says
            use_graph(self.take_step, say)
        self.optimizer = self.take_step.optimizer
        self.state = RunState(settings, self.index, self.method, self.optimizer, accelerator)
        self.saver = Saver(run, self.state, settings.run, self.steps, self.plan.steps_per_epoch, self.main)
        self.knn = KnnMonitor.of(settings, self.index, self.data.val, self.data.images)
        self.step, self.meter = 0, Meter(accelerator)
        self.alarm = Alarm(settings, self.facts, self.main)
        self.samples = torch.empty(0, dtype=torch.long)  # of the newest step
        self.bad = self._bad_images(())

    def start(self, resume: bool, preset: str | None, command: list[str]) -> None:
        """Load the newest checkpoint, or describe the new run; refuse what would mix two runs in one folder."""
        settings = self.settings
        newest, damaged = newest_sound(self.run.checkpoints)
        if newest is not None and not resume:
            again = f"`leoclr train --resume {shlex.quote(str(self.run.path))}`"
            raise RunError(f"{self.run.path} holds a run already; go on with {again}, or choose another --output")
        if newest is None and damaged:
            raise RunError(f"{damaged[0]}; no checkpoint of {self.run.path} is sound, so choose another --output")
        if newest is not None:
            self.load(newest)
        else:
            weights = start_from_weights(self.method, settings, self.main)
        if self.main:
            self.remarks += warnings_about(settings, self.index, self.facts)
            for line in (*damaged, *self.remarks, *self.data.val_remarks()):
                warn(line)
            if newest is None and resume:
                warn(f"{self.run.path} has no checkpoint yet: the run starts from its beginning")
            if newest is None:
                about = description(settings, self.index, self.data.val_specs, preset, command, self.device, self.ranks)
                self.run.write(about | {"weights": weights})
            else:
                self.run.moved(settings.data.train, self.data.val_specs)
                if before := self.run.extended(settings.train.epochs, self.step):
                    say(extension_line(before, settings.train.epochs, self.step))
            self._announce()
        refuse_different_steps(self.step, self.device)

    def fit(self, stop: GracefulStop, on_metrics: Listener | None = None) -> TrainResult:
        """Loop over the steps that are left, then save. Where a step cannot be had or made, what is done is saved."""
        began, stopped = time.monotonic(), 0
        self.saver.begin(self.step)
        clock, pace = Clock(self.step, self.plan.batch_size, Waits(self.device)), Pace(self.device)
        line = ProgressLine(self.step, self.steps, self.plan.steps_per_epoch, self.main)
        values: dict[str, float] = {}
        scored: float | None = None
        failures = saved_on_failure(self.run, self.main, self._worth_saving, self._save_finished)
        listening = clock.waits.listening()
        with contextlib.closing(self._log(on_metrics)) as log, contextlib.closing(line), failures, listening:
            alone = self.ranks == 1  # else one process would give up on data that the others wait for
            loader = self.data.batches(self.step, self.steps, lambda: alone and bool(stop.now()))
            while self.step < self.steps:
                stopped, due = agree(self.accelerator, self.step, stop.now(), self.saver.due(self.step))
                if stopped:
                    break
                if self.step > self.saver.step and (due or self.saver.keeps(self.step)):
                    self._settle()
                    with clock.paused():
                        self.save()
                with clock.waiting():
                    batch = next(loader, None)
                if batch is None:  # it was asked to stop, and none comes
                    stopped = stop.requested
                    break
                self.meter.add(self._train_step(batch), batch.bad)
                pace.step_taken()
                self.step += 1
                if self.step % self.plan.steps_per_epoch == 0 or self.step % self.settings.run.log_steps == 0:
                    values = self._measures(clock)
                    line.show(StepReading.of(self.step, values))
                    self.saver.hold(self.alarm.look(self.step, values))
                    if self._knn_is_due():
                        line.close()
                        with clock.paused():
                            values |= self._score(stop)
                        scored = values.get("knn", scored)
                        line.scored(scored)
                    log.write(self.step, values)
            self._settle()
            images_per_second = clock.mean(self.step)
            if not self.step or self.step > self.saver.step:  # a run that is complete already is left as it is
                self.save()
            checkpoint = self.saver.finish()
            self.accelerator.wait_for_everyone()  # else a launcher takes those that are done for a sign to end the rest
        return TrainResult(
            run=str(self.run.path),
            checkpoint=str(checkpoint),
            step=self.step,
            steps=self.steps,
            stopped_by=stopped,
            loss=values.get("loss"),
            knn=scored,
            images_per_second=images_per_second,
            seconds=time.monotonic() - began,
            bad_images=len(self.bad),
            labelled=self.index.labelled,
        )

    def _worth_saving(self) -> bool:
        new = self.step > self.saver.step and self.take_step.undoable
        return new and not self.method.per_rank and self.meter.sound()

    def _save_finished(self) -> bool:
        """Save the newest finished step as it was, without what a step that failed half-way has changed."""
        self.take_step.undo()
        save = partial(self.saver.save, self.step, self.bad.lines(), alone=True)
        return saved_by_one(self.run, self.main, self.step, save)

    def save(self) -> None:
        """Write a checkpoint and remove old ones."""
        self.saver.save(self.step, self.bad.lines())

    def load(self, newest: Sound) -> None:
        """Go on after a checkpoint. One that is reduced to weights will do where no step is left to make."""
        reduced = is_weights_only(newest)
        if reduced and newest.step < self.steps:
            raise refusal(self.run.path)
        checkpoint = newest.load(groups=() if reduced else None)
        if not reduced:
            self.remarks += self.state.load(checkpoint)
        self.step = checkpoint.step
        self.bad = self._bad_images(SavedValues.of(checkpoint).bad_images)

    def _train_step(self, batch: Batch) -> StepResult:
        self.samples = batch.samples
        try:
            return self.take_step(batch.inputs, self.step)
        except FloatingPointError:
            raise self._not_finite() from None

    def _settle(self) -> float:
        """The mean loss since the last line of metrics; RunError where one is not finite."""
        try:
            return self.meter.settle(self.bad)
        except FloatingPointError:
            raise self._not_finite() from None

    def _not_finite(self) -> Unsound:
        return not_finite(self.run, self.step, [self.index.key(int(number)) for number in self.samples], self.main)

    def _measures(self, clock: Clock) -> dict[str, float]:
        images_per_second, waiting, own_seconds = clock.read(self.step)
        return {
            "epoch": self.step / self.plan.steps_per_epoch,
            "loss": self._settle(),
            "lr": float(self.optimizer.param_groups[0]["lr"]),
            **self.meter.measures(),
            "images_per_second": images_per_second,
            "waiting": waiting,
            "bad_images": float(len(self.bad)),
            **slowest(own_seconds, self.accelerator),
        }

    def _score(self, stop: GracefulStop) -> dict[str, float]:
        """k-NN accuracy as `knn`, on the first process while the others wait. A failed score only warns, and one that
        a request to stop comes across is left."""
        assert self.knn is not None
        backbone, epoch = next(iter(self.method.backbones().values())), self.step // self.plan.steps_per_epoch
        found = self.knn.report(epoch, backbone, self.device, stop.now) if self.main else {}
        self.accelerator.wait_for_everyone()
        return found

    def _knn_is_due(self) -> bool:
        epoch, rest = divmod(self.step, self.plan.steps_per_epoch)
        return self.knn is not None and not rest and (self.step == self.steps or self.knn.due(epoch))

    def _bad_images(self, known: tuple[str, ...] | list[str]) -> BadImages:
        path, most = self.run.bad_images, self.settings.data.max_bad_samples
        return BadImages(path, len(self.index), most, known, self.main)

    def _log(self, on_metrics: Listener | None) -> MetricsLog:
        """metrics.jsonl and the trackers; the first process's alone."""
        if self.settings.run.trackers:
            start_trackers(self.accelerator, {key: str(get(self.settings, key)) for key in keys_of(self.settings)})
        return MetricsLog(self.run.metrics, self.accelerator, self.step, on_metrics)

    def _announce(self) -> None:
        after = [f"going on after step {self.step:,} of {self.steps:,}"] if self.step else []
        for line in (summary_line(self.settings, self.device.type, self.ranks), *self.data.describe(), *after):
            say(line)
