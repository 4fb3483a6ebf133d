"""Equation 2 and 3 and NT-Xent against slow, obvious references in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from leoclr.backends.losses import info_nce, nt_xent


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def info_nce_reference(anchors: Tensor, positives: Tensor, negatives: Tensor, temperature: float) -> float:
    """Equation 2 of the paper, one image and one term at a time."""
    total = 0.0
    for u, v in zip(anchors.tolist(), positives.tolist(), strict=True):
        positive = math.exp(sum(a * b for a, b in zip(u, v, strict=True)) / temperature)
        others = [math.exp(sum(a * b for a, b in zip(u, n, strict=True)) / temperature) for n in negatives.tolist()]
        total += -math.log(positive / (positive + sum(others)))
    return total / len(anchors)


def nt_xent_reference(first: Tensor, second: Tensor, temperature: float) -> float:
    """SimCLR's equation 1, averaged over the 2N anchors."""
    z, n = torch.cat([first, second]), len(first)
    total = 0.0
    for i in range(2 * n):
        terms = [math.exp(float(z[i] @ z[j]) / temperature) for j in range(2 * n)]
        positive = i + n if i < n else i - n
        total += -math.log(terms[positive] / sum(term for j, term in enumerate(terms) if j != i))
    return total / (2 * n)


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
@pytest.mark.parametrize(("batch", "dim", "queue"), [(1, 2, 1), (4, 8, 16), (7, 3, 50)])
def test_info_nce_is_equation_2_for_each_positive(batch: int, dim: int, queue: int, temperature: float) -> None:
    anchors, first, second = unit(batch, dim, seed=1), unit(batch, dim, seed=2), unit(batch, dim, seed=3)
    negatives = unit(queue, dim, seed=4)
    losses = info_nce(anchors, [first, second], negatives, temperature)
    expected = [info_nce_reference(anchors, positive, negatives, temperature) for positive in (first, second)]
    assert losses.tolist() == pytest.approx(expected, rel=1e-12)


def test_info_nce_gradient_is_that_of_cross_entropy() -> None:
    anchors, positives, negatives = unit(5, 4, seed=1).requires_grad_(), unit(5, 4, seed=2), unit(9, 4, seed=3)
    (gradient,) = torch.autograd.grad(info_nce(anchors, [positives], negatives, 0.2).sum(), anchors)
    logits = torch.cat([(anchors * positives).sum(1, keepdim=True), anchors @ negatives.T], dim=1) / 0.2
    reference = F.cross_entropy(logits, torch.zeros(5, dtype=torch.long))
    (expected,) = torch.autograd.grad(reference, anchors)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


def test_equal_keys_and_negatives_give_the_log_of_their_number() -> None:
    same = F.normalize(torch.ones(4, 3, dtype=torch.float64), dim=1)
    assert info_nce(same, [same], same.repeat(2, 1), 0.2).item() == pytest.approx(math.log(1 + 8))


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("batch", [2, 5])
def test_nt_xent_is_simclrs_equation_1(batch: int, temperature: float) -> None:
    first, second = unit(batch, 6, seed=1), unit(batch, 6, seed=2)
    expected = nt_xent_reference(first, second, temperature)
    assert nt_xent(first, second, temperature).item() == pytest.approx(expected, rel=1e-12)


def test_stop_gradient_changes_the_gradient_and_not_the_loss() -> None:
    first, second = unit(4, 6, seed=1).requires_grad_(), unit(4, 6, seed=2)
    free, stopped = nt_xent(first, second, 0.2), nt_xent(first, second, 0.2, stop_gradient=True)
    assert free.item() == pytest.approx(stopped.item(), rel=1e-12)
    gradients = [torch.autograd.grad(loss, first)[0] for loss in (free, stopped)]
    assert (gradients[0] - gradients[1]).abs().max() > 1e-3


def test_losses_stay_finite_for_identical_embeddings_at_a_small_temperature() -> None:
    same = F.normalize(torch.ones(4, 3), dim=1)
    assert math.isfinite(info_nce(same, [same], same, 0.01).item())
    assert math.isfinite(nt_xent(same, same, 0.01).item())


def test_losses_do_not_lose_precision_under_autocast() -> None:
    anchors, positives, negatives = (unit(8, 16, seed=seed).float() for seed in (1, 2, 3))
    exact = info_nce(anchors, [positives], negatives, 0.1), nt_xent(anchors, positives, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        cast = info_nce(anchors, [positives], negatives, 0.1), nt_xent(anchors, positives, 0.1)
    assert [loss.dtype for loss in cast] == [torch.float32, torch.float32]
    assert all(torch.equal(one, other) for one, other in zip(exact, cast, strict=True))
