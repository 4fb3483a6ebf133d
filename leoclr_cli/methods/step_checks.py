"""What each part of a step may change, what it may not forget, and in which precision a loss is computed."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from leoclr.backends.extras import examples, rows
from leoclr.backends.method import Method, Output, Progress
from leoclr.cli.config.fields import replaced
from leoclr.cli.config.plugin_errors import place_of
from leoclr.cli.config.settings import Settings
from leoclr.cli.methods.outcome import Failure, Note
from leoclr.cli.preflight.checks import facts_of, problems
from leoclr.cli.training import build
from leoclr.cli.training.optimizers import build_optimizer, drop_frozen_gradients
from leoclr.cli.training.outputs import refuse_output
from leoclr.datasets.errors import RunError
from leoclr.datasets.wording import first_of

_CPU = torch.device("cpu")
_STEPS, _STEPS_PER_EPOCH = 4, 2
_MICRO_BATCHES = 2  # of a step with train.accumulation
_TOWARDS, _SCALED = 1 - 1e-6, 0.999  # cosines: in float64, what moves towards another parameter has 1
_FEWEST = 8  # numbers of a parameter: those of a few may point towards each other by chance
_WITH_LAYERS = ("torch", "torchvision", "timm")  # whose layers move buffers of their own in forward
_PRODUCTS = frozenset("addbmm addmm addmv baddbmm bmm dot linear mm mv".split())
_COARSE = (torch.bfloat16, torch.float16)
_EXACT = "compute it within torch.autocast(device.type, enabled=False), on losses.exact(embeddings)"


def state_moves(settings: Settings, folder: Path) -> str:
    """Whether a step changes state and images where the seam says so; Failure where it does not.

    In float64, where rounding does not bend the way of a momentum copy.
    """
    method = _built(settings).double()
    _refuse_unnamed_copies(method)
    optimizer = build_optimizer(method, settings.optimizer)
    for now in _progress(method):
        torch.autograd.backward(_unchanging_forward(method, settings, now).loss)
        with torch.no_grad():
            method.before_update(now)
            drop_frozen_gradients(optimizer, method, now)
            optimizer.step()
            trained = {name: each for name, each in method.named_parameters() if each.grad is not None}
            before = {name: each.clone() for name, each in trained.items()}
            method.after_update(now)
            _refuse_trained_copies(before, trained)
        optimizer.zero_grad()
    _refuse_forgotten(settings)
    return f"{_STEPS} steps: forward changes neither state nor images, and no momentum copy is trained"


def exact_loss(settings: Settings, folder: Path) -> str:
    """Whether a loss is float32 where layers are bf16; Failure where it is not, and a note of products that are not: a
    head may be written as one."""
    method, found = _built(settings), list[str]()
    for now in _progress(method):
        views = _views(settings, now.step, torch.float32)
        extras = examples(method, views, settings.data.batch_size, _CPU)
        with torch.autocast("cpu", torch.bfloat16), _CoarseProducts(method) as coarse:
            output = method(views, settings.view_policy.pairs, now, **extras)
        refuse_output(output)
        if output.loss.dtype in _COARSE:
            raise Failure(f"with train.precision=bf16, the loss is bf16, percents off: {_EXACT}")
        found += coarse.found
        with torch.no_grad():
            method.after_update(now)
    if found:
        what = f"a product of matrices ({found[0]}) is bf16, where it belongs to the loss percents off"
        return Note(f"with train.precision=bf16, {what}: {_EXACT}")
    return f"{_STEPS} steps with layers in bf16, and no product of matrices outside of them"


class _CoarseProducts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes products of matrices that come out below float32, outside of a method's networks.

    Attributes:
        found: The line of each.
    """

    def __init__(self, method: Method) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._method, self.found = method, list[str]()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        made = function(*arguments, **(keywords or {}))
        if function.overloadpacket.__name__ in _PRODUCTS and made.dtype in _COARSE:
            if (place := self._place()) is not None:
                self.found.append(place)
        return made

    def _place(self) -> str | None:
        """The innermost line outside torch; None within a part of the method that has parameters, a network."""
        frame, place = sys._getframe(2), None
        while frame is not None:
            if place is None and str(frame.f_globals.get("__name__", "")).partition(".")[0] != "torch":
                place = place_of(frame, frame.f_lineno)
            if frame.f_code is nn.Module._call_impl.__code__:
                part = frame.f_locals["self"]
                if part is self._method:
                    return place
                if next(part.parameters(), None) is not None:
                    return None
            frame = frame.f_back  # type: ignore[assignment]
        return place


def _unchanging_forward(method: Method, settings: Settings, now: Progress) -> Output:
    """What `forward` returns; Failure where it changes state or images."""
    views = _views(settings, now.step, torch.float64)
    kept = {name: images.clone() for name, images in views.items()}
    before = {name: value.clone() for name, value in _state(method).items()}
    extras = examples(method, views, settings.data.batch_size, _CPU, torch.float64)
    output: Output = method(views, settings.view_policy.pairs, now, **extras)
    refuse_output(output)
    if changed := [name for name, images in kept.items() if not torch.equal(images, views[name])]:
        raise Failure(
            f"forward changes the images of the view {first_of(changed, 1)}, which others read after it: change a copy"
        )
    after = _state(method)
    if changed := [name for name, value in before.items() if name not in after or not torch.equal(value, after[name])]:
        raise Failure(
            f"forward changes {first_of(changed, 1)}: with train.accumulation a step has several; move state in "
            "after_update"
        )
    return output


