"""The schedule, LARS against timm's, and which parameters decay."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from timm.optim.lars import Lars
from torch import nn

from leoclr.backends.method import Method, ParameterGroup, Progress
from leoclr.backends.optimizers import LARS
from leoclr.cli.config.sections import OptimizerSettings
from leoclr.cli.training.optimizers import (
    build_optimizer,
    drop_frozen_gradients,
    learning_rate,
    load_optimizer_tensors,
    optimizer_tensors,
    schedule,
)


class Bare(Method):
    """A method that is nothing but parameters."""

    def __init__(self, **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def test_the_rate_warms_up_linearly_and_then_follows_half_a_cosine() -> None:
    rates = [learning_rate(step, steps=110, warmup_steps=10, peak=2.0) for step in range(110)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10] == pytest.approx(2.0) and rates[60] == pytest.approx(1.0)
    assert rates[109] == pytest.approx(1 + math.cos(math.pi * 99 / 100))
    assert all(later < earlier for earlier, later in zip(rates[10:], rates[11:], strict=False))


def test_lars_takes_the_steps_of_timms() -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(7, 5), [torch.randn(7, 5) for _ in range(4)]
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = (
        LARS([ours], lr=0.3, momentum=0.9, weight_decay=1e-2),
        Lars([theirs], lr=0.3, momentum=0.9, weight_decay=1e-2, trust_coeff=0.001, eps=0.0),
    )
    for gradient in gradients:
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_lars_leaves_biases_to_plain_momentum_and_does_not_decay_them() -> None:
    layer = nn.Linear(3, 2)
    before = layer.bias.detach().clone()
    optimizer = build_optimizer(Bare(layer=layer), OptimizerSettings(name="lars", lr=0.5, weight_decay=0.1))
    layer.weight.grad, layer.bias.grad = torch.ones(2, 3), torch.ones(2)
    optimizer.step()
    torch.testing.assert_close(layer.bias, before - 0.5)


def test_a_parameter_without_length_is_not_divided_by_it() -> None:
    parameter = nn.Parameter(torch.zeros(3, 3))
    optimizer = LARS([parameter], lr=0.1)
    parameter.grad = torch.ones(3, 3)
    optimizer.step()
    torch.testing.assert_close(parameter, torch.full((3, 3), -0.1))


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_restored_memory_has_the_layout_of_its_parameter(name: str) -> None:
    """torch's fused kernels would otherwise pair the wrong elements of a channels-last parameter."""
    layer = nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last)
    settings = OptimizerSettings(name=name, lr=0.1)  # type: ignore[arg-type]
    optimizer = build_optimizer(Bare(layer=layer), settings)
    layer(torch.randn(2, 8, 5, 5)).sum().backward()
    optimizer.step()
    saved = {name: value.contiguous().clone() for name, value in optimizer_tensors(optimizer).items()}
    other = build_optimizer(Bare(layer=layer), settings)
    load_optimizer_tensors(other, saved)
    for name, value in optimizer_tensors(other).items():
        torch.testing.assert_close(value, saved[name])
        if value.ndim == 4:
            assert value.stride() == layer.weight.stride()


