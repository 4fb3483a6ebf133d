"""HCSC: k-means, concentrations, chosen negatives and both losses, against references that go one by one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from leoclr.backends.kmeans import k_means
from leoclr.backends.method import Facts, Progress
from leoclr.backends.methods import hcsc as hcsc_module
from leoclr.backends.methods.hcsc import HCSC, concentration, keep
from leoclr.backends.methods.moco import MoCo
from leoclr.backends.settings import Pairs, RunFacts
from leoclr.datasets.policies.multicrop import MulticropViews
from leoclr.datasets.views import POLICIES

LEOCLR = POLICIES["leoclr"].pairs
PAIRWISE = POLICIES["pairwise"].pairs
MULTICROP = MulticropViews(small=1).policy().pairs
WARM, CLUSTERED = Progress(4, 40, 5), Progress(25, 40, 5)


def hcsc(facts: Facts, **options: object) -> HCSC:
    small = {"queue": 12, "bn_splits": 1, "clusters": (4, 2), "momentum": 0.9, "warmup": 0.2}
    method = HCSC(hcsc_module.Settings.model_validate(small | options), facts).double()
    generator = torch.Generator().manual_seed(5)
    for level, parents in zip(method._levels(), ([0, 1, 1, 0], [0, 0]), strict=True):
        level.centroids.copy_(F.normalize(torch.randn(level.centroids.shape, generator=generator), dim=1))
        level.concentration.copy_(0.1 + 0.3 * torch.rand(len(parents), generator=generator))
        level.parents.copy_(torch.tensor(parents))
        level.sizes.copy_(torch.arange(len(parents)))
    return method


def views(pairs: Pairs) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    names = dict.fromkeys(name for pair in pairs for name in pair)
    return {name: torch.randn(6, 3, 5, 5, generator=generator, dtype=torch.float64) for name in names}


def softmax(logits: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in logits)
    return [math.exp(value) / total for value in logits]


def pair_loss(method: HCSC, query: Tensor, key: Tensor, image: int, draws: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Of one image and one positive, from the paper."""
    levels, queue, temperature = method._levels(), method.queue.keys, method.settings.temperature
    of_images, of_queue, of_centroids = draws
    own = max(range(len(levels[0].centroids)), key=lambda c: float(key @ levels[0].centroids[c]))
    positive, total, prototypes = query @ key / temperature, torch.zeros(()).double(), []
    for number, level in enumerate(levels):
        phi = level.concentration.tolist()
        denominator = positive.exp()
        for slot, negative in enumerate(queue):
            share = softmax([float(negative @ c) / p for c, p in zip(level.centroids, phi, strict=True)])[own]
            stays = (float(of_images[number, image]) + float(of_queue[number, slot])) % 1 < 1 - share
            denominator = denominator + (query @ negative / temperature * stays).exp()
        total = total - (positive.exp() / denominator).log()
        logits = []
        for c, centroid in enumerate(level.centroids):
            stays = True
            if number == 0 and c != own:
                upper = levels[1]
                above = zip(upper.centroids, upper.concentration, strict=True)
                shares = softmax([float(centroid @ other) / float(p) for other, p in above])
                draw = (float(of_images[0, image]) + float(of_centroids[0, c])) % 1
                stays = draw < 1 - shares[int(level.parents[own])]
            logits.append(query @ centroid / phi[c] * stays)
        prototypes.append(torch.stack(logits).logsumexp(dim=0) - logits[own])
        own = int(level.parents[own])
    return total + torch.stack(prototypes).mean()


