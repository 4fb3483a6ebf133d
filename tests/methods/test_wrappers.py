"""Wrappers: each term beside a slow one in float64, who is pulled to whom, and the state of the wrapped method."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leoclr.backends.method import Facts, PairMethod, Progress
from leoclr.backends.methods import moco, simclr
from leoclr.backends.networks.backbones import Backbone
from leoclr.backends.wrappers.clsa import Clsa
from leoclr.backends.wrappers.mixing import cut_box, generator, inside, mixture, partners
from leoclr.backends.wrappers.mixsiam import MixSiam
from leoclr.backends.wrappers.unmix import UnMix
from leoclr.cli.config.settings import Settings
from leoclr.cli.methods.checks import small_settings
from leoclr.cli.training import build
from leoclr.cli.training.preflight import facts_of, problems
from leoclr.datasets import wrapped_views
from leoclr.datasets.views import POLICIES, PolicySettings

PAIRS = POLICIES["pairwise"].pairs
BOTH = POLICIES["pairwise-symmetric"].pairs


def tiny_backbone() -> Backbone:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    backbone = cast(Backbone, nn.Sequential(*layers))
    backbone.feature_dim = 6
    return backbone


def wrapped(wrapper: type[PairMethod] | None, policy: PolicySettings | None = None, **options: Any) -> PairMethod:
    """MoCo without BatchNorm, in float64, within a wrapper."""
    settings = moco.Settings(**{"queue": 12, "momentum": 0.9, "bn_splits": 1} | options)
    facts = Facts(tiny_backbone, projector=(2, 0, 4), policy=policy.model_dump() if policy is not None else {})
    kind: Any = type("MoCo", (wrapper, moco.MoCo), {}) if wrapper is not None else moco.MoCo
    made: PairMethod = kind(settings, facts).double()
    return made


def at(step: int) -> Progress:
    return Progress(step, 10, 5)


def noise(*names: str, batch: int = 6, seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {name: torch.randn(batch, 3, 8, 8, generator=random, dtype=torch.float64) for name in names}


def info_nce_row(query: Tensor, key: Tensor, queue: Tensor) -> float:
    logits = torch.cat([query @ key[None].T, query @ queue.T]) / 0.2
    return -logits.log_softmax(dim=0)[0].item()


def drawn_mixture(settings: wrapped_views.UnMix, images: Tensor, step: int, number: int = 0) -> tuple[Tensor, float]:
    return mixture(images, settings.alpha, settings.cutmix, generator(0, step, number))


@pytest.mark.parametrize("cutmix", [0.0, 1.0])
@pytest.mark.parametrize("batch", [6, 5])
def test_unmix_pulls_a_mixture_to_both_of_its_images_by_their_shares(batch: int, cutmix: float) -> None:
    settings = wrapped_views.UnMix(cutmix=cutmix)
    method, plain, images = wrapped(UnMix, settings), wrapped(None), noise("x1", "x2", batch=batch)
    found, base = method(images, PAIRS, at(3)), plain(images, PAIRS, at(3))
    mixed, share = drawn_mixture(settings, images["x1"], 3)
    queries, keys, queue = method.encoder(mixed), method.encoder(images["x2"]), cast(Any, method).queue.keys
    total = 0.0
    for row in range(batch):
        other = min(row ^ 1, batch - 1)
        if cutmix == 0:
            expected = share * images["x1"][row] + (1 - share) * images["x1"][other]
            torch.testing.assert_close(mixed[row], expected, rtol=1e-14, atol=0)
        else:
            own = float((mixed[row] == images["x1"][row]).double().mean())
            assert own == pytest.approx(share if other != row else 1.0)
        total += share * info_nce_row(queries[row], keys[row], queue)
        total += (1 - share) * info_nce_row(queries[row], keys[other], queue)
    assert float(found.loss.detach() - base.loss.detach()) == pytest.approx(total / batch, rel=1e-10)
    assert float(found.metrics["mixture_loss"]) == pytest.approx(total / batch, rel=1e-10)
    assert torch.equal(found.embeddings, base.embeddings)


def test_the_share_of_a_mixture_is_uniform_and_a_box_has_the_rest_of_the_area() -> None:
    random = np.random.default_rng(0)
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8)
    shares = np.array([mixture(images, 1.0, 0.0, random)[1] for _ in range(2000)])
    assert abs(shares.mean() - 0.5) < 0.02 and abs(shares.std() - 12**-0.5) < 0.01
    ends = np.array([mixture(images, 0.2, 0.0, random)[1] for _ in range(2000)])
    assert ends.std() > 0.38  # Beta(0.2, 0.2) prefers the ends
    kinds = [mixture(images, 1.0, 0.5, random)[0] for _ in range(400)]
    whole = sum(bool((one[0] == one[0].round()).all()) for one in kinds)  # of CutMix; a mixup is between two images
    assert 150 < whole < 250
    for share in (0.0, 0.3, 0.9, 1.0):
        left, top, right, bottom = cut_box(share, 8, 8, random)
        assert 0 <= left <= right <= 8 and 0 <= top <= bottom <= 8
        mask = inside((left, top, right, bottom), 8, 8, torch.device("cpu"))
        assert int(mask.sum()) == (right - left) * (bottom - top) <= (1 - share) * 64 + 1e-9


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_partners_stay_within_an_even_share_of_the_batch(ranks: int) -> None:
    rows = torch.arange(12)
    together = torch.cat([partners(part) for part in rows.chunk(ranks)])
    assert together.tolist() == [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10]
    assert partners(torch.arange(5)).tolist() == [1, 0, 3, 2, 4]


def test_mixtures_follow_from_seed_and_step() -> None:
    settings, images = wrapped_views.UnMix(), noise("x1")["x1"]
    one, again, other = (drawn_mixture(settings, images, step) for step in (1, 1, 2))
    assert torch.equal(one[0], again[0]) and one[1] == again[1] != other[1]


def test_mixsiam_pulls_the_mixture_of_two_views_to_their_maximum() -> None:
    settings = wrapped_views.MixSiam(weight=0.7)
    method, plain, images = wrapped(MixSiam, settings), wrapped(None), noise("x1", "x2")
    found, base = method(images, BOTH, at(3)), plain(images, BOTH, at(3))
    share = generator(0, 3, 0).beta(1.0, 1.0)
    queries = method.encoder(share * images["x1"] + (1 - share) * images["x2"])
    maximum = torch.maximum(method.encoder(images["x1"]), method.encoder(images["x2"]))
    keys, queue = maximum / maximum.norm(dim=1, keepdim=True), cast(Any, method).queue.keys
    expected = np.mean([info_nce_row(query, key, queue) for query, key in zip(queries, keys, strict=True)])
    assert float(found.loss.detach() - base.loss.detach()) == pytest.approx(0.7 * expected, rel=1e-10)


@pytest.mark.parametrize("crops", ["single", "multi"])
def test_clsa_gives_strong_views_the_distribution_of_weak_ones(crops: Any) -> None:
    settings = wrapped_views.Clsa(crops=crops, weight=0.5)
    policy = settings.policy()
    method, plain, images = wrapped(Clsa, settings), wrapped(None), noise(*policy.views)
    found, base = method(images, policy.pairs, at(0)), plain(images, policy.pairs, at(0))
    keys = torch.cat([method.encoder(images["key"]), cast(Any, method).queue.keys])
    total = 0.0
    for number in range(1, 2 if crops == "single" else 6):
        weak, strong = (method.encoder(images[f"{kind}{number}"]) for kind in ("weak", "strong"))
        for row in range(6):
            target, predicted = ((query[row] @ keys.T / 0.2).softmax(dim=0) for query in (weak, strong))
            total -= float((target * predicted.log()).sum()) / 6
    assert float(found.loss.detach() - base.loss.detach()) == pytest.approx(0.5 * total, rel=1e-10)


def test_the_gradient_of_clsa_is_that_of_the_divergence_and_the_weak_view_has_none_of_it() -> None:
    settings = wrapped_views.Clsa()
    method, plain, images = wrapped(Clsa, settings), wrapped(None), noise("key", "weak1", "strong1")
    leaves = {name: image.clone().requires_grad_() for name, image in images.items()}
    method(leaves, settings.policy().pairs, at(0)).loss.backward()
    alone = {name: image.clone().requires_grad_() for name, image in images.items()}
    plain(alone, settings.policy().pairs, at(0)).loss.backward()
    assert torch.equal(cast(Tensor, leaves["weak1"].grad), cast(Tensor, alone["weak1"].grad))
    assert leaves["key"].grad is None and alone["strong1"].grad is None
    keys = torch.cat([method.encoder(images["key"]), cast(Any, method).queue.keys]).detach()
    strong = images["strong1"].clone().requires_grad_()
    target, predicted = ((method.encoder(one) @ keys.T / 0.2) for one in (images["weak1"], strong))
    divergence: Any = F.kl_div(predicted.log_softmax(1), target.softmax(1).detach(), reduction="batchmean")
    divergence.backward()
    torch.testing.assert_close(leaves["strong1"].grad, strong.grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("views", "pulled"), [("unmix", {("x", "x1"), ("x", "x2")}), ("mixsiam", set(BOTH))])
def test_policies_pull_what_they_say_and_nothing_else(views: str, pulled: set[tuple[str, str]]) -> None:
    policy: PolicySettings = wrapped_views.UnMix(base="leoclr") if views == "unmix" else wrapped_views.MixSiam()
    assert set(policy.policy().pairs) == pulled


def test_unmix_over_leoclr_views_never_pulls_the_crops_to_each_other() -> None:
    """What one crop adds to the loss does not depend on the other crop of its image."""
    settings = wrapped_views.UnMix(base="leoclr")

    def loss(x1: Tensor, x2: Tensor) -> float:
        images = noise("x") | {"x1": x1, "x2": x2}
        return float(wrapped(UnMix, settings)(images, settings.policy().pairs, at(0)).loss.detach())

    (first, second), (changed, other) = (noise("x1", "x2", seed=seed).values() for seed in (1, 2))
    assert loss(changed, second) - loss(first, second) == pytest.approx(loss(changed, other) - loss(first, other))


@pytest.mark.parametrize("views", ["clsa", "unmix", "mixsiam"])
def test_a_wrapped_method_keeps_its_state_and_its_backbones(views: str) -> None:
    settings = small_settings("moco")
    plain, within = (
        build.method(Settings.model_validate(settings.model_dump() | {"views": name}), torch.device("cpu"), 16)
        for name in ("pairwise", views)
    )
    own, other = plain.state_dict(), within.state_dict()
    assert set(own) == set(other) and all(torch.equal(value, other[name]) for name, value in own.items())
    assert list(plain.backbones()) == list(within.backbones())


def test_a_method_without_what_a_policy_needs_is_refused_in_one_line() -> None:
    settings = Settings(backend="simclr", views="clsa")
    (line,) = problems(settings, facts_of(settings, 1000, 1))
    assert line.startswith("views clsa need") and "a distribution over keys" in line and line.endswith("moco")
    assert not list(problems(Settings(backend="simclr", views="unmix"), facts_of(settings, 1000, 1)))
    assert not list(problems(Settings(views="clsa"), facts_of(settings, 10**6, 1)))


def test_simclr_within_unmix_learns_through_mixtures() -> None:
    facts = Facts(tiny_backbone, projector=(2, 0, 4), policy=wrapped_views.UnMix().model_dump())
    kind: Any = type("SimCLR", (UnMix, simclr.SimCLR), {})
    method, images = kind(simclr.Settings(), facts).double(), noise("x1", "x2")
    output: Any = method(images, PAIRS, at(0))
    output.loss.backward()
    assert output.metrics["mixture_loss"] > 0 and all(p.grad is not None for p in method.parameters())
