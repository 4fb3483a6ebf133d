"""Barlow Twins and VICReg against loops in float64, and what their matrices are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from leoclr.backends.method import Facts, Progress
from leoclr.backends.methods import barlow_twins as barlow_module
from leoclr.backends.methods import vicreg as vicreg_module
from leoclr.backends.methods.barlow_twins import BarlowTwins, barlow_twins, cross_correlation
from leoclr.backends.methods.vicreg import VICReg, covariance, deviations
from leoclr.backends.settings import undirected

LEOCLR = (("x", "x1"), ("x", "x2"))
BOTH = (("x1", "x2"), ("x2", "x1"))
NOW = Progress(0, 10, 5)


def rows(seed: int) -> Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def views() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(6, 3, 5, 5, generator=generator, dtype=torch.float64) for name in ("x", "x1", "x2")}


def barlow_reference(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """Equation 1 and 2 of the paper, one pair of dimensions at a time."""
    total, n = torch.zeros((), dtype=torch.float64), len(first)

    def normalised(column: Tensor) -> Tensor:
        centred = column - column.sum() / n
        return centred / (centred.square().sum() / n + 1e-5).sqrt()

    for i in range(first.shape[1]):
        for j in range(second.shape[1]):
            c = (normalised(first[:, i]) * normalised(second[:, j])).sum() / n
            total = total + ((c - 1) ** 2 if i == j else weight * c**2)
    return total


def vicreg_reference(first: Tensor, second: Tensor) -> Tensor:
    """Equations 1 to 5, with the variance term averaged over the branches as the authors' code has it."""
    n, d = first.shape
    unlike = (first - second).square().sum() / (n * d)
    flat = redundant = torch.zeros((), dtype=torch.float64)
    for z in (first, second):
        centred = z - z.sum(dim=0) / n
        c = torch.stack(
            [torch.stack([(centred[:, i] * centred[:, j]).sum() / (n - 1) for j in range(d)]) for i in range(d)]
        )
        for i in range(d):
            flat = flat + (1 - (c[i, i] + 1e-4).sqrt()).clamp_min(0) / d / 2
            redundant = redundant + sum((c[i, j] ** 2 for j in range(d) if j != i), torch.zeros(())) / d
    return 25 * unlike + 25 * flat + redundant


def check_gradients(ours: Tensor, reference: Tensor, inputs: Sequence[Tensor]) -> None:
    torch.testing.assert_close(ours, reference)
    for one, other in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(reference, inputs), strict=True):
        torch.testing.assert_close(one, other)


def test_barlow_twins_is_equation_1() -> None:
    first, second = rows(1).requires_grad_(), (0.5 * rows(1) + rows(2)).requires_grad_()
    ours = barlow_twins(cross_correlation(first, second), 0.0051)
    check_gradients(ours, barlow_reference(first, second, 0.0051), [first, second])


def test_barlow_twins_does_not_ask_for_the_direction_of_a_pair() -> None:
    first, second = rows(1), rows(2)
    losses = [barlow_twins(cross_correlation(*both), 0.5) for both in ((first, second), (second, first))]
    torch.testing.assert_close(losses[0], losses[1])
    assert undirected(BOTH) == [("x1", "x2")] and undirected(LEOCLR) == list(LEOCLR)


@pytest.mark.parametrize("pairs", [LEOCLR, BOTH])
def test_each_pair_of_views_has_a_matrix_of_its_own(tiny_facts: Facts, pairs: tuple[tuple[str, str], ...]) -> None:
    method = BarlowTwins(barlow_module.Settings(hidden=7, dim=5, scale=0.1), tiny_facts).double()
    images = {name: image for name, image in views().items() if name in str(pairs)}
    z = {name: method.encoder(image) for name, image in images.items()}
    wanted = [("x", "x1"), ("x", "x2")] if pairs == LEOCLR else [("x1", "x2")]
    expected = 0.1 * torch.stack([barlow_reference(z[a], z[b], 0.0051) for a, b in wanted]).mean()
    parameters = list(method.parameters())
    check_gradients(method(images, pairs, NOW).loss, expected, parameters)


def test_vicreg_is_its_three_terms(tiny_facts: Facts) -> None:
    method = VICReg(vicreg_module.Settings(hidden=7, dim=5), tiny_facts).double()
    images = {name: views()[name] for name in ("x1", "x2")}
    first, second = (method.encoder(image) for image in images.values())
    check_gradients(method(images, BOTH, NOW).loss, vicreg_reference(first, second), list(method.parameters()))


def test_under_leoclr_views_the_crops_of_vicreg_are_not_compared(tiny_facts: Facts) -> None:
    settings = vicreg_module.Settings(hidden=7, dim=5, variance=0.0, covariance=0.0, invariance=1.0)
    method, images = VICReg(settings, tiny_facts).double(), views()
    z = {name: method.encoder(image) for name, image in images.items()}
    expected = ((z["x"] - z["x1"]).square().mean() + (z["x"] - z["x2"]).square().mean()) / 2
    torch.testing.assert_close(method(images, LEOCLR, NOW).loss, expected)


def test_equal_embeddings_have_no_covariance_and_a_finite_gradient() -> None:
    same = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)
    loss = covariance(same) + torch.relu(1 - deviations(same)).mean()
    assert loss.item() == pytest.approx(1 - 0.01)
    (gradient,) = torch.autograd.grad(loss, same)
    assert gradient.isfinite().all()


def test_matrices_are_float32_under_autocast_and_health_tells_collapse(tiny_facts: Facts) -> None:
    images = {name: view.float() for name, view in views().items()}
    with torch.autocast("cpu", torch.bfloat16):
        assert cross_correlation(rows(1).bfloat16(), rows(2).bfloat16()).dtype == torch.float32
        barlow = BarlowTwins(barlow_module.Settings(hidden=7, dim=5), tiny_facts)(images, LEOCLR, NOW)
        vicreg = VICReg(vicreg_module.Settings(hidden=7, dim=5), tiny_facts)(images, LEOCLR, NOW)
    assert barlow.loss.dtype == vicreg.loss.dtype == torch.float32
    assert set(barlow.metrics) == {"diagonal", "off_diagonal"} and -1 <= barlow.metrics["diagonal"] <= 1
    collapsed = {name: torch.zeros_like(view) for name, view in images.items()}
    std = VICReg(vicreg_module.Settings(hidden=7, dim=5), tiny_facts)(collapsed, LEOCLR, NOW).metrics["std"]
    assert std.item() == pytest.approx(math.sqrt(1e-4), abs=1e-4)
