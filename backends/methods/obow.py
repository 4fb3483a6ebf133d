"""OBoW: predict which visual words a momentum teacher sees in the whole image.

arXiv 2012.11552. For each of some stages of a ResNet there is a vocabulary, a queue of the teacher's local features.
Squared distances d of a cell of the teacher's map to all words become an assignment, `softmax(-sharpness * d / mean)`,
where the mean is an average of the distances to the nearest word over past steps. The largest assignment to each word
over the cells, with the sum 1 over the words, is the image's bag of words. The student's pooled feature is multiplied
by weights that a generator makes of the words, and the loss is the Kullback-Leibler divergence of the softmax from the
bag: the mean over stages, and over views of one size; the sum over sizes. After the optimizer's step the teacher moves,
and each image gives the vocabulary one feature, the mean of 3 x 3 cells at a random place.

The teacher sees the side of the pairs that has fewer views: X with the `leoclr` and `obow` views, whose crops predict
the bag of X and never meet; the positives where both sides have as many. Deviations from the authors' code: the
mean distance is updated with a batch after that batch has used it; the rim of a map is left out only where 3 x 3 cells
remain; under `leoclr` X is augmented, where the authors' whole image is only flipped (the `obow` views are theirs).

Health, as shares of log(words), means over the stages: `bag_entropy`, of each image's bag, 1 if all words are assigned
alike; `batch_entropy`, of the mean bag of the batch. If the two are equal, all images have one bag.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from leoclr.backends.distributed import gather, rank, ranks
from leoclr.backends.losses import cross_entropy, exact
from leoclr.backends.method import Facts, Method, Output, Progress, momentum_copy, momentum_update, share_batch_norm
from leoclr.backends.networks.backbones import Backbone
from leoclr.backends.networks.encoder import Encoder
from leoclr.backends.networks.feature_maps import map_channels, recorded_maps
from leoclr.backends.networks.heads import mlp
from leoclr.backends.queue import KeyQueue
from leoclr.backends.schedules import cosine
from leoclr.backends.settings import (
    BatchNormSettings,
    Fraction,
    Pairs,
    Positive,
    PositiveCount,
    RunFacts,
    anchors_of,
    positives_of,
)
from leoclr.backends.step_inputs import step_generator, step_input, step_number

_DISTANCE = 0.5  # to the nearest word, before any was measured
_DISTANCE_MOMENTUM = 0.99
_IMAGES_AT_ONCE = 32  # whose cells are compared with all words: 150 MB for 144 cells and 8192 words


class Settings(BatchNormSettings):
    """OBoW: bags of visual words (`--backend obow`)."""

    default_views: ClassVar[str] = "obow"
    small: ClassVar[Mapping[str, Any]] = {"words": 12, "momentum": 0.9}

    stages: Annotated[tuple[Annotated[int, Field(ge=1, le=4)], ...], Field(min_length=1)] = Field(
        default=(3, 4), description="Stages of the ResNet whose feature maps have a vocabulary."
    )
    words: PositiveCount = Field(default=8192, description="Words of a vocabulary: the newest local features.")
    sharpness: Positive = Field(
        default=15.0, description="Sharpness of the assignment to words; 10 in the authors' ResNet-18 recipe."
    )
    scale: Positive = Field(default=8.0, description="Scale of the student's logits; 5 in the ResNet-18 recipe.")
    momentum: Fraction = Field(default=0.99, description="Initial EMA decay of the teacher.")
    final_momentum: Fraction = Field(
        default=1.0, description="Final EMA decay of the teacher, reached by a cosine schedule."
    )

    def forward_passes(self, facts: RunFacts) -> float:
        couples = students_and_teachers(facts.pairs)
        return facts.passes(anchors_of(couples), positives_of(couples))


class OBoW(Method):
    """The backend of visual words.

    Attributes:
        encoder: The student; its embedding is the backbone's feature.
        generators: From words to the weights of a stage's logits.
        teacher: The student's momentum copy.
        vocabularies: Of each stage.
    """

    def __init__(self, settings: Settings, facts: Facts) -> None:
        super().__init__()
        self.settings, self.seed, self.stages = settings, facts.seed, sorted(set(settings.stages))
        backbone = facts.new_backbone()
        channels, width = map_channels(backbone, self.stages, facts.image_size), backbone.feature_dim
        self.encoder = Encoder(backbone, nn.Identity(), normalise=False)
        self.generators = nn.ModuleList(mlp((each, 2 * width, width), norm=True) for each in channels)
        self.teacher = momentum_copy(self.encoder)
        self.vocabularies = nn.ModuleList(
            Vocabulary(settings.words, each, facts.seed + stage, settings.sharpness)
            for stage, each in zip(self.stages, channels, strict=True)
        )
        self.momentum = cosine(settings.momentum, settings.final_momentum)
        self._waiting: list[tuple[list[Tensor], Tensor]] = []
        for part in (self.encoder, self.teacher):  # the generators see words, which are the same in all processes
            share_batch_norm(part, settings, facts)

    def forward(self, views: Mapping[str, Tensor], pairs: Pairs, now: Progress) -> Output:
        couples = students_and_teachers(pairs)
        bags = self._bags({name: views[name] for name in positives_of(couples)}, now)
        features = {name: self.encoder(views[name]) for name in anchors_of(couples)}
        words = [F.normalize(vocabulary.keys, dim=1) for vocabulary in self._vocabularies()]
        weights = [generator(each) for generator, each in zip(self.generators, words, strict=True)]
        entropies = {name: [torch.special.entr(bag).sum(dim=1).mean() for bag in each] for name, each in bags.items()}
        by_size: dict[int, list[Tensor]] = {}
        for student, teacher in couples:
            targets = zip(weights, bags[teacher], entropies[teacher], strict=True)
            losses = [self._cross_entropy(features[student], each, bag) - entropy for each, bag, entropy in targets]
            by_size.setdefault(views[student].shape[-1], []).append(torch.stack(losses).mean())
        loss = torch.stack([torch.stack(same).mean() for same in by_size.values()]).sum()
        student, teacher = couples[0]
        return Output(loss, features[student].detach(), _health(bags[teacher], entropies[teacher]))

    @torch.no_grad()
    def after_update(self, now: Progress) -> None:
        device = next(self.parameters()).device
        momentum_update(self.teacher, self.encoder, step_number(self.momentum, now, device))
        for number, vocabulary in enumerate(self._vocabularies()):
            distances = torch.stack([distances[number] for _, distances in self._waiting]).mean(dim=0, keepdim=True)
            vocabulary.distance.lerp_(gather(distances).mean(), 1 - _DISTANCE_MOMENTUM)
            for words, _ in self._waiting:
                vocabulary.enqueue(gather(words[number]))
        self._waiting.clear()

    def backbones(self) -> dict[str, Backbone]:
        return {"encoder.backbone": self.encoder.backbone, "teacher.backbone": self.teacher.backbone}

    def _cross_entropy(self, features: Tensor, weights: Tensor, bag: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            logits = self.settings.scale * features @ F.normalize(exact(weights), dim=1).T
            return cross_entropy(bag, F.log_softmax(logits, dim=1))

    @torch.no_grad()
    def _bags(self, views: Mapping[str, Tensor], now: Progress) -> dict[str, list[Tensor]]:
        """The bags of each view, by stage. The first view also gives new words, which wait for the end of the step."""
        bags, distances = {}, []
        for name, images in views.items():
            with recorded_maps(self.teacher.backbone, self.stages) as passes:
                self.teacher.forward(images)  # not a compiled call, which would leave out the hooks
            maps = [within(each) for each in passes[0]]
            found = [vocabulary.bags(each) for vocabulary, each in zip(self._vocabularies(), maps, strict=True)]
            bags[name] = [bag for bag, _ in found]
            distances.append(torch.stack([distance for _, distance in found]))
            if len(bags) == 1:
                places = self._places(images, now)
                words = [local_features(each, place) for each, place in zip(maps, places, strict=True)]
        self._waiting.append((words, torch.stack(distances).mean(dim=0)))
        return bags

    def _places(self, images: Tensor, now: Progress) -> Tensor:
        """Where each image's new words are, as shares of the places of a map, `(stages, images)`."""
        batch = len(images)

        def draw(now: Progress) -> Tensor:
            generator = step_generator(self.seed, now)
            return torch.rand(len(self.stages), batch * ranks(), generator=generator)

        return step_input(draw, now, images.device)[:, rank() * batch :][:, :batch]

    def _vocabularies(self) -> list[Vocabulary]:
        return [cast(Vocabulary, each) for each in self.vocabularies]


