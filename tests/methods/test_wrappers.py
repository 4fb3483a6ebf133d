"""Wrappers: each term beside a slow one in float64, who is pulled to whom, and the state of the wrapped method."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
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
from leoclr.backends.wrappers.logo import LoGo
from leoclr.backends.wrappers.mixing import cut_box, generator, inside, mixture, partners
from leoclr.backends.wrappers.mixsiam import MixSiam
from leoclr.backends.wrappers.regioncl import RegionCL, region
from leoclr.backends.wrappers.unmix import UnMix
from leoclr.cli.config.fields import replaced
from leoclr.cli.config.settings import Settings
from leoclr.cli.methods.checks import two_processes
from leoclr.cli.methods.small_settings import small_settings
from leoclr.cli.preflight.checks import facts_of, problems
from leoclr.cli.training import build
from leoclr.cli.training.trainer import train
from leoclr.datasets.policies import wrapped as wrapped_views
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
    numbers = range(1, 2 if crops == "single" else 6)
    for one, other in itertools.product(numbers, numbers):
        weak, strong = method.encoder(images[f"weak{one}"]), method.encoder(images[f"strong{other}"])
        for row in range(6):
            target, predicted = ((query[row] @ keys.T / 0.2).softmax(dim=0) for query in (weak, strong))
            total -= (target * predicted.log()).sum().item() / 6
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


class Pooled(nn.Sequential):
    """A backbone whose pooling layer has torchvision's name; 8 px make a map of 3 x 3 cells."""

    feature_dim = 6

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Conv2d(3, 6, 3, stride=2), nn.ReLU())
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()


