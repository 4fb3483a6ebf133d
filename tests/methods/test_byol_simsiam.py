"""BYOL and SimSiam: who predicts whom, what is a constant, how the target moves, and what tells of collapse."""

from __future__ import annotations

import math

import pytest
import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from leoclr.backends.method import Facts, Progress, momentum_copy
from leoclr.backends.methods import byol, simsiam
from leoclr.backends.methods.byol import BYOL
from leoclr.backends.methods.simsiam import SimSiam
from leoclr.backends.networks.backbones import build_backbone
from leoclr.backends.settings import anchors_first
from leoclr.cli.config.sections import OptimizerSettings
from leoclr.cli.training.optimizers import build_optimizer, schedule

LEOCLR = (("x", "x1"), ("x", "x2"))
BOTH = (("x1", "x2"), ("x2", "x1"))
NOW = Progress(0, 10, 5)


def views(names: str = "x x1 x2") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(6, 3, 5, 5, generator=generator, dtype=torch.float64) for name in names.split()}


def one_byol(facts: Facts, **options: object) -> BYOL:
    return BYOL(byol.Settings.model_validate({"hidden": 7, "dim": 5} | options), facts).double()


def one_simsiam(facts: Facts, **options: object) -> SimSiam:
    small = {"hidden": 7, "dim": 5, "predictor_hidden": 3}
    return SimSiam(simsiam.Settings.model_validate(small | options), facts).double()


def distance(prediction: Tensor, target: Tensor) -> Tensor:
    """BYOL's equation 2, one image at a time: the squared distance of two vectors of length one."""
    rows = [((p / p.norm() - t / t.norm()) ** 2).sum() for p, t in zip(prediction, target, strict=True)]
    return torch.stack(rows).mean()


@pytest.mark.parametrize("pairs", [LEOCLR, BOTH])
def test_byol_is_the_sum_over_the_pairs_of_equation_2(tiny_facts: Facts, pairs: tuple[tuple[str, str], ...]) -> None:
    method, images = one_byol(tiny_facts), views()
    loss = method(images, pairs, NOW).loss
    terms = [
        distance(method.predictor(method.encoder(images[anchor])), method.target(images[positive]).detach())
        for anchor, positive in pairs
    ]
    expected = torch.stack(terms).sum()
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(torch.autograd.grad(loss, trained), torch.autograd.grad(expected, trained), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_under_leoclr_views_the_crops_of_byol_have_no_gradient(tiny_facts: Facts) -> None:
    images = views()
    for image in images.values():
        image.requires_grad_()
    one_byol(tiny_facts)(images, LEOCLR, NOW).loss.backward()
    assert images["x"].grad is not None and images["x1"].grad is None and images["x2"].grad is None


@pytest.mark.parametrize(("step", "momentum"), [(0, 0.9), (5, 0.95), (10, 1.0)])
def test_the_target_s_momentum_rises_along_half_a_cosine(tiny_facts: Facts, step: int, momentum: float) -> None:
    method = one_byol(tiny_facts, momentum=0.9)
    now = Progress(step, 10, 5)
    assert method.momentum(now) == pytest.approx(1 - 0.1 * (math.cos(math.pi * step / 10) + 1) / 2)
    assert method.momentum(now) == pytest.approx(momentum)
    with torch.no_grad():
        for parameter in method.encoder.parameters():
            parameter.add_(1.0)
    before = [parameter.clone() for parameter in method.target.parameters()]
    method.after_update(now)
    for old, new, towards in zip(before, method.target.parameters(), method.encoder.parameters(), strict=True):
        torch.testing.assert_close(new, momentum * old + (1 - momentum) * towards)


def test_byol_tells_collapse(tiny_facts: Facts) -> None:
    method = one_byol(tiny_facts)
    healthy = method(views(), LEOCLR, NOW).metrics["std"]
    with torch.no_grad():
        last = list(method.target.projector)[-1]  # type: ignore[call-overload]
        last.weight.zero_()
        last.bias.fill_(1.0)
    assert method(views(), LEOCLR, NOW).metrics["std"] < 1e-6 < 0.3 < healthy


def test_nothing_in_a_momentum_copy_is_trained_or_dropped_at_random() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), DropPath(0.2))
    copied, images = momentum_copy(network), torch.randn(64, 4)
    assert torch.equal(copied(images), copied(images)) and not torch.equal(network(images), network(images))
    assert not any(parameter.requires_grad for parameter in copied.parameters())