def _refuse_unnamed_copies(method: Method) -> None:
    """Raise Failure where a copy of a backbone, of equal weights, is none of `backbones()`."""
    named = method.backbones()
    states = {place: backbone.state_dict() for place, backbone in named.items()}
    known = {id(part) for backbone in named.values() for part in backbone.modules()}
    for name, part in method.named_modules():
        if id(part) in known or not isinstance(getattr(part, "feature_dim", None), int):
            continue
        for place, state in states.items():
            if _equal(part.state_dict(), state):
                raise Failure(
                    f"{name} begins as a copy of {place} and is not in backbones(): --init would fill {place} alone"
                )


def _refuse_forgotten(settings: Settings) -> None:
    """Raise Failure where state follows one micro-batch of a step and not the others.

    Another first micro-batch must change what another last one changes. Settings that refuse accumulation are left
    alone.
    """
    try:
        settings = replaced(settings, {"train.accumulation": _MICRO_BATCHES})
        facts = facts_of(settings, images=2 * settings.data.batch_size, ranks=1)
    except (ValidationError, RunError):  # a batch that cannot be divided
        return
    if any(problems(settings, facts)):
        return
    usual, other_first, other_last = (_accumulated(settings, each) for each in ((0, 1), (2, 1), (0, 2)))
    by_first, by_last = (
        {name for name, value in usual.items() if not torch.equal(value, other[name])}
        for other in (other_first, other_last)
    )
    for which, forgotten in (("last", by_last - by_first), ("first", by_first - by_last)):
        if forgotten:
            raise Failure(
                f"{first_of(sorted(forgotten), 1)} follows the {which} micro-batch of a step alone: with "
                "train.accumulation a step has several; let forward add to a list that after_update empties"
            )


def _accumulated(settings: Settings, numbers: Sequence[int]) -> dict[str, Tensor]:
    """The state after a step of micro-batches with these numbers, without that of the optimizer."""
    method, pairs = _built(settings).double(), settings.view_policy.pairs
    micro = settings.data.batch_size // len(numbers)
    extras = examples(method, settings.view_policy.views, micro * (max(numbers) + 1), _CPU, torch.float64)
    for now in _phases(method, step=0):
        for number in numbers:
            views = _views(settings, number, torch.float64)
            part = rows(extras, slice(number * micro, (number + 1) * micro))
            output = method({name: images[:micro] for name, images in views.items()}, pairs, now, **part)
            torch.autograd.backward(output.loss)
        with torch.no_grad():
            method.before_update(now)
            method.after_update(now)
    return _state(method)


def _refuse_trained_copies(before: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> None:
    """Raise Failure where a parameter with a gradient was moved towards another one that has a gradient as well.

    Other changes are a method's own affair, such as rows that are brought to length one.
    """
    moved = {name: each - before[name] for name, each in trained.items() if not torch.equal(each, before[name])}
    copies = {
        name: source
        for name, way in moved.items()
        if way.numel() >= _FEWEST and abs(_cosine(way, before[name])) < _SCALED  # which may be towards small ones
        for source, other in trained.items()
        if source not in moved and other.shape == way.shape and _cosine(way, other - before[name]) > _TOWARDS
    }
    if copies:
        source = next(iter(copies.values()))
        raise Failure(
            f"{first_of(list(copies), 1)} has a gradient, and after_update moves it towards {source}: make it by "
            "momentum_copy, or with requires_grad_(False)"
        )


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(F.cosine_similarity(one.flatten(), other.flatten(), dim=0))


def _built(settings: Settings) -> Method:
    return build.method(settings, _CPU, images=2 * settings.data.batch_size)


def _progress(method: Method) -> Iterator[Progress]:
    """All phases of all steps."""
    for step in range(_STEPS):
        yield from _phases(method, step)


def _phases(method: Method, step: int) -> Iterator[Progress]:
    """All phases of a step, for which torch's generator is seeded."""
    torch.manual_seed(step)
    for phase in range(method.phases):
        yield Progress(step, _STEPS, _STEPS_PER_EPOCH, phase)


def _views(settings: Settings, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sides = settings.view_policy.sides(settings.data.image_size)
    return {
        name: torch.randn(settings.data.batch_size, 3, side, side, generator=generator, dtype=dtype)
        for name, side in sides.items()
    }


def _state(method: Method) -> dict[str, Tensor]:
    """What a checkpoint holds, but for what layers keep of their own, such as the statistics of BatchNorm."""
    layers = [
        (name, part)
        for name, part in method.named_modules(remove_duplicate=False)
        if isinstance(part, _BatchNorm) or type(part).__module__.partition(".")[0] in _WITH_LAYERS
    ]
    own = {name for prefix, part in layers for name, _ in part.named_buffers(prefix, recurse=False)}
    state = method.state_dict()
    return {name: value for name, value in state.items() if name not in own and isinstance(value, Tensor)}