def test_regioncl_pulls_both_regions_of_a_composite_to_the_images_they_come_from() -> None:
    settings, images = wrapped_views.RegionCL(weight=0.5), noise("x1", "x2", batch=5)
    facts = Facts(lambda: cast(Backbone, Pooled()), (2, 0, 4), image_size=8, policy=settings.model_dump())
    options = moco.Settings(queue=12, bn_splits=1)
    kind: Any = type("MoCo", (RegionCL, moco.MoCo), {})
    method, plain = kind(options, facts).double(), moco.MoCo(options, facts).double()
    found, base = method(images, PAIRS, at(3)), plain(images, PAIRS, at(3))
    left, top, right, bottom = region(3, generator(0, 3, 0))
    pixels, cells = torch.zeros(8, 8, dtype=torch.bool), torch.zeros(3, 3, dtype=torch.double)
    pixels[top * 8 // 3 : bottom * 8 // 3, left * 8 // 3 : right * 8 // 3] = True
    cells = F.interpolate(pixels[None, None].double(), (3, 3), mode="area")[0, 0]
    other = [1, 0, 3, 2, 4]
    composites = torch.where(pixels, images["x1"][other], images["x1"])
    maps = method.encoder.backbone[0](composites).relu()
    outside, within = ((maps * part).sum(dim=(2, 3)) / part.sum() for part in (1 - cells, cells))
    canvas, paste = (F.normalize(method.encoder.projector(part), dim=1) for part in (outside, within))
    keys, queue, total = method.encoder(images["x2"]), method.queue.keys, 0.0
    for row in range(5):
        total += info_nce_row(canvas[row], keys[row], torch.cat([queue, paste[row : row + 1]])) / 10
        total += info_nce_row(paste[row], keys[other[row]], torch.cat([queue, canvas[row : row + 1]])) / 10
    assert float(found.loss.detach() - base.loss.detach()) == pytest.approx(0.5 * total, rel=1e-10)
    assert method.encoder(images["x1"]).shape == (5, 4)  # and no hook is left


@pytest.mark.parametrize(("cells", "sides"), [(7, {3, 4, 5}), (4, {2, 3}), (2, {1})])
def test_regions_have_three_to_five_sevenths_of_the_side(cells: int, sides: set[int]) -> None:
    random = np.random.default_rng(0)
    found = [region(cells, random) for _ in range(300)]
    assert {right - left for left, _, right, _ in found} == sides == {bottom - top for _, top, _, bottom in found}
    assert all(0 <= left < right <= cells and 0 <= top < bottom <= cells for left, top, right, bottom in found)
    assert len({left for left, *_ in found}) == cells - min(sides) + 1


def test_regioncl_without_a_map_or_a_pooling_layer_is_refused() -> None:
    for backbone, words in ((tiny_backbone, "pooling layer"), (lambda: cast(Backbone, Pooled()), "one cell")):
        facts = Facts(backbone, (2, 0, 4), image_size=4, policy=wrapped_views.RegionCL().model_dump())
        kind: Any = type("MoCo", (RegionCL, moco.MoCo), {})
        with pytest.raises(ValueError, match=words):
            kind(moco.Settings(queue=12, bn_splits=1), facts)


def logo_step(method: Any, images: dict[str, Tensor], step: int) -> list[dict[str, Tensor]]:
    """The gradients that each phase leaves to the optimizer."""
    pairs, found = wrapped_views.LoGo().policy().pairs, []
    for phase in range(method.phases):
        now = at(step)._replace(phase=phase)
        method.zero_grad()
        method(images, pairs, now).loss.backward()
        method.before_update(now)
        found.append({name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None})
        method.after_update(now)
    return found


def norm(gradients: dict[str, Tensor]) -> float:
    return float(torch.cat([gradient.flatten() for gradient in gradients.values()]).norm())


def test_logo_has_three_phases_with_gradients_of_their_own() -> None:
    method: Any = wrapped(LoGo, wrapped_views.LoGo())
    images = noise("global1", "global2", "local1", "local2")
    queue = method.queue.keys.clone()
    first, second = logo_step(method, images, 0), logo_step(method, images, 1)
    for regressor, unlike, contrastive in (first, second):
        assert all(name.startswith("regressor.") for name in regressor) and norm(regressor) > 0
        assert set(unlike) == set(contrastive) and not any(name.startswith("regressor.") for name in unlike)
    assert norm(first[1]) < 1e-9  # there was no contrastive gradient yet
    assert norm(second[1]) <= 0.015 * norm(first[2]) * (1 + 1e-5)
    assert int((method.queue.keys != queue).any(dim=1).sum()) == 12  # 6 keys a step, once a step


def test_the_contrastive_phase_of_logo_is_the_mean_of_six_pairs_and_never_pulls_the_locals_together() -> None:
    method: Any = wrapped(LoGo, wrapped_views.LoGo(), reduction="sum")
    policy, images = wrapped_views.LoGo().policy(), noise("global1", "global2", "local1", "local2")
    loss = method(images, policy.pairs, at(0)._replace(phase=2)).loss.item()
    embeddings = {name: method.encoder(view) for name, view in images.items()}
    expected = np.mean(
        [
            info_nce_row(embeddings[anchor][row], embeddings[positive][row], method.queue.keys)
            for anchor, positive in policy.pairs
            for row in range(6)
        ]
    )
    assert loss == pytest.approx(expected, rel=1e-10) and len(policy.pairs) == 6
    assert not any({"local1", "local2"} == set(pair) for pair in policy.pairs)


def test_the_regressor_of_logo_tells_pairs_of_one_image_from_pairs_of_two() -> None:
    method: Any = wrapped(LoGo, wrapped_views.LoGo())
    method.regressor.eval()
    first, second = (torch.randn(6, 4, generator=torch.Generator().manual_seed(n)).double() for n in (1, 2))
    noisy = [part + n * 0.15 for part, n in zip((first, second), map(torch.from_numpy, drawn_noise()), strict=True)]

    def alike(one: Tensor, other: Tensor) -> float:
        return float(method.regressor(torch.cat([one, other])[None]).detach())

    total = 0.0
    for row in range(6):
        one, other = noisy[0][row], noisy[1][row]
        total += np.log1p(np.exp(-alike(one, other))) / 2 + np.log1p(np.exp(-alike(other, one))) / 2
        total += np.log1p(np.exp(alike(first[row], second[row ^ 1]))) / 2
        total += np.log1p(np.exp(alike(second[row], first[row ^ 1]))) / 2
    assert method.regressor_loss(first, second, 5).item() == pytest.approx(total / 6, rel=1e-6)


def drawn_noise() -> Any:
    return generator(0, 5, 0).standard_normal((2, 1, 6, 4))[:, 0]


@pytest.mark.parametrize("views", ["unmix", "regioncl", "logo"])
def test_a_wrapped_run_resumes_bit_for_bit(
    views: str, make_shards: Callable[..., Path], tiny_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = tiny_settings(make_shards((16,)), views=views, train__epochs="2")

    def end(folder: Path, resume: bool) -> bytes:
        result = train(settings, folder, None, ["test"], resume)
        return (Path(result.checkpoint) / "model.safetensors").read_bytes()

    whole = end(tmp_path / "run", resume=False)
    shutil.rmtree(sorted((tmp_path / "run" / "checkpoints").iterdir())[-1])
    assert end(tmp_path / "run", resume=True) == whole


@pytest.mark.slow
@pytest.mark.parametrize("views", ["clsa", "unmix", "mixsiam", "regioncl", "logo"])
def testtwo_processes_equal_one(views: str, tmp_path: Path) -> None:
    settings = replaced(small_settings("moco"), {"views": views})
    assert "within" in two_processes(settings, tmp_path)


@pytest.mark.parametrize("views", ["clsa", "unmix", "mixsiam", "regioncl"])
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