class Vocabulary(KeyQueue):
    """The words of a stage, and how far a cell is from the nearest one.

    Attributes:
        distance: Squared, the average over past steps.
    """

    distance: Tensor

    def __init__(self, words: int, channels: int, seed: int, sharpness: float) -> None:
        super().__init__(words, channels, seed)
        self.keys.copy_(torch.randn(words, channels, generator=torch.Generator().manual_seed(seed)).clamp_min(0))
        self.register_buffer("distance", torch.tensor(_DISTANCE))
        self.sharpness = sharpness

    def bags(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Bags of maps `(n, channels, height, width)`, `(n, words)`, and the mean squared distance to the nearest word,
        in float32 or better."""
        bags, nearest = [], []
        with torch.autocast(maps.device.type, enabled=False):
            lengths = self.keys.square().sum(dim=1)
            for cells in torch.split(exact(maps).flatten(2).transpose(1, 2), _IMAGES_AT_ONCE):
                distances = cells.square().sum(dim=2, keepdim=True) + lengths - 2 * cells @ self.keys.T
                distances.clamp_min_(0)
                nearest.append(distances.amin(dim=2).mean(dim=1))
                codes = F.softmax(distances.mul_(-self.sharpness / self.distance), dim=2)
                bags.append(F.normalize(codes.amax(dim=1), p=1, dim=1))
        return torch.cat(bags), torch.cat(nearest).mean()


def students_and_teachers(pairs: Pairs) -> Pairs:
    """The pairs as (student's view, teacher's view)."""
    if len(positives_of(pairs)) > len(anchors_of(pairs)):
        return tuple((positive, anchor) for anchor, positive in pairs)
    return pairs


def within(maps: Tensor) -> Tensor:
    """Maps without their rim, whose cells see the padding; all of a map of less than 5 x 5 cells."""
    return maps[:, :, 1:-1, 1:-1] if min(maps.shape[2:]) >= 5 else maps


def local_features(maps: Tensor, place: Tensor) -> Tensor:
    """Of each map the mean of 3 x 3 cells, `(n, channels)`.

    Args:
        place: Share of the places where such a square fits, in [0, 1), `(n,)`.
    """
    means = F.avg_pool2d(exact(maps), [min(3, side) for side in maps.shape[2:]], stride=1).flatten(2)
    index = (place * means.shape[2]).long().clamp_max(means.shape[2] - 1)
    return means.gather(2, index[:, None, None].expand(-1, means.shape[1], 1)).squeeze(2)


@torch.no_grad()
def _health(bags: list[Tensor], entropies: list[Tensor]) -> dict[str, Tensor]:
    words = [math.log(max(2, bag.shape[1])) for bag in bags]
    of_batch = [torch.special.entr(bag.mean(dim=0)).sum() for bag in bags]

    def share(each: list[Tensor]) -> Tensor:
        return torch.stack([entropy / most for entropy, most in zip(each, words, strict=True)]).mean()

    return {"bag_entropy": share(entropies), "batch_entropy": share(of_batch)}
