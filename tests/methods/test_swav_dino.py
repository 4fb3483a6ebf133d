"""SwAV and DINO: codes, centring, prototypes, the queue, schedules and frozen layers, against ten-line references."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from leoclr.backends.losses import cross_entropy
from leoclr.backends.method import Facts, Progress
from leoclr.backends.methods import dino as dino_module
from leoclr.backends.methods import swav as swav_module
from leoclr.backends.methods.dino import DINO
from leoclr.backends.methods.swav import SwAV
from leoclr.backends.settings import RunFacts
from leoclr.backends.sinkhorn import sinkhorn
from leoclr.cli.config.sections import OptimizerSettings
from leoclr.cli.training.optimizers import build_optimizer, drop_frozen_gradients

LEOCLR = (("x", "x1"), ("x", "x2"))
MULTICROP = (("x2", "x1"), ("s1", "x1"), ("x1", "x2"), ("s1", "x2"))
NOW = Progress(0, 10, 5)


def views() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sides = {"x": 5, "x1": 5, "x2": 5, "s1": 4}
    return {name: torch.randn(6, 3, n, n, generator=generator, dtype=torch.float64) for name, n in sides.items()}


def seen(pairs: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    return {name: view for name, view in views().items() if name in {name for pair in pairs for name in pair}}


def swav(facts: Facts, **options: object) -> SwAV:
    small = {"hidden": 7, "dim": 5, "prototypes": 8}
    return SwAV(swav_module.Settings.model_validate(small | options), facts).double()


def dino(facts: Facts, **options: object) -> DINO:
    small = {"hidden": 7, "dim": 5, "outputs": 8}
    return DINO(dino_module.Settings.model_validate(small | options), facts).double()


def sinkhorn_reference(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Algorithm of SwAV's appendix: prototypes are rows; one entry at a time."""
    q = [[math.exp(value / epsilon) for value in column] for column in scores.T.tolist()]
    k, b = len(q), len(q[0])
    for _ in range(iterations):
        for row in q:
            total = sum(row)
            row[:] = [value / total / k for value in row]
        for column in range(b):
            total = sum(row[column] for row in q)
            for row in q:
                row[column] /= total * b
    return torch.tensor(q, dtype=torch.float64).T * b


@pytest.mark.parametrize("iterations", [1, 3, 50])
def test_sinkhorn_is_the_algorithm_of_the_paper(iterations: int) -> None:
    scores = torch.rand(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    codes = sinkhorn(scores, 0.05, iterations)
    torch.testing.assert_close(codes, sinkhorn_reference(scores, 0.05, iterations))
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(6, dtype=torch.float64))
    if iterations == 50:
        torch.testing.assert_close(codes.sum(dim=0), torch.full((4,), 1.5, dtype=torch.float64), rtol=0.05, atol=0.05)


def test_sinkhorn_stays_finite_for_large_scores() -> None:
    assert sinkhorn(torch.tensor([[300.0, -300.0], [299.0, 0.0]]), 0.05, 3).isfinite().all()


