"""VICReg: invariance between views, variance of each dimension, no covariance between dimensions.

arXiv 2105.04906. The invariance term is the mean squared difference over the pairs of an image. Variance and covariance
are of each view by itself, over the batches of all processes. As in the authors' code the variance term is the mean
over the views, and the covariance term twice the mean over the views: the sum over the branches where there are two.
With the `leoclr` views X agrees with X1 and with X2, and these two are not compared; all three have a gradient. Health:
`std`, the mean over dimensions, rises to 1 or more; 0 is collapse.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from leoclr.backends.distributed import gather_with_gradient
from leoclr.backends.losses import exact
from leoclr.backends.method import Facts, Output, PairMethod, Progress, share_batch_norm
from leoclr.backends.networks.batchnorm import zero_last_norms
from leoclr.backends.networks.encoder import Encoder
from leoclr.backends.networks.heads import mlp
from leoclr.backends.settings import BatchNormSettings, NonNegative, Pairs, PositiveCount, RunFacts, undirected

_EPSILON = 1e-4  # of a variance, so that its root has a gradient at 0


class Settings(BatchNormSettings):
    """VICReg: invariance, variance and covariance (`--backend vicreg`)."""

    default_views: ClassVar[str] = "byol"
    offers: ClassVar[tuple[str, ...]] = ("pairs",)
    small: ClassVar[Mapping[str, Any]] = {"hidden": 32, "dim": 32}

    layers: PositiveCount = Field(default=3, description="Linear layers of the projector.")
    hidden: PositiveCount = Field(default=8192, description="Width of the projector's hidden layers.")
    dim: PositiveCount = Field(default=8192, description="Dimension of the embedding.")
    invariance: NonNegative = Field(default=25.0, description="Weight of the mean squared difference between views.")
    variance: NonNegative = Field(
        default=25.0, description="Weight of the variance term, the mean over views; the paper's sum is twice as large."
    )
    covariance: NonNegative = Field(default=1.0, description="Weight of the covariance term.")
    zero_init_residual: bool = Field(default=True, description="Initialise residual blocks as the identity.")

    def warnings(self, facts: RunFacts) -> Iterator[str]:
        if facts.accumulation > 1:
            yield f"with accumulation, VICReg's covariances are of micro-batches of {facts.micro} images"


def deviations(embeddings_ND: Tensor) -> Tensor:
    """The standard deviation of each dimension: `(D,)`; of one embedding 0, without a warning of torch's."""
    return (embeddings_ND.var(dim=0, correction=min(1, len(embeddings_ND) - 1)) + _EPSILON).sqrt()


def covariance(embeddings_ND: Tensor) -> Tensor:
    """The sum of the squared covariances of different dimensions, divided by their number D: a scalar."""
    centred_ND = embeddings_ND - embeddings_ND.mean(dim=0)
    matrix_DD = centred_ND.T @ centred_ND / max(1, len(centred_ND) - 1)
    return (matrix_DD.square().sum() - matrix_DD.diagonal().square().sum()) / len(matrix_DD)


class VICReg(PairMethod):
    """The variance-invariance-covariance backend."""

    def __init__(self, settings: Settings, facts: Facts) -> None:
        super().__init__()
        self.settings = settings
        backbone = facts.new_backbone()
        if settings.zero_init_residual:
            zero_last_norms(backbone)
        widths = (backbone.feature_dim, *[settings.hidden] * (settings.layers - 1), settings.dim)
        self.encoder = Encoder(backbone, mlp(widths, norm=True, last_bias=False), normalise=False)
        share_batch_norm(self, settings, facts)

    def forward(self, views: Mapping[str, Tensor], pairs: Pairs, now: Progress) -> Output:
        embeddings = {name: self.encoder(images) for name, images in views.items()}
        terms = self._terms(embeddings, undirected(pairs))
        metrics = {name: value.detach() for name, value in terms.items() if name != "flat"}
        return Output(self._total(terms), embeddings[pairs[0][0]].detach(), metrics, embeddings, embeddings)

    def pull(self, predictions: Tensor, targets: Sequence[Tensor], negatives: Tensor | None = None) -> Tensor:
        """All three terms, of each pair by itself."""
        pairs = ({"anchor": predictions, "positive": target} for target in targets)
        return torch.stack([self._total(self._terms(pair, (("anchor", "positive"),))) for pair in pairs])

    def reduce(self, losses: Tensor) -> Tensor:
        return losses.mean()

    def _terms(self, embeddings: Mapping[str, Tensor], pairs: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
        with torch.autocast(next(iter(embeddings.values())).device.type, enabled=False):
            all_ND = {name: gather_with_gradient(exact(each)) for name, each in embeddings.items()}
            unlike = torch.stack([F.mse_loss(all_ND[one], all_ND[other]) for one, other in pairs]).mean()
            spreads = [deviations(each) for each in all_ND.values()]
            flat = torch.stack([F.relu(1 - spread).mean() for spread in spreads]).mean()
            redundant = 2 * torch.stack([covariance(each) for each in all_ND.values()]).mean()
        return {"invariance": unlike, "std": torch.stack(spreads).mean(), "covariance": redundant, "flat": flat}

    def _total(self, terms: Mapping[str, Tensor]) -> Tensor:
        settings = self.settings
        pulled = settings.invariance * terms["invariance"]
        return pulled + settings.variance * terms["flat"] + settings.covariance * terms["covariance"]
