"""Run the step again in which a run failed, with the figures of every layer and parameter.

A step follows from the newest checkpoint (or the beginning of the run), the settings and its number, so nothing of it
has to be kept. The steps in between are made again, in memory: nothing is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from leoclr.backends.method import Method
from leoclr.cli.config.fields import replaced
from leoclr.cli.config.settings import Settings
from leoclr.cli.preflight.initial_weights import start_from_weights
from leoclr.cli.run.checkpoint import newest_sound
from leoclr.cli.run.devices import accelerated, explained
from leoclr.cli.run.folder import RunFolder
from leoclr.cli.training.trainer import Trainer
from leoclr.datasets.errors import RunError


@dataclass
class LayerFigures:
    """Outputs of a layer in a step, over all views and micro-batches; None where a value is not finite.

    Attributes:
        largest: Largest magnitude.
        deviation: Largest standard deviation.
    """

    name: str
    largest: float | None = 0.0
    deviation: float | None = 0.0


@dataclass
class ParameterFigures:
    """Norms of a parameter and of its gradient; None where one is not finite."""

    name: str
    norm: float | None
    gradient_norm: float | None = 0.0


@dataclass
class Replayed:
    """A step that was made again.

    Attributes:
        after: The checkpoint that the steps followed from; 0 for the beginning of the run.
        loss: None where it is not finite.
        keys: Of the images in this process's batch.
        layers, parameters: In the order in which the forward and the backward pass reached them.
        first: Where the first value was not finite, in words; None if all are.
    """

    step: int
    after: int
    loss: float | None = None
    keys: list[str] = field(default_factory=list)
    layers: list[LayerFigures] = field(default_factory=list)
    parameters: list[ParameterFigures] = field(default_factory=list)
    first: str | None = None


def replay(run: Path, settings: Settings, step: int | None, advance: Callable[[int], None]) -> Replayed:
    """Make the steps after the newest checkpoint again and measure one of them.

    Args:
        step: Number of the step, from 0; None: the first whose loss or gradient is not finite, up to the one that the
            run has noted.
        advance: Called with 1 after each step.

    Raises:
        RunError: The checkpoint is of a later step, no step fails, or no checkpoint is sound.
    """
    settings = replaced(settings, {"train.graph": "no", "run.trackers": ()})
    try:
        with accelerated(settings, run) as accelerator:

            def at_checkpoint() -> Trainer:
                return _at_checkpoint(Trainer(settings, RunFolder(run), accelerator, resume=True))

            found = step if step is not None else _failing(at_checkpoint(), advance)
            return _measured(at_checkpoint(), found, advance)
    except RuntimeError as error:
        raise explained(error) or error from None


def _failing(trainer: Trainer, advance: Callable[[int], None]) -> int:
    last = trainer.run.failed_step()
    if last is None:
        raise RunError(f"{trainer.run.path} has noted no step that failed; name one with --step")
    start = trainer.step
    for number, batch in enumerate(trainer.data.batches(start, min(last + 1, trainer.steps)), start):
        try:
            if not math.isfinite(float(trainer.take_step(batch.inputs, number).loss)):
                return number
        except FloatingPointError:
            return number
        advance(1)
    raise RunError(f"the losses and gradients of steps {start} to {last} are finite, as made again on this machine")


def _measured(trainer: Trainer, step: int, advance: Callable[[int], None]) -> Replayed:
    start = trainer.step
    if not start <= step < trainer.steps:
        raise RunError(f"step {step} cannot be made: the run goes on at step {start} and has {trainer.steps}")
    found = Replayed(step, start)
    for number, batch in enumerate(trainer.data.batches(start, step + 1), start):
        if number < step:
            trainer.take_step(batch.inputs, number)
            advance(1)
            continue
        found.keys = [trainer.index.key(int(sample)) for sample in batch.samples]
        with _recording(trainer.method, found):
            try:
                found.loss = _finite(trainer.take_step(batch.inputs, number).loss)
            except FloatingPointError:
                found.loss = None
    return found


def _at_checkpoint(trainer: Trainer) -> Trainer:
    newest, damaged = newest_sound(trainer.run.checkpoints)
    if newest is not None:
        trainer.load(newest)
    elif damaged:
        raise RunError(f"{trainer.run.path} has no sound checkpoint: {damaged[0]}")
    else:
        start_from_weights(trainer.method, trainer.settings)
    return trainer


@contextmanager
def _recording(method: Method, found: Replayed) -> Iterator[None]:
    """Fill in the figures of one step."""
    layers: dict[str, LayerFigures] = {}
    handles = []

    def watch_output(name: str) -> Callable[[nn.Module, object, object], None]:
        def look(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                figures = layers.setdefault(name, LayerFigures(name))
                values = output.detach().float()
                figures.largest = _larger(figures.largest, values.abs().max())
                figures.deviation = _larger(figures.deviation, values.std(correction=0))
                if figures.largest is None and found.first is None:
                    found.first = f"the output of {name}"

        return look

    def watch_gradient(name: str) -> Callable[[Tensor], None]:
        def look(parameter: Tensor) -> None:
            assert parameter.grad is not None
            figures = ParameterFigures(name, _finite(parameter.norm()), _finite(parameter.grad.norm()))
            found.parameters.append(figures)
            if figures.gradient_norm is None and found.first is None:
                found.first = f"the gradient of {name}"

        return look

    for name, module in method.named_modules():
        if not any(module.children()):
            handles.append(module.register_forward_hook(watch_output(name)))
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            hook = watch_gradient(name)
            handles.append(parameter.register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        found.layers = list(layers.values())


def _larger(before: float | None, value: Tensor) -> float | None:
    now = _finite(value)
    return None if before is None or now is None else max(before, now)


def _finite(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
