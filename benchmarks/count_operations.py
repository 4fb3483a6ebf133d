"""Count what one training step of the preset `cifar10` launches on a GPU, without a GPU.

Run: python benchmarks/count_operations.py [--set KEY=VALUE ...] [--json]

A step runs on a processor with the code that a GPU takes: resident images, views together, keys in one pass, BatchNorm
by kernels of its own. Counted is each operation that torch dispatches and that moves data, which is one launch at least
(two for a convolution's gradients, three for torch's own BatchNorm), and two for each pair of Triton kernels. No width
and no batch size changes the number, so that both are small here. Where steps are replayed as a CUDA graph, all of it
is one launch.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from leoclr.backends import method as methods
from leoclr.backends.networks import batchnorm, batchnorm_groups
from leoclr.cli.config.augmentation import augmentation_spec
from leoclr.cli.config.resolve import resolve
from leoclr.cli.run.devices import accelerated
from leoclr.cli.training import build
from leoclr.cli.training.step import RunLength, TrainStep
from leoclr.datasets.images import augment_device
from leoclr.datasets.images.augmentation import view_specs
from leoclr.datasets.loading import view_maker
from leoclr.datasets.loading.plan import Plan
from leoclr.datasets.loading.resident import ResidentImages, resident_batches
from leoclr.datasets.loading.view_maker import ViewMaker

# Operations that only look at memory in another way, or allocate it.
_NO_LAUNCH = set(
    "_record_function_enter_new _record_function_exit _reshape_alias _unsafe_view alias as_strided as_strided_ detach "
    "empty empty_like empty_strided expand new_empty new_empty_strided permute select slice split split_with_sizes "
    "squeeze t transpose unbind unsqueeze view".split()
)
_BATCH = 64


class Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: Counter[str] = Counter()
        self.silent = False

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if not self.silent and name not in _NO_LAUNCH:
            self.names[name] += 1
        return function(*arguments, **(keywords or {}))

    @contextmanager
    def kernels(self, name: str) -> Iterator[None]:
        """The block stands for two kernels."""
        self.names[name] += 2
        self.silent = True
        try:
            yield
        finally:
            self.silent = False


@contextmanager
def code_of_a_gpu(counted: Counted) -> Iterator[None]:
    """What asks whether it is on a GPU takes it for granted; plain code stands for Triton's kernels."""
    each_group, each_gradient = batchnorm_groups._each_group, batchnorm_groups._each_gradient
    jitter, separable = augment_device._jitter, batchnorm.can_separate_statistics

    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        with counted.kernels("BatchNorm's kernels"):
            return each_group(*arguments)

    def gradients(*arguments: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
        with counted.kernels("BatchNorm's kernels, backward"):
            return each_gradient(*arguments)

    def jittered(pixels: Tensor, columns: Tensor) -> Tensor:
        with counted.kernels("the jitter's kernels"):
            return jitter(pixels, columns)

    def in_one_pass(encoder: Any, views: Mapping[str, Tensor]) -> bool:
        alike = len({images.shape[1:] for images in views.values()}) == 1
        return alike and (not encoder.batch_statistics or encoder.training and separable(encoder))

    def together(kinds: Mapping[str, object], tensors: Mapping[str, Tensor]) -> list[list[str]]:
        return [[name for name, kind in kinds.items() if kind == one] for one in dict.fromkeys(kinds.values())]

    with ExitStack() as patches:
        patches.enter_context(patch.object(batchnorm_groups, "_each_group", forward))
        patches.enter_context(patch.object(batchnorm_groups, "_each_gradient", gradients))
        patches.enter_context(patch.object(augment_device, "_jitter", jittered))
        patches.enter_context(patch.object(methods, "in_one_pass", in_one_pass))
        patches.enter_context(patch.object(view_maker, "_together", together))
        yield


def count(changes: Mapping[str, str], folder: Path) -> tuple[Counter[str], Counter[str]]:
    """Operations by name: of the views of a step, and of the rest of it."""
    given = {"run.device": "cpu", "run.trackers": "", "data.train": "none", "train.precision": "bf16"}
    given |= {"augmentation.executor": "device", "encoder.width": "16", "data.batch_size": str(_BATCH), **changes}
    settings = resolve("cifar10", None, {}, given).settings
    generator, side = torch.Generator().manual_seed(0), settings.data.image_size
    pixels = torch.randint(256, (2 * _BATCH, 3, side, side), generator=generator, dtype=torch.uint8)
    policy, spec = settings.view_policy, augmentation_spec(settings)
    plan = Plan((len(pixels),), settings.data.batch_size, 0)
    make, counted = ViewMaker(view_specs(policy, spec), pixels), Counted()
    with accelerated(settings, folder) as accelerator, code_of_a_gpu(counted):
        method = build.method(settings, accelerator.device, len(pixels))
        take = TrainStep(settings, accelerator, method, policy.pairs, settings.data.batch_size, RunLength(100, 2))
        for batch in resident_batches(ResidentImages(pixels, {}), plan, policy, spec, 0, 3):
            counted.names = Counter()
            with counted:
                views = make(batch.inputs)
            of_views, counted.names = counted.names, Counter()
            with counted:
                take(views, batch.step)
    return of_views, counted.names  # of the last step: the first one makes the optimizer's state


def main() -> None:
    parser = argparse.ArgumentParser(description="Count the launches of a step of the preset cifar10.")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another setting")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        views, step = count(dict(each.split("=", 1) for each in chosen.set), Path(folder))
    report = {"views": views.total(), "step": step.total(), "all": views.total() + step.total()}
    if chosen.json:
        print(json.dumps(report | {"operations": dict((views + step).most_common())}))
        return
    for name, number in report.items():
        print(f"{name:30} {number:6,}")
    print("\nmost often:")
    for name, number in (views + step).most_common(12):
        print(f"{name:30} {number:6,}")


if __name__ == "__main__":
    main()
