"""One optimizer step of one process: forward, backward, update."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from leoclr.backends.method import Pairs
from leoclr.backends.methods.moco import MoCo
from leoclr.backends.methods.simclr import SimCLR
from leoclr.cli.config.settings import Settings
from leoclr.cli.training.optimizers import build_optimizer, learning_rate
from leoclr.datasets.images.normalise import normalise


class TrainStep:
    """Owns the optimizer, and what Accelerate makes of it and of the backend.

    Args:
        pairs: (anchor, positive) view names.
        micro: Images that go through the encoder at a time.
        steps, warmup_steps: Of the whole run, for the learning rate.
    """

    def __init__(
        self,
        settings: Settings,
        accelerator: Accelerator,
        backend: MoCo | SimCLR,
        pairs: Pairs,
        micro: int,
        steps: int,
        warmup_steps: int,
    ) -> None:
        self.settings, self.accelerator, self.backend, self.pairs = settings, accelerator, backend, pairs
        self.micro, self.steps, self.warmup_steps = micro, steps, warmup_steps
        self.optimizer = build_optimizer(backend, settings.optimizer)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*broadcast_buffers.*", FutureWarning)  # renamed in torch 2.14
            self.model, self._prepared = accelerator.prepare(backend, self.optimizer)

    def __call__(self, pixels: Mapping[str, Tensor], step: int) -> tuple[Tensor, Tensor]:
        """Take step number `step` on this process's part of the batch, uint8 views by name, on its device.

        Returns:
            The loss, detached and not yet averaged over processes, and the anchors' embeddings. Where the loss or any
            process's gradient is not finite, neither is the loss.

        Raises:
            FloatingPointError: It is not finite; the weights are as before. On a CPU only: a GPU would have to wait.
        """
        accelerator, train = self.accelerator, self.settings.train
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.steps, self.warmup_steps, self.settings.optimizer.lr)
        stream = train.seed * accelerator.num_processes + accelerator.process_index
        torch.manual_seed((stream * 2**32 + step) % 2**64)
        device, augmentation = accelerator.device, self.settings.augmentation
        total = torch.zeros((), device=device)
        for number in range(train.accumulation):
            part = slice(number * self.micro, (number + 1) * self.micro)
            inputs = {name: normalise(view[part], augmentation.mean, augmentation.std) for name, view in pixels.items()}
            last = number == train.accumulation - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self.model):
                output = self.model(inputs, self.pairs, step)
                accelerator.backward(output.loss / train.accumulation)
            total += output.loss.detach() / train.accumulation
        if accelerator.scaler is None:  # which itself leaves out a step whose gradients overflow
            total += 0.0 * nn.utils.get_total_norm([p.grad for p in self.backend.parameters() if p.grad is not None])
        if device.type == "cpu" and not math.isfinite(float(total)):
            raise FloatingPointError
        self._prepared.step()
        self._prepared.zero_grad(set_to_none=True)
        self.backend.after_step()
        return total, output.embeddings
