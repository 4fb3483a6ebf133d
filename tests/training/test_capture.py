"""What can be told of a GPU on a processor: tensors on one device, and steps that a CUDA graph can hold, as they never
ask the host for a value, nor send it one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from leoclr.backends.methods.moco import MoCo
from leoclr.cli.config.augmentation import augmentation_spec
from leoclr.cli.config.fields import replaced
from leoclr.cli.config.plugins import METHODS, VIEWS, plugins
from leoclr.cli.config.settings import Settings
from leoclr.cli.methods.gpu_checks import HostWaits, host_waits, one_device, replay
from leoclr.cli.methods.outcome import Failure, Note
from leoclr.cli.methods.small_settings import small_settings
from leoclr.datasets.images.augmentation import view_specs
from leoclr.datasets.loading.plan import Plan
from leoclr.datasets.loading.resident import ResidentImages, resident_batches
from leoclr.datasets.loading.view_maker import ViewMaker

MakeSettings = Callable[..., Settings]
WITHOUT = ("has phases, frozen groups", "reads its progress on the host")


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
    assert host_waits(tiny_settings(Path("unused"), **changes), tmp_path) == []


@pytest.mark.parametrize(
    ("backend", "views"),
    [
        *((backend, "leoclr") for backend in sorted(plugins(METHODS))),
        *(pytest.param("moco", views, marks=pytest.mark.slow) for views in sorted(plugins(VIEWS)) if views != "leoclr"),
    ],
)
def test_methods(backend: str, views: str, tiny_settings: MakeSettings, tmp_path: Path) -> None:
    settings = replaced(small_settings(backend), {"views": views})
    assert ("kmeans.py" if backend == "hcsc" else "6 steps") in one_device(settings, tmp_path)
    told = replay(settings, tmp_path)
    assert told == "one graph a step" or any(reason in told for reason in WITHOUT)


@pytest.mark.parametrize("placing", ["squash", "pad", "center"])
@pytest.mark.parametrize("views", sorted(plugins(VIEWS)))
def test_views(views: str, placing: str, tiny_settings: MakeSettings) -> None:
    """Crops and photometric operations, of resident images that are not square."""
    settings = tiny_settings(
        Path("unused"), views=views, augmentation__original=placing, augmentation__executor="device"
    )
    policy, spec = settings.view_policy, augmentation_spec(settings)
    pixels = torch.randint(256, (16, 3, 20, 30), dtype=torch.uint8)
    make, watch = ViewMaker(view_specs(policy, spec), pixels), HostWaits()
    batches = list(resident_batches(ResidentImages(pixels, {}), Plan((16,), 8, 0), policy, spec, 0, 2))
    make(batches[0].inputs)  # what is made once, and kept on the device
    with watch:
        made = make(batches[1].inputs)
    assert made.keys() == policy.views.keys() and watch.found == []


def test_a_tensor_of_the_processor_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pull = MoCo.pull

    def scaled(self: MoCo, predictions: torch.Tensor, *others: Any) -> torch.Tensor:
        return pull(self, predictions * torch.ones(len(predictions), 1), *others)

    monkeypatch.setattr(MoCo, "pull", scaled)
    with pytest.raises(Failure, match=r"meet in test_capture\.py:\d+: make them with device="):
        one_device(small_settings("moco"), tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda losses: losses * float(losses.detach().mean()), "_local_scalar_dense {place}"),
        (lambda losses: losses[losses > 0], "index {place}"),
        (lambda losses: losses * torch.tensor([0.5]), "lift_fresh {place}"),
    ],
)
def test_a_step_that_a_graph_cannot_hold_is_told(
    change: Callable[[torch.Tensor], torch.Tensor], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reduce = MoCo.reduce
    monkeypatch.setattr(MoCo, "reduce", lambda self, losses: reduce(self, change(losses)))
    place = f"(test_capture.py, line {change.__code__.co_firstlineno}, in <lambda>)"
    found = replay(small_settings("moco"), tmp_path)
    assert found.startswith(f"steps run without a graph: {told.format(place=place)}") and isinstance(found, Note)