def test_views_with_a_gradient_come_before_those_without() -> None:
    """Else autocast, before torch 2.11, would give the anchors the weights that it has cast without a gradient."""
    assert anchors_first(views(), LEOCLR) == ["x", "x1", "x2"]
    assert anchors_first(views(), (("x1", "x"), ("x2", "x"))) == ["x1", "x2", "x"]


@pytest.mark.parametrize("pairs", [LEOCLR, BOTH])
def test_simsiam_is_the_mean_negative_cosine_with_constants(
    tiny_facts: Facts, pairs: tuple[tuple[str, str], ...]
) -> None:
    method, images = one_simsiam(tiny_facts), views()
    loss = method(images, pairs, NOW).loss
    expected = torch.zeros((), dtype=torch.float64)
    for anchor, positive in pairs:
        prediction, constant = (
            method.predictor(method.encoder(images[anchor])),
            method.encoder(images[positive]).detach(),
        )
        for p, z in zip(prediction, constant, strict=True):
            expected = expected - (p / p.norm()) @ (z / z.norm()) / len(prediction) / len(pairs)
    torch.testing.assert_close(loss, expected)
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    for ours, theirs in zip(torch.autograd.grad(loss, trained), torch.autograd.grad(expected, trained), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_simsiam_s_projector_ends_in_batchnorm_without_scale_and_its_blocks_begin_as_the_identity() -> None:
    method = SimSiam(simsiam.Settings(), Facts(lambda: build_backbone("resnet18", "cifar", 16)))
    last = list(method.encoder.projector)[-1]  # type: ignore[call-overload]
    assert isinstance(last, torch.nn.BatchNorm1d) and not last.affine
    assert not method.encoder.backbone.get_parameter("layer1.0.bn2.weight").any()
    shapes = [tuple(p.shape) for n, p in method.predictor.named_parameters() if n.endswith("weight") and p.ndim == 2]
    assert shapes == [(512, 2048), (2048, 512)]


@pytest.mark.parametrize(("constant", "rate"), [(True, 0.4), (False, 0.1)])
def test_the_predictor_of_simsiam_keeps_the_peak_rate(tiny_facts: Facts, constant: bool, rate: float) -> None:
    method = one_simsiam(tiny_facts, constant_predictor_lr=constant)
    optimizer = build_optimizer(method, OptimizerSettings())
    schedule(optimizer, method, NOW, rate=0.1, peak=0.4)
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["names"]}
    assert {value for name, value in rates.items() if name.startswith("predictor")} == {rate}
    assert {value for name, value in rates.items() if name.startswith("encoder")} == {0.1}


def test_cosines_are_float32_under_autocast(tiny_facts: Facts) -> None:
    for method in (one_byol(tiny_facts), one_simsiam(tiny_facts)):
        method.float()
        images = {name: view.float() for name, view in views().items()}
        with torch.autocast("cpu", torch.bfloat16):
            assert method(images, LEOCLR, NOW).loss.dtype == torch.float32


def test_a_batch_of_one_is_refused_in_a_line(tiny_facts: Facts) -> None:
    from leoclr.backends.settings import RunFacts

    facts = RunFacts(("x", "x1", "x2"), LEOCLR, images=10, micro=1)
    for settings in (byol.Settings(), simsiam.Settings()):
        (problem,) = settings.problems(facts)
        assert "at least two images" in problem
        assert settings.forward_passes(facts) == 5


def test_equal_directions_have_no_loss() -> None:
    from leoclr.backends.losses import cosine

    one = F.normalize(torch.randn(4, 3), dim=1)
    assert torch.allclose(cosine(one, 7 * one), torch.ones(4))
