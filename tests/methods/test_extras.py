"""Methods that ask where in its image each view lies, and for labels.

The images tell both by themselves: red grows from 0 at the left to 1 at the right, green from the top to the bottom,
and blue is the label. So a view is right where the colour of each of its points is the place in the image to which its
box takes the point.
"""

from __future__ import annotations

import importlib
import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import pytest
import torch
import webdataset
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from leoclr.backends.extras import examples
from leoclr.cli.config.fields import replaced
from leoclr.cli.config.settings import Settings
from leoclr.cli.methods.checks import check_method
from leoclr.cli.methods.processes import run_processes
from leoclr.cli.methods.session import Session
from leoclr.cli.methods.small_settings import small_settings
from leoclr.cli.preflight.checks import policy_problems
from leoclr.cli.run.devices import accelerated
from leoclr.cli.training import build
from leoclr.cli.training.data import TrainingData
from leoclr.cli.training.dry_run import plan_of
from leoclr.cli.training.extra_inputs import as_inputs, from_inputs
from leoclr.cli.training.graph import StepGraph
from leoclr.cli.training.step import RunLength, TrainStep
from leoclr.cli.training.trainer import train
from leoclr.datasets.errors import RunError, SettingsError
from leoclr.datasets.images import augment_opencv
from leoclr.datasets.images.augment_device import view_boxes
from leoclr.datasets.images.augmentation import FLIP, AugmentationSpec, crop_box, view_box, view_specs
from leoclr.datasets.images.decode import decode_pixels
from leoclr.datasets.loading.extras import LABELS, Extras, place_of
from leoclr.datasets.loading.loader import Batch, StepDataset, batches
from leoclr.datasets.loading.plan import Plan
from leoclr.datasets.loading.resident import ResidentImages, load_resident, resident_batches
from leoclr.datasets.loading.view_maker import ViewMaker
from leoclr.datasets.randomness import uniforms
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.locate import open_data
from leoclr.datasets.views import ViewKind, ViewPolicy
from tests.conftest import TinySettings
from tests.methods.conftest import Install

PLACED = '''"""Every view must be what its box and its label say."""

from __future__ import annotations

from typing import ClassVar

import torch

from leoclr.backends.method import Method, Output
from leoclr.backends.settings import MethodSettings
from leoclr.datasets.views import View, ViewPolicy

PLAIN = {"jitter": 0.0, "grayscale": 0.0, "blur": 0.0}
KINDS = {"x": View("whole", changes=PLAIN), "x1": View(changes=PLAIN), "small": View(size=0.5, changes=PLAIN)}
POLICY = ViewPolicy("ramps", KINDS, (("x1", "x"),))
SEEN = []


class Settings(MethodSettings):
    """Nothing."""

    default_views: ClassVar[str] = "ramps"


class Placed(Method):
    """The sum of the features."""

    takes_samples = takes_boxes = takes_labels = True

    def __init__(self, settings, facts):
        super().__init__()
        self.backbone = facts.new_backbone()

    def forward(self, views, pairs, now, samples, boxes, labels):
        if self.training:
            for name, pixels in views.items():
                error = worst(pixels, boxes[name], labels, 0.02)
                assert error < 0.02, f"{name} is off by {error}"
                SEEN.append((len(samples), (boxes[name][:, 0] > boxes[name][:, 2]).sum().item()))
        return Output(self.backbone(views["x1"]).square().mean(), None)

    def backbones(self):
        return {"backbone": self.backbone}


def worst(pixels, boxes, labels, rim):
    """How far the colours of views (n, 3, size, size), from 0 to 1, are from those that they should have, within the
    image and a rim away from its edges and those of the view."""
    share = (torch.arange(pixels.shape[-1]) + 0.5) / pixels.shape[-1]
    left, top, right, bottom = boxes[:, :, None].unbind(1)
    across, down = left + share * (right - left), top + share * (bottom - top)
    within = (share > 0.1) & (share < 0.9)
    inside = [(place > rim) & (place < 1 - rim) & within for place in (across, down)]
    both = inside[1][:, :, None] & inside[0][:, None, :]
    assert both.flatten(1).any(1).all()
    red = (pixels[:, 0] - across[:, None, :]).abs()
    green = (pixels[:, 1] - down[:, :, None]).abs()
    blue = (pixels[:, 2] - 0.2 * (1 + labels[:, None, None])).abs()
    return max(float(each[both].max()) for each in (red, green, blue))
'''

UPRIGHT_SIZES = ((48, 48), (64, 40), (37, 71), (150, 90))
STORED = {  # what turns an upright image into that which this EXIF orientation makes upright again
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}
Original = Literal["squash", "pad", "center"]


