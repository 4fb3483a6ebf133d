"""HCSC: MoCo whose negatives are chosen by a hierarchy of clusters, and whose queries also find their clusters.

arXiv 2202.00455. After each epoch, past the warm-up, k-means clusters the newest keys, then the centroids, and so on;
an image belongs to the cluster whose centroid is nearest to its key, and to that cluster's clusters. A cluster's
concentration is the mean distance of its members / ln(members + 10), kept within the 10th and 90th percentile and
scaled to a mean of the temperature. Two losses for each positive:

- MoCo's for each level, summed. A negative is left out with the probability of its own key's membership in the image's
  cluster, `softmax_c(key . centroid_c / concentration_c)`; as in the authors' code its logit becomes 0.
- Cross-entropy over a level's centroids, `query . centroid_c / concentration_c`, averaged over levels. A centroid is
  left out in the same way by its membership in the cluster above.

Deviations from the authors' code, which embeds the data set again before each epoch: what is clustered is a bank of the
keys that entered the queue, of one epoch at most. They come from the crops and key encoders of that epoch and not from
one encoder and the images' centres, there is one for each image where `enqueue` is "first", and no second pass over the
data. An image is assigned by its key of the step, and under several positives by each by itself: with the `leoclr`
views X finds the clusters of X1 and of X2. The negatives of a prototype are all others; the authors leave out those of
other images in the process's batch. k-means begins once, not five times.

Health: `clusters_used`, share of the first level's clusters that have keys; `largest_cluster`, share of the keys in the
largest one, 1 at collapse; `negatives_kept`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from leoclr.backends.distributed import gather, rank, ranks
from leoclr.backends.kmeans import k_means, nearest
from leoclr.backends.losses import exact
from leoclr.backends.method import Facts, Output, Progress
from leoclr.backends.methods.moco import MoCo
from leoclr.backends.methods.moco import Settings as MoCoSettings
from leoclr.backends.queue import KeyQueue
from leoclr.backends.settings import Fraction, Pairs, PositiveCount, RunFacts
from leoclr.backends.step_inputs import step_generator, step_input

_SMALLEST = 1e-3  # concentration


class Settings(MoCoSettings):
    """HCSC: MoCo with a hierarchy of clusters (`--backend hcsc`)."""

    default_views: ClassVar[str] = "pairwise"
    section: ClassVar[str] = "hcsc"
    small: ClassVar[Mapping[str, Any]] = {**MoCoSettings.small, "clusters": (4, 2), "bank": 16}

    queue: PositiveCount = Field(default=16384, description="Keys in the queue.")
    clusters: Annotated[tuple[PositiveCount, ...], Field(min_length=1)] = Field(
        default=(3000, 2000, 1000), description="Clusters of each level, each of fewer than the one before."
    )
    bank: PositiveCount = Field(
        default=131072, description="Newest keys that are clustered; at most those of an epoch. 512 bytes each."
    )
    iterations: PositiveCount = Field(default=20, description="Iterations of k-means, at most.")
    warmup: Fraction = Field(
        default=0.1,
        description="Share of the run that is MoCo alone, in whole epochs and at least one: 20 of 200 epochs.",
    )

    def problems(self, facts: RunFacts) -> Iterator[str]:
        yield from super().problems(facts)
        if any(upper >= lower for lower, upper in zip(self.clusters, self.clusters[1:], strict=False)):
            yield f"hcsc.clusters must go down from level to level, not {', '.join(map(str, self.clusters))}"
        if self.clusters[0] > min(self.bank, facts.images):
            yield (
                f"hcsc.clusters: {min(self.bank, facts.images):,} keys cannot make {self.clusters[0]:,} clusters; "
                "--set hcsc.clusters=... with fewer, 100 to 400 keys each"
            )

    def chance(self, facts: RunFacts) -> float | None:
        return None  # it depends on which negatives are left out, and changes after the warm-up


class HCSC(MoCo):
    """The backend of hierarchical clusters.

    Attributes:
        bank: The keys that are clustered.
        levels: The clusters, from many to few.
    """

    settings: Settings

    def __init__(self, settings: Settings, facts: Facts) -> None:
        super().__init__(settings, facts)
        epoch = facts.images // max(1, facts.batch_size) * facts.batch_size
        self.bank = KeyQueue(max(settings.clusters[0], min(settings.bank, epoch)), facts.projector[2], facts.seed)
        self.levels = nn.ModuleList(Level(clusters, facts.projector[2]) for clusters in settings.clusters)
        self._clustered, self._draws, self._kept = False, tuple[Tensor, ...](), list[Tensor]()

    def forward(self, views: Mapping[str, Tensor], pairs: Pairs, now: Progress) -> Output:
        self._clustered = now.step >= self._first_step(now)
        self._kept.clear()
        if not self._clustered:
            return super().forward(views, pairs, now)
        self._draws = self._drawn(next(iter(views.values())), now)
        output = super().forward(views, pairs, now)
        sizes = self._levels()[0].sizes
        metrics = {
            "clusters_used": (sizes > 0).float().mean(),
            "largest_cluster": sizes.max() / sizes.sum().clamp_min(1),
            "negatives_kept": torch.stack(self._kept).mean(),
        }
        return output._replace(metrics=metrics)

    def pull(self, predictions: Tensor, targets: Sequence[Tensor], negatives: Tensor | None = None) -> Tensor:
        if not self._clustered:
            return super().pull(predictions, targets, negatives)
        with torch.autocast(predictions.device.type, enabled=False):
            scaled = predictions / self.settings.temperature
            logits = scaled @ self.queue.keys.T
            extra = None if negatives is None else (scaled * negatives).sum(dim=1)
            memberships = [level.memberships(self.queue.keys) for level in self._levels()]
            return torch.stack([self._loss(predictions, scaled, each, logits, memberships, extra) for each in targets])

    def enqueue(self, keys: Tensor) -> None:
        super().enqueue(keys)
        self.bank.enqueue(keys)

    @torch.no_grad()
    def after_update(self, now: Progress) -> None:
        """As MoCo; after the last step of an epoch the keys are clustered, for the next one."""
        super().after_update(now)
        done = now.step + 1
        if done % now.steps_per_epoch == 0 and self._first_step(now) <= done < now.steps:
            points = exact(self.bank.keys)
            for number, level in enumerate(levels := self._levels()):
                seed = (self.seed * 1_000_003 + now.step) * len(levels) + number
                owners = level.cluster(points, self.settings.iterations, seed, self.settings.temperature)
                if number:
                    levels[number - 1].parents.copy_(owners)
                points = exact(level.centroids)

    def _loss(
        self,
        predictions: Tensor,
        scaled: Tensor,
        target: Tensor,
        logits: Tensor,
        memberships: Sequence[Tensor],
        extra: Tensor | None,
    ) -> Tensor:
        """The loss of one positive: a scalar."""
        levels = self._levels()
        own = nearest(exact(target), levels[0].centroids)
        positive = (scaled * target).sum(dim=1)
        instances, prototypes = [], []
        for number, level in enumerate(levels):
            of_images, of_queue, of_centroids = (drawn[number] for drawn in self._draws)
            kept = keep(memberships[number], own, of_images, of_queue)
            self._kept.append(kept.mean())
            others = torch.logsumexp(logits * kept, dim=1)
            others = others if extra is None else torch.logaddexp(others, extra)
            instances.append((torch.logaddexp(positive, others) - positive).mean())
            found = predictions @ level.centroids.T / level.concentration
            if number < len(levels) - 1:
                above = levels[number + 1].memberships(level.centroids)
                kept = keep(above, level.parents[own], of_images, of_centroids[: len(level.centroids)])
                found = found * kept.scatter(1, own[:, None], 1.0)
            prototypes.append(F.cross_entropy(found, own))
            own = level.parents[own]
        return torch.stack(instances).sum() + torch.stack(prototypes).mean()

    def _first_step(self, now: Progress) -> int:
        """The first with clusters: the first of an epoch."""
        epochs = now.steps / now.steps_per_epoch
        return max(1, round(self.settings.warmup * epochs)) * now.steps_per_epoch

    def _drawn(self, images: Tensor, now: Progress) -> tuple[Tensor, ...]:
        """Uniform numbers, of each level a row: of this process's images, the keys of the queue and the centroids."""
        batch, keys, centroids = len(images), len(self.queue.keys), max(self.settings.clusters)

        def draw(now: Progress) -> Tensor:
            generator = step_generator(self.seed, now)
            return torch.rand(len(self.levels), keys + centroids + ranks() * batch, generator=generator)

        drawn = step_input(draw, now, images.device)
        mine = drawn[:, keys + centroids + rank() * batch :][:, :batch]
        return mine, drawn[:, :keys], drawn[:, keys:][:, :centroids]

    def _levels(self) -> list[Level]:
        return [cast(Level, level) for level in self.levels]