@pytest.mark.parametrize("pairs", [LEOCLR, MULTICROP])
def test_swav_is_the_mean_over_codes_of_the_mean_over_their_anchors(
    tiny_facts: Facts, pairs: tuple[tuple[str, str], ...]
) -> None:
    method, images = swav(tiny_facts), seen(pairs)
    rows = method.prototypes.weight
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(8, dtype=torch.float64))
    scores = {name: method.encoder(image) @ rows.T for name, image in images.items()}
    of_codes, entropies = [], []
    for positive in dict.fromkeys(positive for _, positive in pairs):
        code = sinkhorn_reference(scores[positive].detach(), 0.05, 3)
        entropies.append(-(code * code.log()).sum(dim=1).mean().item())
        own = [scores[anchor] / 0.1 for anchor, other in pairs if other == positive]
        of_codes.append(torch.stack([-(code * (s - s.logsumexp(1, keepdim=True))).sum(1).mean() for s in own]).mean())
    expected, output = torch.stack(of_codes).mean(), method(images, pairs, NOW)
    torch.testing.assert_close(output.loss, expected)
    parameters = list(method.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(output.loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    assert 0 < output.metrics["used_prototypes"] <= 1
    assert output.metrics["code_entropy"].item() == pytest.approx(sum(entropies) / len(entropies) / math.log(8))


def test_the_queue_of_swav_joins_the_codes_when_it_is_full(tiny_facts: Facts) -> None:
    method, images = swav(tiny_facts, queue=12, queue_epochs=0.4), seen(LEOCLR)
    lengths = []
    for step in range(6):
        now = Progress(step, 10, 5)
        method(images, LEOCLR, now)
        lengths.append(int((method.queue.abs().sum(dim=(1, 2)) > 0).sum()))
        method.after_update(now)
    assert lengths == [0, 0, 0, 6, 12, 12]  # begins with step 2, is full after step 3
    z = {name: method.encoder(image).detach() for name, image in images.items()}
    torch.testing.assert_close(method.queue[:6, 1], z["x2"])
    with torch.no_grad():
        method.queue.copy_(torch.nn.functional.normalize(torch.randn(12, 2, 5, dtype=torch.float64), dim=2))
        scores = z["x1"] @ method.prototypes.weight.T
        joined = torch.cat([scores, method.queue[:, 0] @ method.prototypes.weight.T])
    torch.testing.assert_close(method._codes(scores, 0, Progress(3, 10, 5)), sinkhorn_reference(scores, 0.05, 3))
    torch.testing.assert_close(method._codes(scores, 0, Progress(4, 10, 5)), sinkhorn_reference(joined, 0.05, 3)[:6])
    assert method.per_rank == ("queue",) and swav(tiny_facts).per_rank == ()


@pytest.mark.parametrize(("correlation", "grows"), [(0.4, False), (0.6, True)])
@pytest.mark.parametrize("kind", ["swav", "dino"])
def test_differences_grow_out_of_uniform_outputs_only_where_the_views_agree_enough(
    kind: str, correlation: float, grows: bool
) -> None:
    """At a target's temperature of 0.05 and a prediction's of 0.1 a correlation of more than their ratio, 0.5."""
    generator = torch.Generator().manual_seed(0)
    shared, own, other = (torch.randn(2000, 20, generator=generator, dtype=torch.float64) for _ in range(3))
    one, two = (correlation**0.5 * shared + (1 - correlation) ** 0.5 * noise for noise in (own, other))
    size = torch.tensor(1e-3, dtype=torch.float64, requires_grad=True)  # of the differences, in scores of about 0
    scores = 1e-3 * (one - one.mean(dim=0))
    target = sinkhorn(scores, 0.05, 3) if kind == "swav" else (scores / 0.05).softmax(dim=1)
    loss = cross_entropy(target, (size * two / 0.1).log_softmax(dim=1))
    (slope,) = torch.autograd.grad(loss, size)
    assert (slope.item() < 0) == grows


@pytest.mark.parametrize(("step", "frozen"), [(0, True), (9, True), (10, False)])
def test_prototypes_and_outputs_are_frozen_for_their_epochs(tiny_facts: Facts, step: int, frozen: bool) -> None:
    for method, name in (
        (swav(tiny_facts, frozen_epochs=2), "prototypes.weight"),
        (dino(tiny_facts, frozen_epochs=2), "outputs.weight"),
    ):
        optimizer, now = build_optimizer(method, OptimizerSettings()), Progress(step, 20, 5)
        method(seen(LEOCLR), LEOCLR, now).loss.backward()
        drop_frozen_gradients(optimizer, method, now)
        assert (method.get_parameter(name).grad is None) == frozen
        assert method.encoder.backbone.get_parameter("0.weight").grad is not None


@pytest.mark.parametrize("pairs", [LEOCLR, MULTICROP])
def test_dino_is_the_cross_entropy_of_the_centred_teacher(
    tiny_facts: Facts, pairs: tuple[tuple[str, str], ...]
) -> None:
    method, images = dino(tiny_facts), seen(pairs)
    method.centre.copy_(torch.linspace(-0.1, 0.1, 8))

    def logits(encoder: torch.nn.Module, weight: Tensor, image: Tensor) -> Tensor:
        return encoder(image) @ (weight / weight.norm(dim=1, keepdim=True)).T  # type: ignore[no-any-return]

    terms = []
    for anchor, positive in pairs:
        t = logits(method.teacher, method.teacher_outputs.weight, images[positive]).detach()
        s = logits(method.encoder, method.outputs.weight, images[anchor]) / 0.1
        target = torch.exp((t - method.centre) / 0.04)
        target = target / target.sum(dim=1, keepdim=True)
        terms.append(-(target * (s - s.logsumexp(1, keepdim=True))).sum(dim=1).mean())
    expected, output = torch.stack(terms).mean(), method(images, pairs, NOW)
    torch.testing.assert_close(output.loss, expected)
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    for ours, theirs in zip(
        torch.autograd.grad(output.loss, trained), torch.autograd.grad(expected, trained), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    before = method.centre.clone()
    positives = dict.fromkeys(positive for _, positive in pairs)
    seen_by_teacher = [logits(method.teacher, method.teacher_outputs.weight, images[name]) for name in positives]
    method.after_update(NOW)
    torch.testing.assert_close(method.centre, 0.9 * before + 0.1 * torch.cat(seen_by_teacher).mean(dim=0).detach())


@pytest.mark.parametrize(("step", "momentum", "temperature"), [(0, 0.996, 0.04), (5, 0.998, 0.055), (10, 1.0, 0.07)])
def test_the_schedules_of_the_teacher(tiny_facts: Facts, step: int, momentum: float, temperature: float) -> None:
    method = dino(tiny_facts, teacher_temperature=0.07, teacher_temperature_epochs=2)
    now = Progress(step, 10, 5)
    assert method.momentum(now) == pytest.approx(momentum)
    assert method.teacher_temperature(now) == pytest.approx(temperature)
    with torch.no_grad():
        method.outputs.weight.add_(1.0)
    before = method.teacher_outputs.weight.clone()
    method(seen(LEOCLR), LEOCLR, now)
    method.after_update(now)
    moved = momentum * before + (1 - momentum) * method.outputs.weight
    torch.testing.assert_close(method.teacher_outputs.weight, moved)


def test_dino_clips_each_gradient_by_itself(tiny_facts: Facts) -> None:
    method = dino(tiny_facts, clip=0.5)
    for number, parameter in enumerate(method.encoder.parameters()):
        parameter.grad = torch.full_like(parameter, 10.0 if number % 2 else 1e-6)
    before = [parameter.grad.clone() for parameter in method.encoder.parameters() if parameter.grad is not None]
    method.before_update(NOW)
    for number, (old, parameter) in enumerate(zip(before, method.encoder.parameters(), strict=True)):
        assert parameter.grad is not None
        if number % 2:
            assert parameter.grad.norm().item() == pytest.approx(0.5, rel=1e-5)
        else:
            assert torch.equal(parameter.grad, old)


def test_dino_tells_both_kinds_of_collapse(tiny_facts: Facts) -> None:
    method = dino(tiny_facts)
    healthy = method(seen(LEOCLR), LEOCLR, NOW).metrics
    assert 0 < healthy["centre_entropy"] <= 1 and healthy["teacher_entropy"] <= healthy["centre_entropy"]
    method.centre[0] = -100.0
    assert method(seen(LEOCLR), LEOCLR, NOW).metrics["centre_entropy"] < 1e-6
    with torch.no_grad():
        method.centre.zero_()
        method.teacher_outputs.weight.copy_(torch.ones(8, 5))
    assert method(seen(LEOCLR), LEOCLR, NOW).metrics["teacher_entropy"].item() == pytest.approx(1.0)


def test_codes_and_softmaxes_are_float32_under_autocast(tiny_facts: Facts) -> None:
    images = {name: view.float() for name, view in seen(LEOCLR).items()}
    for method in (swav(tiny_facts).float(), dino(tiny_facts).float()):
        with torch.autocast("cpu", torch.bfloat16):
            assert method(images, LEOCLR, NOW).loss.dtype == torch.float32


def test_what_a_view_that_is_only_a_positive_costs() -> None:
    facts = RunFacts(("x", "x1", "x2"), LEOCLR, images=100, micro=4, ranks=3)
    assert swav_module.Settings().forward_passes(facts) == dino_module.Settings().forward_passes(facts) == 5
    (problem,) = swav_module.Settings(queue=10).problems(facts)
    assert problem == "swav.queue 10 cannot be split evenly over 3 processes"
