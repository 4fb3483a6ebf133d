"""The facts that `--preset auto` chooses by: the images, the device, and the memory that a step takes on it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from leoclr.cli.config.fields import get, keys_of
from leoclr.cli.config.flags import Given
from leoclr.cli.config.preset_files import AUTO, Chosen
from leoclr.cli.config.resolve import resolve
from leoclr.cli.config.settings import Settings
from leoclr.cli.image_folders import as_shards, open_with_progress
from leoclr.cli.preflight.auto_preset import Images, Machine, choose
from leoclr.cli.preflight.launch import launched
from leoclr.cli.preflight.memory import estimate, free_bytes
from leoclr.cli.preflight.remote_cache import block_cache
from leoclr.cli.run.devices import check_precision, choose_device
from leoclr.cli.training import build
from leoclr.cli.training.data import worker_count
from leoclr.datasets.errors import BadImage, DataError, RunError, SettingsError
from leoclr.datasets.images.decode import image_size
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.reader import SampleReader
from leoclr.datasets.wording import counted

_LOOKED_AT = 64  # images, evenly over the data set
_SHARE = {"cpu": 0.9, "cuda": 0.8}  # of the free memory; the factors of a GPU are estimates
_PLENTY = 1 << 20  # images that fit where the system does not say what is free


def with_choices(given: Given, processes: int = 1) -> Given:
    """The same, with what `--preset auto` stands for, if that is the preset.

    Raises:
        SettingsError: No data set is named, or several processes would each choose by their own device.
        LeoclrError: The data or the device cannot be used.
    """
    if given.preset != AUTO:
        return given
    before = replace(given, preset=None).resolve()
    settings = before.settings
    if not settings.data.train:
        raise SettingsError("--preset auto: the settings follow from the data; name a folder of images, or shards")
    if processes > 1 or launched():
        raise SettingsError(
            "--preset auto chooses for one process; `leoclr show-config --preset auto --data SHARDS --toml > run.toml` "
            "writes its choice down, for several with --config run.toml"
        )
    index = open_with_progress(as_shards(settings.data.train, announce=False), block_cache(settings.run))
    device = choose_device(settings.run.device)
    said = {key: get(settings, key) for key in keys_of(settings) if not before.origins[key].startswith("default")}
    images = Images(len(index), median_side(index))
    machine = Machine(device.type, _computes_bf16(device), os.cpu_count() or 1, free_bytes(device))

    def recipe(preset: str) -> Mapping[str, Any]:
        found = resolve(preset, None, {}, {"backend": settings.backend}).settings
        return {key: get(found, key) for key in keys_of(found)}

    def fitting(chosen: Chosen) -> int:
        return images_that_fit(replace(given, chosen=chosen).resolve().settings, device, len(index))

    return replace(given, chosen=choose(images, machine, said, recipe, fitting))


def choice_line(settings: Settings) -> str:
    """The most important of what was chosen."""
    return (
        f"--preset auto: {settings.encoder.backbone} at {settings.data.image_size} px, batches of "
        f"{settings.data.batch_size}, {counted(settings.train.epochs, 'epoch')}; show-config with the same flags "
        "gives the reasons"
    )


def median_side(index: Index) -> int:
    """The median of the shorter sides of some images, in pixels.

    Raises:
        DataError: None of them can be read.
    """
    reader, sides = SampleReader(index), list[int]()
    problem = ""
    for number in np.linspace(0, len(index) - 1, min(_LOOKED_AT, len(index))).astype(int):
        try:
            sides.append(min(image_size(reader.read(int(number)))))
        except BadImage as error:
            problem = f"{index.key(int(number))}: {error}"
    if not sides:
        raise DataError(f"none of the images that were looked at can be read; {problem}")
    return int(np.median(sides))


def images_that_fit(settings: Settings, device: torch.device, images: int) -> int:
    """How many images a process can encode at a time in the memory that is free now."""
    free = free_bytes(device)
    if free is None:
        return _PLENTY
    method = build.method(settings, device, images)
    workers = worker_count(settings.run.workers, device.type)
    one, two = (estimate(method, settings, count, workers).needed(device.type) for count in (1, 2))
    return max(0, int((_SHARE[device.type] * free - one) / (two - one)) + 1)


def _computes_bf16(device: torch.device) -> bool:
    try:
        check_precision("bf16", device)
    except RunError:
        return False
    return True
