"""What a CUDA graph can hold: a step that is replayed never asks the host for a value, nor sends it one.

On a GPU such a step would not be captured. Here the operations of the body are watched on a processor.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from leoclr.cli.config.augmentation import augmentation_spec
from leoclr.cli.config.plugins import METHODS, VIEWS, method_settings, plugin, plugins
from leoclr.cli.config.settings import Settings
from leoclr.cli.run.devices import accelerated
from leoclr.cli.training import build, step
from leoclr.cli.training.graph import StepGraph, why_not
from leoclr.cli.training.step import RunLength, StepResult, TrainStep
from leoclr.datasets.images.augmentation import view_specs
from leoclr.datasets.loading.plan import Plan
from leoclr.datasets.loading.resident import ResidentImages, resident_batches
from leoclr.datasets.loading.view_maker import ViewMaker

MakeSettings = Callable[..., Settings]
Body = Callable[[], StepResult]
IMAGES, STEPS = 8, 5

# A value for the host, a result whose shape depends on values, and a value from the host: torch.tensor() within a step.
WAIT_FOR_THE_GPU = {
    "_local_scalar_dense", "bincount", "equal", "histc", "is_nonzero", "lift_fresh", "lift_fresh_copy",
    "masked_select", "multinomial", "nonzero", "repeat_interleave", "unique_consecutive", "unique_dim", "_unique2",
}  # fmt: skip


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operations for which the host would wait, and where in leoclr they are."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        name = function.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            index is not None and index.dtype == torch.bool for index in arguments[1]
        )
        if (name in WAIT_FOR_THE_GPU or masks) and (place := _place()) is not None:
            self.found.append(f"{name} in {place}")
        return function(*arguments, **(keywords or {}))


def _place() -> str | None:
    """The innermost function of leoclr that is running; None in the check for a finite loss, a processor's alone."""
    frame = sys._getframe(2)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith("leoclr."):
            alone = module == step.__name__ and frame.f_code.co_name == "_phase"
            return None if alone else f"{module}:{frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "torch"


def watched(settings: Settings, folder: Path) -> list[str] | None:
    """What the captured step of a run asks of the host; None where its steps are not replayed."""
    watch = Watch()

    def capture(body: Body) -> Body:
        def replay() -> StepResult:
            with watch:
                return body()

        return replay

    policy = settings.view_policy
    said: list[str] = []
    with accelerated(settings, folder) as accelerator:
        method = build.method(settings, accelerator.device, 64)
        if why_not(settings, method, torch.device("cuda"), 1) is not None:
            return None
        take = TrainStep(settings, accelerator, method, policy.pairs, IMAGES, RunLength(STEPS, 4))
        take.replay = StepGraph(
            take.body, take.seed, method, take.optimizer, accelerator.device, True, said.append, capture
        )
        for number in range(STEPS):
            generator = torch.Generator().manual_seed(number)
            sides = {name: view.side(settings.data.image_size) for name, view in policy.views.items()}
            take(
                {
                    name: torch.randint(256, (IMAGES, 3, side, side), generator=generator, dtype=torch.uint8)
                    for name, side in sides.items()
                },
                number,
            )
    return [*said, *dict.fromkeys(watch.found)]


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer__clip": "1"},
        {"optimizer__name": "adamw"},
        {"optimizer__name": "lars"},
        {"optimizer__name": "lars", "optimizer__trust_clip": "yes"},
    ],
)
def test_optimizers(changes: dict[str, str], tiny_settings: MakeSettings, tmp_path: Path) -> None:
    assert watched(tiny_settings(Path("unused"), **changes), tmp_path) == []


@pytest.mark.parametrize(
    ("backend", "views"),
    [
        *((backend, "leoclr") for backend in sorted(plugins(METHODS))),
        *(("moco", views) for views in sorted(plugins(VIEWS))),
    ],
)
def test_methods(backend: str, views: str, tiny_settings: MakeSettings, tmp_path: Path) -> None:
    section = plugin(METHODS, backend).section
    small = {f"{section}__{name}": _text(value) for name, value in method_settings(backend).small.items()}
    told = watched(tiny_settings(Path("unused"), backend=backend, views=views, **small), tmp_path)
    assert told in (None, [], ["steps are not replayed as a CUDA graph: the method reads its progress on the host"])


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize("placing", ["squash", "pad", "center"])
@pytest.mark.parametrize("views", sorted(plugins(VIEWS)))
def test_views(views: str, placing: str, tiny_settings: MakeSettings) -> None:
    """Crops and photometric operations, of resident images that are not square."""
    settings = tiny_settings(
        Path("unused"), views=views, augmentation__original=placing, augmentation__executor="device"
    )
    policy, spec = settings.view_policy, augmentation_spec(settings)
    pixels = torch.randint(256, (16, 3, 20, 30), dtype=torch.uint8)
    make, watch = ViewMaker(view_specs(policy, spec), pixels), Watch()
    batches = list(resident_batches(ResidentImages(pixels, {}), Plan((16,), IMAGES, 0), policy, spec, 0, 2))
    make(batches[0].inputs)  # what is made once, and kept on the device
    with watch:
        made = make(batches[1].inputs)
    assert made.keys() == policy.views.keys() and watch.found == []