@pytest.fixture
def unwritten_is_nan() -> Iterator[None]:
    """torch fills what it allocates and does not write."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_an_overflow_in_the_first_step_leaves_no_trace(name: str, unwritten_is_nan: None) -> None:
    """As in fp16 on a GPU: the first scale is too large for the gradients of many networks."""
    settings = OptimizerSettings(name=name, lr=0.1)  # type: ignore[arg-type]
    ends = []
    for gradients in ([torch.full((4, 3), torch.inf), torch.ones(4, 3)], [torch.ones(4, 3)]):
        parameter = nn.Parameter(torch.zeros(4, 3))
        optimizer = build_optimizer(Bare(weight=parameter), settings)
        scaler = torch.amp.GradScaler("cpu", init_scale=1.0, growth_interval=100)
        scaler.scale(torch.zeros(1))
        for gradient in gradients:
            parameter.grad = gradient * scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        ends.append(parameter.detach())
    assert torch.equal(ends[0], ends[1]) and ends[0].isfinite().all()


def test_the_first_step_of_sgd_is_torchs() -> None:
    """Momentum that begins with zeros is momentum that begins with the first gradient."""
    torch.manual_seed(0)
    start, gradients = torch.randn(6, 5), [torch.randn(6, 5) for _ in range(3)]
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    settings = OptimizerSettings(lr=0.1, weight_decay=0.01)
    optimizers = (
        build_optimizer(Bare(weight=ours), settings),
        torch.optim.SGD([theirs], 0.1, momentum=0.9, weight_decay=0.01, fused=True),
    )
    for gradient in gradients:
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    assert torch.equal(ours, theirs)


class Grouped(Bare):
    groups = (
        ParameterGroup("predictor", lr=10.0, constant_lr=True),
        ParameterGroup("last", lr=lambda now: now.share, weight_decay=lambda now: 1 - now.share),
        ParameterGroup("head", frozen=lambda now: now.epoch < 1),
    )


def grouped() -> Grouped:
    torch.manual_seed(0)
    return Grouped(**{name: nn.Linear(3, 2) for name in ("encoder", "predictor", "last", "head")})


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_groups_of_parameters_have_rates_decays_and_frozen_epochs_of_their_own(name: str) -> None:
    method = grouped()
    optimizer = build_optimizer(method, OptimizerSettings(name=name, weight_decay=0.5))  # type: ignore[arg-type]
    now = Progress(step=3, steps=4, steps_per_epoch=4)
    schedule(optimizer, method, now, rate=0.1, peak=0.4)
    rates = {one: group["lr"] for group in optimizer.param_groups for one in group["names"]}
    decays = {one: group["weight_decay"] for group in optimizer.param_groups for one in group["names"]}
    bias = 0.5 if name == "sgd" else 0.0
    assert rates["encoder.weight"] == rates["head.weight"] == 0.1
    assert rates["predictor.weight"] == rates["predictor.bias"] == 4.0
    assert rates["last.weight"] == pytest.approx(0.075)
    assert (decays["last.weight"], decays["encoder.weight"], decays["encoder.bias"]) == (0.25, 0.5, bias)
    sum(part(torch.ones(1, 3)).sum() for part in method.children()).backward()
    drop_frozen_gradients(optimizer, method, now)
    assert all(parameter.grad is None for parameter in method.head.parameters())  # type: ignore[union-attr]
    assert method.encoder.weight.grad is not None  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_memory_that_version_0_1_0_kept_by_number_finds_its_parameters(name: str) -> None:
    torch.manual_seed(0)
    parts = {"encoder": nn.Linear(3, 2), "norm": nn.BatchNorm1d(2)}
    settings = OptimizerSettings(name=name, weight_decay=0.1)  # type: ignore[arg-type]
    method = Bare(**parts)
    optimizer = build_optimizer(method, settings)
    parts["norm"](parts["encoder"](torch.randn(4, 3))).square().sum().backward()
    optimizer.step()
    kept = optimizer_tensors(optimizer)
    names = [one for one, _ in method.named_parameters()]
    if name != "sgd":  # matrices came first
        names = ["encoder.weight", "encoder.bias", "norm.weight", "norm.bias"]
    by_number = {
        f"{names.index(one.rpartition('.')[0])}.{one.rpartition('.')[2]}": value for one, value in kept.items()
    }
    other = build_optimizer(method, settings)
    load_optimizer_tensors(other, by_number)
    assert optimizer_tensors(other).keys() == kept.keys()
    for one, value in optimizer_tensors(other).items():
        torch.testing.assert_close(value, kept[one])


@pytest.mark.parametrize("gradient", [1e-4, 10.0])
def test_clipping_keeps_the_trust_ratio_at_most_at_the_rate(gradient: float) -> None:
    """As solo-learn has it: `min(trust |w| / (|g| + wd |w|) / lr, 1) lr`, one parameter at a time."""
    torch.manual_seed(0)
    start, rate, decay, trust = torch.randn(4, 3), 0.3, 1e-4, 0.02
    parameter = nn.Parameter(start.clone())
    optimizer = build_optimizer(
        Bare(weight=parameter),
        OptimizerSettings(name="lars", lr=rate, weight_decay=decay, trust=trust, trust_clip=True),
    )
    parameter.grad = torch.full((4, 3), gradient)
    length = parameter.grad.norm()
    optimizer.step()
    own = min(trust * start.norm() / (length + decay * start.norm()) / rate, torch.tensor(1.0))
    torch.testing.assert_close(parameter.detach(), start - rate * own * (gradient + decay * start))
    assert (own == 1) == (gradient < 1)


def test_lars_gives_vectors_a_rate_of_their_own() -> None:
    """Barlow Twins: 0.0048 for biases and normalisation beside 0.2."""
    method = Bare(layer=nn.Linear(3, 2))
    optimizer = build_optimizer(method, OptimizerSettings(name="lars", lr=0.2, vector_lr=0.024))
    schedule(optimizer, method, Progress(0, 4, 2), rate=0.1, peak=0.2)
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["names"]}
    assert rates == {"layer.weight": 0.1, "layer.bias": pytest.approx(0.0024)}