class Level(nn.Module):
    """The clusters of a level.

    Attributes:
        centroids: At length one, `(clusters, dim)`.
        concentration: Temperature of each.
        sizes: Members of each.
        parents: The cluster of the next level that each belongs to.
    """

    centroids: Tensor
    concentration: Tensor
    sizes: Tensor
    parents: Tensor

    def __init__(self, clusters: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("centroids", torch.zeros(clusters, dim))
        self.register_buffer("concentration", torch.ones(clusters))
        self.register_buffer("sizes", torch.zeros(clusters))
        self.register_buffer("parents", torch.zeros(clusters, dtype=torch.long))

    def cluster(self, points: Tensor, iterations: int, seed: int, temperature: float) -> Tensor:
        """Find the clusters of points, and return the number of each point's. Of several processes, which a GPU may
        give other last bits, all take the first one's."""
        centroids, owners = k_means(points, len(self.centroids), iterations, seed)
        centroids, owners = (gather(found)[: len(found)] for found in (centroids, owners))
        distances = (points - centroids[owners]).norm(dim=1)
        sizes = torch.bincount(owners, minlength=len(centroids)).to(points.dtype)
        means = torch.zeros_like(sizes).index_add_(0, owners, distances) / sizes.clamp_min(1)
        self.centroids.copy_(F.normalize(centroids, dim=1))
        self.concentration.copy_(concentration(means, sizes, temperature))
        self.sizes.copy_(sizes)
        return owners

    @torch.no_grad()
    def memberships(self, keys: Tensor) -> Tensor:
        """How far keys belong to each cluster, `(n, clusters)`, each row with the sum 1."""
        return F.softmax(keys @ self.centroids.T / self.concentration, dim=1)


def concentration(distances: Tensor, sizes: Tensor, temperature: float) -> Tensor:
    """The temperature of each cluster by the mean distance of its members; of at most one member, the largest."""
    found = torch.where(sizes > 1, distances / torch.log(sizes + 10), -math.inf)
    found = torch.where(sizes > 1, found, found.max()).clamp_min(0)
    low, high = torch.quantile(found, torch.tensor([0.1, 0.9], dtype=found.dtype, device=found.device))
    found = found.clamp(low, high)
    return (temperature * found / found.mean().clamp_min(1e-12)).clamp_min(_SMALLEST)


@torch.no_grad()
def keep(memberships: Tensor, own: Tensor, of_images: Tensor, of_others: Tensor) -> Tensor:
    """1 for each other key or centroid that stays a negative of an image, else 0, `(images, others)`.

    The uniform number of a pair is the sum of the numbers of its two sides, modulo 1: the draws for one image, or for
    one key, are independent of each other, and only images + others numbers are drawn.

    Args:
        memberships: Of the others, `(others, clusters)`.
        own: The cluster of each image.
    """
    uniform = (of_images[:, None] + of_others).remainder(1)
    return (uniform < 1 - memberships[:, own].T).to(memberships.dtype)
