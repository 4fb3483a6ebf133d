"""The linear probe of the paper's Table 1 (MoCo's protocol): a linear layer trained by SGD on random crops.

Any number of learning rates is tried over one pass of the frozen backbone: every batch goes through it once, and a
linear layer for each rate learns from its features. Where there are several, each rate has a second layer that never
sees the held-out part of the training set; how that layer does there chooses the rate, and the first one is reported.
The layers do not touch each other, so each ends with the weights that it would have alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leoclr.backends.networks.evaluation_mode import evaluation_mode
from leoclr.backends.weights import weights_digest
from leoclr.datasets.errors import EvaluationError
from leoclr.datasets.files import ignore
from leoclr.evals.accuracy import FloatArray, predictions
from leoclr.evals.classes import own_classes
from leoclr.evals.features.extract import Features, Precision
from leoclr.evals.finetuning.labelled_crops import LabelledCrops
from leoclr.evals.finetuning.supervised import Schedule, linear_layer, train_classifier

LEARNING_RATE = 30.0
MOMENTUM = 0.9
SCHEDULE = Schedule(epochs=100, kind="steps", decay=0.1)


@dataclass(frozen=True)
class SgdProbe:
    """A trained linear layer.

    Attributes:
        weight, bias: Shapes `(C, D)` and `(C,)`.
        learning_rate: The chosen one.
        holdout: Accuracy in [0, 1] on the held-out part of the training set by learning rate, 0 where the training
            diverged; empty where there was nothing to choose.
    """

    weight: FloatArray
    bias: FloatArray
    learning_rate: float
    holdout: dict[float, float]

    def scores(self, features: FloatArray) -> FloatArray:
        """Of every class, shape `(M, C)`; the highest is the prediction."""
        scores: FloatArray = features @ self.weight.T + self.bias
        return scores


def fit_sgd_probe(
    backbone: nn.Module,
    crops: LabelledCrops,
    feature_dim: int,
    *,
    learning_rates: Sequence[float] = (LEARNING_RATE,),
    held: Features | None = None,
    schedule: Schedule = SCHEDULE,
    device: torch.device | str = "cpu",
    precision: Precision = "float32",
    workers: int = -1,
    state: Path | None = None,
    advance: Callable[[int], None] = ignore,
) -> SgdProbe:
    """Train the probe; after the last epoch it is done.

    Args:
        backbone: On `device`; it is left as it is, and that is checked.
        crops: Of the whole training set.
        feature_dim: D, of the features.
        held: Features, in the view of the test, of the samples of the training set that choose the learning rate;
            their `numbers` are those in `crops.index`. Needed where there are several rates.
        precision: Of the backbone; the linear layers compute in float32.
        state: File that holds the layers after each epoch, from which a stopped training resumes.
        advance: Called with the number of images done.

    Raises:
        EvaluationError: The weights or buffers of the backbone changed, or all learning rates diverged.
    """
    rates = sorted(set(learning_rates))
    assert rates and (held is not None or len(rates) == 1)
    device = torch.device(device)
    searching = len(rates) > 1
    count = len(rates) * (2 if searching else 1)
    heads = nn.ModuleList(linear_layer(feature_dim, crops.class_count, crops.seed) for _ in range(count))
    heads.to(device)
    groups = [{"params": list(h.parameters()), "lr": rate} for h, rate in zip(heads, rates * 2, strict=False)]
    optimizer = torch.optim.SGD(groups, lr=rates[0], momentum=MOMENTUM)
    kept = torch.ones(len(crops.index), device=device)
    if held is not None:
        kept[torch.from_numpy(held.numbers).to(device)] = 0

    def loss(images: Tensor, labels: Tensor, samples: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            features = backbone(images)
        features, weight = features.float(), kept[samples]
        terms = [F.cross_entropy(head(features), labels) for head in list(heads)[: len(rates)]]
        for head in list(heads)[len(rates) :]:  # the mean over the samples that are not held out
            losses = F.cross_entropy(head(features), labels, reduction="none")
            terms.append((losses * weight).sum() / weight.sum().clamp(min=1))
        return torch.stack(terms).sum()

    with unchanged(backbone):
        train_classifier(
            heads, optimizer, loss, crops, schedule, device=device, workers=workers, state=state, advance=advance
        )
    layers = [_layer(head) for head in heads]
    holdout = {}
    if held is not None and searching:
        held = replace(held, labels=own_classes(crops.index)(held.labels))
        holdout = {rate: _accuracy(layer, held) for rate, layer in zip(rates, layers[len(rates) :], strict=True)}
    usable = [rate for rate, layer in zip(rates, layers, strict=False) if _finite(layer)]
    if not usable:
        shown = ", ".join(f"{rate:g}" for rate in rates)
        raise EvaluationError(f"the linear probe diverged at every learning rate ({shown}); give lower ones with --lr")
    best = max(usable, key=lambda rate: (holdout.get(rate, 0.0), -rate))
    weight, bias = layers[rates.index(best)]
    return SgdProbe(weight, bias, best, holdout)


@contextmanager
def unchanged(backbone: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every part has the mode that it had.

    Raises:
        EvaluationError: Weights or buffers are not the same bits as before.
    """
    before = weights_digest(backbone.state_dict())
    with evaluation_mode(backbone):
        yield
    if weights_digest(backbone.state_dict()) != before:
        raise EvaluationError(
            "the encoder's weights or buffers changed while the classifier was trained, so the score would not be one "
            "of a frozen encoder"
        )


def _layer(head: nn.Module) -> tuple[FloatArray, FloatArray]:
    assert isinstance(head, nn.Linear)
    return head.weight.detach().cpu().numpy(), head.bias.detach().cpu().numpy()


def _finite(layer: tuple[FloatArray, FloatArray]) -> bool:
    return all(bool(np.isfinite(array).all()) for array in layer)


def _accuracy(layer: tuple[FloatArray, FloatArray], held: Features) -> float:
    if not _finite(layer):
        return 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # of a training that is about to diverge
        scores = held.features @ layer[0].T + layer[1]
    if not np.isfinite(scores).all():
        return 0.0
    return predictions(torch.from_numpy(scores), torch.from_numpy(held.labels)).accuracies()["top1"]
