"""Base classes and types of method settings. Imports pydantic only, so that `--help` does not load torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

Fraction = Annotated[FiniteFloat, Field(ge=0, le=1)]
Positive = Annotated[FiniteFloat, Field(gt=0)]
PositiveFraction = Annotated[FiniteFloat, Field(gt=0, le=1)]
NonNegative = Annotated[FiniteFloat, Field(ge=0)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
PositiveCount = Annotated[int, Field(ge=1, lt=2**63)]

Pairs = tuple[tuple[str, str], ...]
STANDARD_WIDTH = 64  # channels of the first stage of a ResNet, as the libraries have them
PROJECTOR = ("encoder.projector_layers", "encoder.projector_hidden", "encoder.projector_dim")

# What a wrapper may need of the method it wraps, by the word in `MethodSettings.offers`.
NEEDS: Mapping[str, str] = {
    "pairs": "a loss of pairs, an anchor's prediction and its target",
    "similarities": "a distribution over keys",
}


class Strict(BaseModel):
    """A frozen model that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


class RunFacts(NamedTuple):
    """What the settings of a method are checked against.

    Attributes:
        views, pairs: Those of the view policy: names of the views, and (anchor, positive) names.
        images: Images in the data set.
        micro: Images that a process encodes at a time.
        ranks: Processes that train together.
        accumulation: Micro-batches in a step.
        areas: Pixels of a view as a share of those at `data.image_size`; 1 where a view is not named.
    """

    views: tuple[str, ...]
    pairs: Pairs
    images: int
    micro: int
    ranks: int = 1
    accumulation: int = 1
    areas: Mapping[str, float] = MappingProxyType({})

    def passes(self, trained: Iterable[str], others: Iterable[str] = ()) -> float:
        """Forward passes of the encoder over these views of one image, in passes over a view of full size.

        Args:
            trained: Views with a gradient: three each, as a backward pass counts as two.
            others: Views without one.
        """
        area = self.areas.get
        return 3 * sum(area(name, 1.0) for name in trained) + sum(area(name, 1.0) for name in others)


class MethodSettings(Strict):
    """Settings of a method: a subclass named `Settings` in the method's file becomes the section of the method's name.

    Attributes:
        default_views: The view policy where `--views` does not say another.
        needs_pairs: Whether views without pairs are refused; False for a method that predicts something else, such as
            how an image was turned.
        ignores: Settings that have no effect under this method, such as `encoder.projector_hidden`.
        offers: What view policies with a wrapper may need (`NEEDS` in this file names them).
        small: Values with which `leoclr method check` trains it in seconds: few units, a short queue. Names with a dot
            are other settings, of the encoder, the optimizer or the size of images:
            `{"encoder.backbone": "timm:vit_tiny_patch16_224", "data.image_size": 32}`.
    """

    default_views: ClassVar[str] = "pairwise"
    needs_pairs: ClassVar[bool] = True
    ignores: ClassVar[tuple[str, ...]] = ()
    offers: ClassVar[tuple[str, ...]] = ()
    small: ClassVar[Mapping[str, Any]] = {}

    def problems(self, facts: RunFacts) -> Iterator[str]:
        """Why such a run is refused, a line for each reason, with what would be right."""
        return iter(())

    def warnings(self, facts: RunFacts) -> Iterator[str]:
        """What would work, but perhaps not as it was meant."""
        return iter(())

    def forward_passes(self, facts: RunFacts) -> float:
        """Forward passes of the encoder for an image in a step, as `RunFacts.passes` counts them."""
        return facts.passes(facts.views)

    def chance(self, facts: RunFacts) -> float | None:
        """The loss of embeddings that are all alike, if there is such a figure. A run that stays there has learnt
        nothing."""
        return None

    def batch_norm_groups(self, facts: RunFacts, on_gpus: bool) -> int:
        """Parts of a step's images that BatchNorm normalises apart from each other, in networks that have it."""
        synchronised = on_gpus and getattr(self, "sync_batchnorm", False)
        return (1 if synchronised else facts.ranks) * facts.accumulation


class BatchNormSettings(MethodSettings):
    """Of a method with BatchNorm behind its linear layers, whose projector has settings of its own."""

    ignores: ClassVar[tuple[str, ...]] = PROJECTOR

    sync_batchnorm: bool = Field(default=True, description="BatchNorm statistics over all GPUs (CUDA only).")

    def problems(self, facts: RunFacts) -> Iterator[str]:
        if facts.micro < 2:
            yield "BatchNorm behind the linear layers needs at least two images in each process and micro-batch"


def anchors_of(pairs: Pairs) -> list[str]:
    """The views that are anchors, each once, in order."""
    return list(dict.fromkeys(anchor for anchor, _ in pairs))


def anchors_first(views: Iterable[str], pairs: Pairs) -> list[str]:
    """The order in which one encoder takes views with a gradient (anchors) and without.

    Autocast keeps the casts of weights that a forward pass made. Those made without a gradient would serve the anchors
    as well, whose gradient would end there (PyTorch's issue 112583).
    """
    anchors = anchors_of(pairs)
    return sorted(views, key=lambda name: name not in anchors)


def positives_of(pairs: Pairs) -> list[str]:
    """The views that are positives, each once, in order."""
    return list(dict.fromkeys(positive for _, positive in pairs))


def undirected(pairs: Pairs) -> list[tuple[str, str]]:
    """The pairs, those that differ in direction alone once."""
    return list({frozenset(pair): pair for pair in reversed(pairs)}.values())[::-1]
