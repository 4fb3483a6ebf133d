"""One optimizer step of one process: forward, backward, update."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from leoclr.backends import waits
from leoclr.backends.extras import Extra, rows
from leoclr.backends.method import Method, Output, Progress
from leoclr.cli.config.settings import Settings
from leoclr.cli.training.extra_inputs import from_inputs
from leoclr.cli.training.optimizers import build_optimizer, drop_frozen_gradients, learning_rate, schedule
from leoclr.cli.training.outputs import refuse_output
from leoclr.datasets.images.normalise import normalise
from leoclr.datasets.randomness import hash_key
from leoclr.datasets.views import Pairs

MakeViews = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class RunLength:
    """The lengths that schedules run over, in steps."""

    steps: int
    steps_per_epoch: int
    warmup_steps: int = 0


class StepResult(NamedTuple):
    """What a step found, all detached and of this process.

    Attributes:
        loss: Not finite where the loss or any process's gradient is not.
        embeddings: Of the last micro-batch, to watch for collapse; None where the method has none.
        metrics: The method's own, averaged over micro-batches.
    """

    loss: Tensor
    embeddings: Tensor | None
    metrics: dict[str, Tensor]

    def clone(self) -> StepResult:
        """Tensors of its own."""
        embeddings = None if self.embeddings is None else self.embeddings.clone()
        return StepResult(self.loss.clone(), embeddings, {name: value.clone() for name, value in self.metrics.items()})


class TrainStep:
    """Owns the optimizer, and what Accelerate makes of it and of the method.

    Args:
        pairs: (anchor, positive) view names.
        micro: Images that go through the encoder at a time.
        make_views: Makes the views of the inputs; None where the inputs are the views.

    Attributes:
        replay: Takes the place of `body`; see `leoclr.cli.training.graph`.
    """

    replay: Callable[[Mapping[str, Tensor], Progress], StepResult] | None = None

    def __init__(
        self,
        settings: Settings,
        accelerator: Accelerator,
        method: Method,
        pairs: Pairs,
        micro: int,
        length: RunLength,
        make_views: MakeViews | None = None,
    ) -> None:
        self.settings, self.accelerator, self.method, self.pairs = settings, accelerator, method, pairs
        self.micro, self.length, self._make_views = micro, length, make_views or _finished
        self.optimizer = build_optimizer(method, settings.optimizer)
        self._changes_gradients = (
            type(method).before_update is not Method.before_update
            or settings.optimizer.clip > 0
            or any(group.frozen is not None for group in method.groups)
        )
        self._statistics = list(_batch_norm_statistics(method))
        self._unfinished = self._updating = False
        self._last_part = False
        if accelerator.num_processes > 1:  # the first layer's gradient is the last; then those of all are waited for
            first = next(p for p in method.parameters() if p.requires_grad)
            first.register_hook(self._gradients_made)  # type: ignore[no-untyped-call]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*broadcast_buffers.*", FutureWarning)  # renamed in torch 2.14
            self.model, self._prepared = accelerator.prepare(method, self.optimizer)

    def __call__(self, inputs: Mapping[str, Tensor], step: int) -> StepResult:
        """Take step number `step` on this process's part of the batch: its inputs by name, on its device.

        Raises:
            FloatingPointError: It is not finite; the weights are as before. On a CPU only: a GPU would have to wait.
        """
        optimizer, length = self.settings.optimizer, self.length
        now = Progress(step, length.steps, length.steps_per_epoch)
        rate = learning_rate(step, length.steps, length.warmup_steps, optimizer.lr, optimizer.final_lr)
        schedule(self.optimizer, self.method, now, rate, optimizer.lr)
        self.seed(now)
        result = (self.replay or self.body)(inputs, now)
        self._unfinished = self._updating = False
        return result

    def seed(self, now: Progress) -> None:
        """Seed what is drawn within a step, such as dropout."""
        torch.manual_seed(step_seed(self.settings.train.seed, self.accelerator.process_index, now.step))

    def body(self, inputs: Mapping[str, Tensor], now: Progress) -> StepResult:
        """The step itself, from inputs to the update; the optimizer's groups have their rates."""
        self._remember()
        pixels = self._make_views(inputs)
        extras = from_inputs(self.method, inputs, pixels)
        result = self._phase(pixels, extras, now)
        for phase in range(1, self.method.phases):
            result = self._phase(pixels, extras, now._replace(phase=phase))
        return result

    @property
    def undoable(self) -> bool:
        """Whether the state is that of the newest finished step, or `undo` makes it so. It is not after a step that
        failed while it updated the weights: which of them are new is not known, and the old ones are gone."""
        return not self._updating

    @torch.no_grad()
    def undo(self) -> None:
        """Take back what a step that failed in its forward or backward pass has changed: BatchNorm's statistics."""
        assert self.undoable
        if not self._unfinished:
            return
        for buffers, kept in self._statistics:
            torch._foreach_copy_(buffers, kept)
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _remember(self) -> None:
        self._unfinished = True
        for buffers, kept in self._statistics:
            torch._foreach_copy_(kept, buffers)

    def _phase(self, pixels: Mapping[str, Tensor], extras: Mapping[str, Extra], now: Progress) -> StepResult:
        result = self._gradients(pixels, extras, now)
        total = result.loss
        if self.accelerator.scaler is None:  # which itself leaves out a step whose gradients overflow
            gradients = [p.grad for p in self.method.parameters() if p.grad is not None]
            total = total + 0.0 * nn.utils.get_total_norm(gradients)
        if total.device.type == "cpu" and not math.isfinite(float(total)):
            raise FloatingPointError
        if self._changes_gradients:
            self._change_gradients(now)
        self._updating = True
        self._prepared.step()
        self._prepared.zero_grad(set_to_none=True)
        with torch.no_grad():
            self.method.after_update(now)
        return result._replace(loss=total)

    def _gradients(self, pixels: Mapping[str, Tensor], extras: Mapping[str, Extra], now: Progress) -> StepResult:
        """Forward and backward of each micro-batch."""
        accelerator, train = self.accelerator, self.settings.train
        total = torch.zeros((), device=accelerator.device)
        metrics: dict[str, Tensor] = {}
        for number in range(train.accumulation):
            part = slice(number * self.micro, (number + 1) * self.micro)
            inputs = {name: self._normalised(view[part]) for name, view in pixels.items()}
            last = number == train.accumulation - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self.model):
                output: Output = self.model(inputs, self.pairs, now, **rows(extras, part))
                refuse_output(output)
                self._last_part = last
                accelerator.backward(output.loss / train.accumulation)
                waits.end()
            total += output.loss.detach() / train.accumulation
            for name, value in output.metrics.items():
                metrics[name] = metrics.get(name, 0.0) + value.detach() / train.accumulation
        embeddings = None if output.embeddings is None else output.embeddings.detach()
        return StepResult(total, embeddings, metrics)

    def _gradients_made(self, gradient: Tensor) -> None:
        if self._last_part:
            waits.begin()

    def _change_gradients(self, now: Progress) -> None:
        """What the method and the settings do to gradients: as they are, and not as the scaler of fp16 has them."""
        if self.accelerator.scaler is not None:
            self.accelerator.unscale_gradients(self._prepared)
        with torch.no_grad():
            self.method.before_update(now)
        drop_frozen_gradients(self.optimizer, self.method, now)
        if self.settings.optimizer.clip > 0:
            nn.utils.clip_grad_norm_(self.method.parameters(), self.settings.optimizer.clip)

    def _normalised(self, pixels: Tensor) -> Tensor:
        return normalise(pixels, self.settings.augmentation.mean, self.settings.augmentation.std)


def _finished(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The views among inputs that need no more than that."""
    return {name: pixels for name, pixels in inputs.items() if " " not in name}


def step_seed(seed: int, rank: int, step: int) -> int:
    """The seed of torch's generator for a step of one process: 32 bits, as a CPU's looks at no more."""
    return int(hash_key(seed, rank, step)[0]) >> 32


def _batch_norm_statistics(method: Method) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """The running statistics of a method by type, each with room for a copy: two calls a step, however many layers."""
    layers = [part for part in method.modules() if isinstance(part, _BatchNorm)]
    for dtype in (torch.float32, torch.int64):
        buffers = [buffer for layer in layers for buffer in layer.buffers(recurse=False) if buffer.dtype == dtype]
        if buffers:
            yield buffers, [buffer.clone() for buffer in buffers]