@pytest.mark.parametrize("pairs", [PAIRWISE, LEOCLR, MULTICROP])
def test_the_loss_chooses_negatives_and_finds_the_clusters(tiny_facts: Facts, pairs: Pairs) -> None:
    method, images = hcsc(tiny_facts), views(pairs)
    output = method(images, pairs, CLUSTERED)
    drawn = torch.rand(2, 12 + 4 + 6, generator=torch.Generator().manual_seed(CLUSTERED.step))
    draws = drawn[:, 16:], drawn[:, :12], drawn[:, 12:16]
    terms = []
    for anchor, positive in pairs:
        queries, keys = method.encoder(images[anchor]), method.key_encoder(images[positive]).detach()
        terms.append(torch.stack([pair_loss(method, queries[i], keys[i], i, draws) for i in range(6)]).mean())
    expected = torch.stack(terms).sum()
    torch.testing.assert_close(output.loss, expected)
    trained = list(method.encoder.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(output.loss, trained), torch.autograd.grad(expected, trained), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    assert output.metrics["clusters_used"] == 0.75 and output.metrics["largest_cluster"] == 0.5
    assert 0 < output.metrics["negatives_kept"] < 1


def test_the_warm_up_is_moco_and_the_first_clustering_ends_it(tiny_facts: Facts) -> None:
    """At the end of an epoch, when a fifth of the eight epochs is over, and not after the last step."""
    method, images = hcsc(tiny_facts), views(LEOCLR)
    torch.testing.assert_close(method(images, LEOCLR, WARM).loss, MoCo.forward(method, images, LEOCLR, WARM).loss)
    clustered = []
    for step in (4, 8, 9, 13, 14, 39):
        before = method._levels()[0].centroids.clone()
        now = Progress(step, 40, 5)
        method(images, LEOCLR, now)
        method.after_update(now)
        if not torch.equal(before, method._levels()[0].centroids):
            clustered.append(step)
    assert clustered == [9, 14]


def test_the_bank_holds_an_epoch_and_no_key_of_its_own_batch_is_a_negative(tiny_facts: Facts) -> None:
    facts = replace(tiny_facts, images=20)  # of which an epoch has three batches of six
    assert len(hcsc(facts, bank=100).bank.keys) == 18 and len(hcsc(facts, bank=15).bank.keys) == 15
    method, images = hcsc(facts), views(LEOCLR)
    keys, queue = method.key_encoder(images["x1"]), method.queue.keys.clone()
    method(images, LEOCLR, CLUSTERED)
    assert torch.equal(method.queue.keys, queue)  # until the loss is computed
    method.after_update(CLUSTERED)
    for held in (method.queue, method.bank):
        torch.testing.assert_close(held.keys[:6], keys)


def test_keys_get_no_gradient(tiny_facts: Facts) -> None:
    method = hcsc(tiny_facts)
    images = {name: view.requires_grad_() for name, view in views(LEOCLR).items()}
    method(images, LEOCLR, CLUSTERED).loss.backward()
    assert images["x"].grad is not None and images["x1"].grad is None and images["x2"].grad is None


def test_clusters_of_clusters(tiny_facts: Facts) -> None:
    """Levels hold the clusters of the keys, and then of the centroids, with the parents of each."""
    method = hcsc(tiny_facts, clusters=(4, 2), bank=24)
    method.bank.keys = F.normalize(torch.randn(24, 128, generator=torch.Generator().manual_seed(2)).double(), dim=1)
    method._waiting.append(method.bank.keys[:0])
    method.after_update(Progress(9, 40, 5))
    lower, upper = method._levels()
    expected, owners = k_means(method.bank.keys, 4, 20, 9 * 2)
    torch.testing.assert_close(lower.centroids, F.normalize(expected, dim=1))
    assert lower.sizes.tolist() == [int((owners == cluster).sum()) for cluster in range(4)]
    distances = [float((method.bank.keys[owners == c] - expected[c]).norm(dim=1).mean()) for c in range(4)]
    torch.testing.assert_close(lower.concentration, concentration(torch.tensor(distances).double(), lower.sizes, 0.2))
    above, parents = k_means(lower.centroids, 2, 20, 9 * 2 + 1)
    assert torch.equal(lower.parents, parents)
    torch.testing.assert_close(upper.centroids, F.normalize(above, dim=1))


def test_k_means_is_lloyds_algorithm() -> None:
    points = torch.randn(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chosen = torch.randperm(30, generator=torch.Generator().manual_seed(7))[:4].tolist()
    centroids = [points[index].tolist() for index in chosen]

    def owner(point: list[float]) -> int:
        return min(range(4), key=lambda c: math.dist(point, centroids[c]))

    for _ in range(50):
        members: list[list[list[float]]] = [[] for _ in range(4)]
        for point in points.tolist():
            members[owner(point)].append(point)
        centroids = [np.mean(own, axis=0).tolist() if own else old for own, old in zip(members, centroids, strict=True)]
    found, owners = k_means(points, 4, 50, 7)
    torch.testing.assert_close(found, torch.tensor(centroids, dtype=torch.float64))
    assert owners.tolist() == [owner(point) for point in points.tolist()]
    again = k_means(points, 4, 50, 7)
    assert torch.equal(again[0], found) and not torch.equal(k_means(points, 4, 0, 7)[0], found)


def test_a_cluster_without_points_keeps_its_centroid() -> None:
    points = torch.ones(3, 2)
    found, owners = k_means(points, 2, 5, 0)
    assert torch.equal(found, torch.ones(2, 2)) and owners.tolist() == [0, 0, 0]


def test_concentrations_are_the_authors_formula() -> None:
    distances, sizes = [0.5, 0.0, 0.9, 0.2, 0.7], [8, 1, 3, 20, 0]
    values = [d / np.log(n + 10) if n > 1 else 0.0 for d, n in zip(distances, sizes, strict=True)]
    values = [value if n > 1 else max(values) for value, n in zip(values, sizes, strict=True)]
    clipped = np.clip(values, np.percentile(values, 10), np.percentile(values, 90))
    found = concentration(torch.tensor(distances).double(), torch.tensor(sizes).double(), 0.2)
    np.testing.assert_allclose(found.numpy(), 0.2 * clipped / clipped.mean())
    assert torch.equal(concentration(torch.zeros(3), torch.ones(3), 0.2), torch.full((3,), 1e-3))


def test_negatives_are_left_out_as_often_as_they_belong_to_the_cluster() -> None:
    generator = torch.Generator().manual_seed(0)
    memberships = torch.tensor([[0.9, 0.1], [0.3, 0.7]]).repeat(2000, 1)
    kept = keep(
        memberships, torch.tensor([0, 1]), torch.rand(2, generator=generator), torch.rand(4000, generator=generator)
    )
    rates = kept.view(2, 2000, 2).mean(dim=1)
    torch.testing.assert_close(rates, torch.tensor([[0.1, 0.7], [0.9, 0.3]]), rtol=0, atol=0.03)


def test_wrong_numbers_of_clusters_are_refused_in_one_line() -> None:
    facts = RunFacts(("x1", "x2"), PAIRWISE, images=500, micro=8)
    (few,) = hcsc_module.Settings(queue=100, clusters=(1000, 10), bn_splits=1).problems(facts)
    assert few.startswith("hcsc.clusters: 500 keys cannot make 1,000 clusters; --set hcsc.clusters=")
    (order,) = hcsc_module.Settings(queue=100, clusters=(20, 20), bn_splits=1).problems(facts)
    assert order == "hcsc.clusters must go down from level to level, not 20, 20"
    (splits,) = hcsc_module.Settings(queue=100, clusters=(20,), bn_splits=5).problems(facts)
    assert "--set hcsc.bn_splits=1" in splits


def test_losses_are_float32_under_autocast(tiny_facts: Facts) -> None:
    method = hcsc(tiny_facts).float()
    with torch.autocast("cpu", torch.bfloat16):
        output = method({name: view.float() for name, view in views(LEOCLR).items()}, LEOCLR, CLUSTERED)
    assert output.loss.dtype == torch.float32
