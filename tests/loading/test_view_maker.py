"""Views that the device makes of what the host has drawn: in one call or several, and with nothing from the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from leoclr.datasets.images.augment_device import photometric
from leoclr.datasets.images.augmentation import AugmentationSpec, view_specs
from leoclr.datasets.loading import view_maker
from leoclr.datasets.loading.loader import Batch
from leoclr.datasets.loading.plan import Plan
from leoclr.datasets.loading.resident import ResidentImages, resident_batches
from leoclr.datasets.loading.view_maker import ViewMaker, boxes_of, parameters_of
from leoclr.datasets.views import View, ViewPolicy

POLICY = ViewPolicy(
    "own",
    {
        "x": View("whole"),
        "x1": View(),
        "x2": View(),
        "small": View(size=0.5, changes={"blur": 1.0, "solarize": 0.5}),
        "strong": View(changes={"strong": 2}),
    },
    (("x", "x1"),),
)
SPEC = AugmentationSpec(16, blur=0.0, executor="device")


def drawn(height: int = 16, width: int = 16) -> tuple[ViewMaker, Iterator[Batch]]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (24, 3, height, width), generator=generator, dtype=torch.uint8)
    batches = resident_batches(ResidentImages(pixels, {}), Plan((24,), 6, 3), POLICY, SPEC, 0, 3)
    return ViewMaker(view_specs(POLICY, SPEC), pixels), batches


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The names of all operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        self.names.append(str(function))
        return function(*arguments, **(keywords or {}))


def as_on_a_gpu(kinds: dict[str, object], tensors: dict[str, Tensor]) -> list[list[str]]:
    """Of a view's kind, all together."""
    alike: dict[object, list[str]] = {}
    for name, kind in kinds.items():
        alike.setdefault(kind, []).append(name)
    return list(alike.values())


@pytest.mark.parametrize(("height", "width"), [(16, 16), (20, 30)])
def test_views_of_one_call_are_those_of_one_call_each(height: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    make, batches = drawn(height, width)
    for batch in batches:
        assert set(batch.inputs) == {
            view_maker.SAMPLES,
            *map(parameters_of, POLICY.views),
            *(boxes_of(name) for name in POLICY.views if name != "x"),
        }
        with Watch() as alone:
            expected = make(batch.inputs)
        with monkeypatch.context() as patch:
            patch.setattr(view_maker, "_together", as_on_a_gpu)
            with Watch() as together:
                found = make(batch.inputs)
        assert len(together.names) < 0.75 * len(alone.names)
        for name, view in POLICY.views.items():
            side = view.side(16)
            assert expected[name].shape == (6, 3, side, side)
            assert expected[name].is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(found[name], expected[name])
        assert not torch.equal(found["x1"], found["x2"])


def test_nothing_comes_from_the_host_while_views_are_made() -> None:
    """A tensor made of numbers in Python is a copy that a CUDA graph cannot hold."""
    make, batches = drawn(20, 30)
    for batch in batches:
        with Watch() as watch:
            make(batch.inputs)
        assert not [name for name in watch.names if "lift_fresh" in name or "_local_scalar" in name]


def test_where_nothing_is_blurred_there_is_nothing_to_multiply_by() -> None:
    make, batches = drawn()
    batch = next(batches)
    parameters = batch.inputs[parameters_of("x1")]
    pixels = torch.randint(256, (6, 3, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    assert torch.equal(photometric(pixels, parameters, blurred=False), photometric(pixels, parameters))
    with Watch() as watch:
        photometric(pixels, parameters, blurred=False)
    assert not [name for name in watch.names if "bmm" in name]
