"""A rough estimate of the time of a run's steps, for `leoclr train --dry-run`."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch

from leoclr.backends.extras import examples
from leoclr.backends.method import Method, Progress
from leoclr.cli.config.settings import Settings
from leoclr.cli.preflight.memory import blank_views
from leoclr.cli.run.devices import autocast

_SMALL_PIXELS, _SMALL_IMAGES, _LARGE_IMAGES = 64, 32, 8  # images at a time, by their side


def seconds_of_steps(method: Method, settings: Settings, micro: int, images: int) -> float:
    """Seconds for `images` images, all epochs together, on this process: forward and backward passes alone, without
    loading, updates, scores and other processes. Measured on a few images, which takes seconds for common backbones,
    after a first pass of one image, in which the libraries prepare themselves.

    Args:
        method: As built for training; it stays as it is.
        micro: Images that a process encodes at a time.
        images: That the process trains on in the whole run.
    """
    trial = copy.deepcopy(method).eval()  # BatchNorm of a part of a batch may be refused
    few = min(micro, _SMALL_IMAGES if settings.data.image_size <= _SMALL_PIXELS else _LARGE_IMAGES)
    device = next(trial.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        _seconds(trial, settings, 1, device)
        seconds = _seconds(trial, settings, few, device)
    return seconds / few * images


def _seconds(method: Method, settings: Settings, images: int, device: torch.device) -> float:
    """Of the forward and backward pass of all phases of a step."""
    views, pairs = blank_views(settings, images, device), settings.view_policy.pairs
    extras = examples(method, settings.view_policy.views, images, device)
    began = time.perf_counter()
    for phase in range(method.phases):
        with autocast(settings.train.precision, device.type):
            output: Any = method(views, pairs, Progress(0, 1, 1, phase), **extras)
        output.loss.backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
