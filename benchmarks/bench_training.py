"""One training step of each backend: ResNet-18 with the stem for small images, LeOCLR views at 32 px, batch 64.

Run: pytest benchmarks/bench_training.py --benchmark-only. On a GPU where there is one. The data is made
beforehand: this is the cost of forward, backward, optimizer and queue.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from leoclr.backends.method import Progress
from leoclr.cli.config.resolve import resolve
from leoclr.cli.run.devices import choose_device
from leoclr.cli.training import build
from leoclr.cli.training.optimizers import build_optimizer
from leoclr.datasets.images.normalise import normalise

_BATCH = 64


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("views", ["leoclr", "pairwise"])
@pytest.mark.parametrize("backend", ["moco", "simclr"])
def test_step(benchmark: Any, rate: Callable[[str, float], None], backend: str, views: str, precision: str) -> None:
    settings = resolve("cifar10", None, {}, {"backend": backend, "views": views}).settings
    device, policy = choose_device("auto"), settings.view_policy
    method = build.method(settings, device, 50_000)
    optimizer = build_optimizer(method, settings.optimizer)
    generator = torch.Generator().manual_seed(0)
    pixels = {
        name: torch.randint(0, 256, (_BATCH, 3, 32, 32), generator=generator, dtype=torch.uint8)
        .to(device)
        .to(memory_format=torch.channels_last)
        for name in policy.views
    }

    def step() -> float:
        inputs = {
            name: normalise(view, settings.augmentation.mean, settings.augmentation.std)
            for name, view in pixels.items()
        }
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = method(inputs, policy.pairs, Progress(0, 1, 1)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.after_update(Progress(0, 1, 1))
        return float(loss.detach())  # waits for a GPU

    benchmark.pedantic(step, rounds=50 if device.type == "cuda" else 3, warmup_rounds=5 if device.type == "cuda" else 1)
    rate("images/s", _BATCH)
    benchmark.extra_info["device"] = device.type