def ramps(width: int, height: int, label: int, orientation: int, format: str) -> bytes:
    pixels = np.empty((height, width, 3))
    pixels[..., 0] = (np.arange(width) + 0.5) / width
    pixels[..., 1] = ((np.arange(height) + 0.5) / height)[:, None]
    pixels[..., 2] = 0.2 * (1 + label)
    image = Image.fromarray((pixels * 255 + 0.5).astype(np.uint8))
    turn = STORED[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    (image if turn is None else image.transpose(turn)).save(buffer, format, exif=exif, quality=100, subsampling=0)
    return buffer.getvalue()


def pack(folder: Path, sizes: tuple[tuple[int, int], ...], labelled: bool = True, bad: int = -1) -> Path:
    """24 images in two shards; every fourth has no label."""
    folder.mkdir()
    for shard in range(2):
        with webdataset.TarWriter(str(folder / f"data-{shard:06d}.tar"), encoder=False) as writer:
            for number in range(12 * shard, 12 * shard + 12):
                label = number % 4 - 1 if labelled else -1
                format = "png" if number % 5 == 1 else "jpeg"
                data = ramps(*sizes[number % len(sizes)], label, [*STORED][number % len(STORED)], format)
                sample: dict[str, Any] = {"__key__": f"{number:05d}", format: b"none" if number == bad else data}
                writer.write(sample | ({"cls": str(label).encode()} if label >= 0 else {}))
    return folder


def labels_in(folder: Path) -> list[int]:
    """By the tar files alone, in the order of the images."""
    found: dict[str, int] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                found.setdefault(key, -1)
                if suffix == "cls":
                    file = tar.extractfile(member)
                    assert file is not None
                    found[key] = int(file.read())
    return list(found.values())


@pytest.fixture
def placed(install: Install) -> ModuleType:
    install("leoclr_placed", PLACED, {"placed": "leoclr_placed:Placed"}, {"ramps": "leoclr_placed:POLICY"})
    return importlib.import_module("leoclr_placed")


@pytest.fixture
def ramp_settings(tiny_settings: TinySettings, placed: ModuleType) -> TinySettings:
    plain = {"augmentation__mean": "0,0,0", "augmentation__std": "1,1,1", "data__image_size": "32"}

    def make(data: Path, **changes: str) -> Settings:
        return tiny_settings(data, backend="placed", **plain | changes)

    return make


@pytest.mark.parametrize("original", ["squash", "pad", "center"])
def test_a_box_is_where_each_pixel_of_the_view_comes_from(original: Original) -> None:
    spec = AugmentationSpec(32, "whole", original=original)
    kinds: tuple[ViewKind, ...] = ("whole", "crop")
    for (width, height), number, kind in product(UPRIGHT_SIZES, range(20), kinds):
        of_view = replace(spec, kind=kind)
        drawn = uniforms(0, 0, np.array([number]), 0, spec.uniforms)
        left, top, right, bottom = view_box(width, height, of_view, drawn[0])
        for column, row in product((0, 7, 31), (0, 20)):
            x, y = (column + 0.5) / 32, (row + 0.5) / 32
            shown = 1 - x if drawn[0, FLIP] < 0.5 else x  # of the view before it was mirrored
            if kind == "crop":
                first, above, last, below = crop_box(width, height, of_view, drawn[0])
                place = first + shown * (last - first), above + y * (below - above)
            elif original == "squash":
                place = shown * width, y * height
            else:  # one side fills the square, and the other one has whole pixels around its middle
                side = (max if original == "pad" else min)(width, height)
                lengths = [round(each * 32 / side) for each in (width, height)]
                starts = [(32 - each) // 2 for each in lengths]
                place = (
                    (shown * 32 - starts[0]) / lengths[0] * width,
                    (y * 32 - starts[1]) / lengths[1] * height,
                )
            found = left + x * (right - left), top + y * (bottom - top)
            assert found == pytest.approx((place[0] / width, place[1] / height), abs=1e-9)
        many = view_boxes(width, height, of_view, drawn)
        assert many.dtype == np.float32 and many[0] == pytest.approx((left, top, right, bottom), abs=1e-6)


def steps(
    index: Index, images: ResidentImages | None, spec: AugmentationSpec, policy: ViewPolicy, extras: Extras
) -> Iterator[Batch]:
    plan = Plan.of(index, 8, 3)
    if images is None:
        return batches(StepDataset(index, plan, policy, spec, extras), 0, 6, 0)
    return resident_batches(images, plan, policy, spec, 0, 6, extras)


@pytest.mark.parametrize("executor", ["pillow", "fast", "reduced", "device", "resident"])
def test_each_view_is_the_part_of_its_image_that_its_box_says(
    executor: str, placed: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a broken image gives way to another one, with the box and the label of that."""
    resident, reduced = executor == "resident", executor == "reduced"
    large = 5 if reduced else 1
    sizes = ((50, 38),) if resident else tuple((width * large, height * large) for width, height in UPRIGHT_SIZES)
    folder = pack(tmp_path / "data", sizes, bad=9)
    smaller = _watch_reductions(monkeypatch)
    index, labels = open_data([str(folder)]), torch.tensor(labels_in(folder))
    images = load_resident(index, torch.device("cpu"), 0) if resident else None
    assert set(labels.tolist()) == {-1, 0, 1, 2} and (images is None) is not resident
    named: Any = {"reduced": "fast", "resident": "device"}.get(executor, executor)
    tolerance = 0.04 if reduced else 0.012  # of the side of the image; reduced, its pixels are larger
    originals: tuple[Original, ...] = ("squash", "pad", "center")
    for original in originals:
        spec = AugmentationSpec(32, executor=named, reduced_decoding=reduced, original=original)
        make, mirrored = ViewMaker(view_specs(placed.POLICY, spec), None if images is None else images.pixels), 0
        asked, plain = (
            steps(index, images, spec, placed.POLICY, extras) for extras in (Extras(True, index.label), Extras())
        )
        for batch, without in zip(asked, plain, strict=True):
            assert torch.equal(batch.inputs[LABELS], labels[batch.samples])
            views = make(batch.inputs)
            for name, view in views.items():
                boxes = batch.inputs[place_of(name)]
                assert boxes.dtype == torch.float32 and boxes.shape == (8, 4)
                assert placed.worst(view / 255, boxes, batch.inputs[LABELS], 0.03) < tolerance
                mirrored += int((boxes[:, 0] > boxes[:, 2]).sum())
                if name == "x":
                    low, high = boxes.amin(), boxes.amax()
                    assert {"squash": low == 0 and high == 1, "pad": low < 0, "center": low > -0.01}[original]
                assert torch.equal(view, make(without.inputs)[name])
            assert set(batch.inputs) - set(without.inputs) == {LABELS, *map(place_of, placed.POLICY.views)}
        assert 40 < mirrored < 104, "half of 144"
    assert (sum(smaller) > 30) is reduced


def _watch_reductions(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Gathers for each image that is decoded whether it is at a reduced resolution."""
    smaller: list[bool] = []

    def watched(data: bytes, spare: Callable[[int, int], float] | None = None) -> NDArray[np.uint8]:
        pixels = decode_pixels(data, spare)
        smaller.append(pixels.size < decode_pixels(data).size)
        return pixels

    monkeypatch.setattr(augment_opencv, "decode_pixels", watched)
    return smaller


@pytest.mark.parametrize(
    "changes",
    [
        {"augmentation__executor": "fast", "augmentation__original": "pad", "train__accumulation": "2"},
        {"augmentation__executor": "device", "data__resident": "yes"},
    ],
    ids=["accumulated", "resident"],
)
def test_forward_is_told_of_its_views(
    changes: dict[str, str], ramp_settings: TinySettings, placed: ModuleType, tmp_path: Path
) -> None:
    sizes = ((50, 38),) if "data__resident" in changes else UPRIGHT_SIZES
    settings = ramp_settings(pack(tmp_path / "data", sizes), train__epochs="1", **changes)
    assert plan_of(settings, 1)["seconds_of_steps"] > 0 and not placed.SEEN
    train(settings, tmp_path / "run", None, ["test"], resume=False)
    parts = settings.train.accumulation
    assert len(placed.SEEN) == 3 * parts * len(placed.KINDS)
    assert {rows for rows, _ in placed.SEEN} == {8 // parts} and 0 < sum(mirrored for _, mirrored in placed.SEEN) < 72


def test_a_graph_is_filled_with_what_belongs_to_its_step(
    ramp_settings: TinySettings, placed: ModuleType, tmp_path: Path
) -> None:
    """A replay is plain code here, on the graph's own copies of the inputs."""
    settings = ramp_settings(pack(tmp_path / "data", ((50, 38),)), data__resident="yes")
    settings, said = replaced(settings, {"augmentation.executor": "device"}), list[str]()
    with accelerated(settings, tmp_path) as accelerator:
        data = TrainingData(settings, accelerator)
        method = build.method(settings, accelerator.device, 24)
        take = TrainStep(settings, accelerator, method, placed.POLICY.pairs, 8, RunLength(8, 3), data.make_views)
        take.replay = graph = StepGraph(
            take.body, take.seed, method, take.optimizer, accelerator.device, True, said.append, lambda body: body
        )
        for batch in data.batches(0, 8):
            take(batch.inputs, batch.step)
    assert not said and graph.refused is None and len(placed.SEEN) == (8 + 2) * len(placed.KINDS), "two of them twice"


@pytest.mark.slow
def test_each_of_two_processes_is_told_of_its_own(ramp_settings: TinySettings, tmp_path: Path) -> None:
    settings = ramp_settings(pack(tmp_path / "data", UPRIGHT_SIZES), run__workers="1")
    session = Session(settings=settings, run=tmp_path / "run", until=100)
    ended = run_processes("leoclr.cli.methods.session", (), session.model_dump_json(), count=2, threads=1)
    assert [each.code for each in ended] == [0, 0], ended


def test_what_is_asked_for_and_cannot_be_given_is_one_line(
    ramp_settings: TinySettings, placed: ModuleType, tmp_path: Path
) -> None:
    settings = ramp_settings(pack(tmp_path / "data", UPRIGHT_SIZES, labelled=False))
    told = r"^placed takes labels, and none of the 24 images to train on has one$"
    with pytest.raises(RunError, match=told):
        train(settings, tmp_path / "run", None, ["test"], resume=False)
    with pytest.raises(RunError, match=told):
        plan_of(settings, 1)
    placed.Placed.__init__ = _takes_nothing
    with pytest.raises(SettingsError, match=r"^backend placed: takes_boxes is set in the class, not in __init__$"):
        build.method(settings, torch.device("cpu"), 24)


def _takes_nothing(method: Any, settings: Any, facts: Any) -> None:
    torch.nn.Module.__init__(method)
    method.takes_boxes = False


CHECKS = (
    "loss and gradients",
    "two processes equal one",
    "stopped equals uninterrupted",
    "checkpoint round trip",
    "one device",
    "replay on a GPU",
)
WRAPPED = '''"""SimSiam, which looks at its boxes."""

from __future__ import annotations

from leoclr.backends.methods import simsiam
from leoclr.datasets.views import View, ViewPolicy

TURNED = ViewPolicy("turned", {"x1": View(), "x2": View(changes={"strong": 2})}, (("x1", "x2"),))


class Settings(simsiam.Settings):
    """As SimSiam."""


class Wrapped(simsiam.SimSiam):
    """As SimSiam."""

    takes_boxes = True

    def forward(self, views, pairs, now, boxes):
        assert boxes.keys() == views.keys() and all(boxes[name].shape == (len(views[name]), 4) for name in views)
        overlap = sum((box[:, 2] - box[:, 0]).abs().mean() for box in boxes.values())
        output = super().forward(views, pairs, now)
        return output._replace(loss=output.loss * overlap)
'''


@pytest.fixture
def wrapped(install: Install) -> str:
    place = "leoclr_wrapped"
    install(place, WRAPPED, {"wrapped": f"{place}:Wrapped"}, {"turned": f"{place}:TURNED"})
    return "wrapped"


@pytest.mark.parametrize(
    "views", ["unmix", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mixsiam", "regioncl", "logo"))]
)
def test_wrappers_pass_on_what_the_method_asks_for(views: str, wrapped: str, tmp_path: Path) -> None:
    """They leave the views of its forward alone."""
    (result,) = check_method(wrapped, tmp_path, ("loss and gradients",), views)
    assert result.passed, result


@pytest.mark.slow
def test_the_checks_of_a_method_give_what_it_asks_for(wrapped: str, tmp_path: Path) -> None:
    results = {result.name: result for result in check_method(wrapped, tmp_path, CHECKS)}
    assert len(results) == len(CHECKS) and not [result for result in results.values() if not result.passed]
    assert results["one device"].detail == "6 steps with tensors on the GPU alone"
    assert results["replay on a GPU"].detail == "one graph a step"
    assert "within 1e-07" in results["two processes equal one"].detail


def test_boxes_of_views_that_are_turned_are_refused(wrapped: str) -> None:
    (problem,) = policy_problems(replaced(small_settings("wrapped"), {"views": "turned"}))
    assert problem == (
        "wrapped takes boxes, and strong operations may turn and shear x2 of views turned, which no box can say"
    )


def test_examples_are_in_the_names_of_inputs_and_back(placed: ModuleType) -> None:
    made = examples(placed.Placed, ("x", "x1"), 9, torch.device("cpu"))
    again: dict[str, Any] = from_inputs(placed.Placed, as_inputs(made), ("x", "x1"))
    assert list(again) == ["samples", "boxes", "labels"]
    boxes: Tensor = again["boxes"]["x1"]
    assert torch.equal(boxes, dict(made)["boxes"]["x1"]) and boxes.dtype == torch.float32  # type: ignore[index]
    assert bool((boxes >= 0).all() and (boxes <= 1).all()) and set(again["labels"].tolist()) == {0, 1}
    width = boxes[:, 2] - boxes[:, 0]
    assert bool((width > 0).any() and (width < 0).any()) and bool((boxes[:, 3] > boxes[:, 1]).all())
