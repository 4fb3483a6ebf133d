"""Fine-tune the whole network with labels, from the pre-trained encoder."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leoclr.datasets.errors import EvaluationError
from leoclr.datasets.files import ignore
from leoclr.datasets.shards.index import Index
from leoclr.evals.accuracy import Predictions, predictions
from leoclr.evals.classes import Numbering
from leoclr.evals.features.extract import Features, Precision, extract_features
from leoclr.evals.features.preprocessing import Preprocessing
from leoclr.evals.finetuning.labelled_crops import LabelledCrops
from leoclr.evals.finetuning.supervised import Schedule, linear_layer, train_classifier

MOMENTUM = 0.9
_STEPS_BETWEEN_CHECKS = 50


class Diverged(EvaluationError):
    """The loss, or what the network says of an image, is not finite any more."""


@dataclass(frozen=True)
class FinetuningRecipe:
    """How a network is fine-tuned.

    Attributes:
        backbone_lr, head_lr: Learning rates at the start, of the encoder and of the new layer.
        batch_size: The rates are for this batch; nothing is scaled.
        weight_decay: Of all parameters.
    """

    schedule: Schedule
    backbone_lr: float
    head_lr: float
    weight_decay: float = 0.0
    batch_size: int = 256

    @property
    def protocol(self) -> str:
        """The recipe in words."""
        return (
            f"fine-tuned by SGD, momentum {MOMENTUM:g}, batch of at most {self.batch_size}, learning rates "
            f"{self.backbone_lr:g} (encoder) and {self.head_lr:g} (new layer), weight decay {self.weight_decay:g}; "
            f"{self.schedule.protocol}; the last epoch counts"
        )


def finetune(
    backbone: nn.Module,
    feature_dim: int,
    crops: LabelledCrops,
    recipe: FinetuningRecipe,
    *,
    device: torch.device | str = "cpu",
    precision: Precision = "float32",
    workers: int = -1,
    state: Path | None = None,
    advance: Callable[[int], None] = ignore,
) -> nn.Module:
    """A copy of the backbone with a linear layer behind it, trained on the labels of `crops`.

    The new layer starts as that of the linear probe. BatchNorm learns and counts as in any
    training.

    Args:
        state: File that holds the network after each epoch, from which a stopped training resumes.
        advance: Called with the number of images done.

    Returns:
        A network from normalised images to scores of the classes, in evaluation mode, on `device`.

    Raises:
        Diverged: The loss is not finite.
    """
    device = torch.device(device)
    encoder, head = copy.deepcopy(backbone), linear_layer(feature_dim, crops.class_count, crops.seed)
    network = nn.Sequential(encoder, head).requires_grad_(True).train()
    network.to(device).to(memory_format=torch.channels_last)
    groups = [
        {"params": list(encoder.parameters()), "lr": recipe.backbone_lr},
        {"params": list(head.parameters()), "lr": recipe.head_lr},
    ]
    optimizer = torch.optim.SGD(groups, lr=recipe.head_lr, momentum=MOMENTUM, weight_decay=recipe.weight_decay)
    steps = 0

    def loss(images: Tensor, labels: Tensor, samples: Tensor) -> Tensor:
        nonlocal steps
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            scores = network(images)
        value = F.cross_entropy(scores.float(), labels)
        steps += 1
        if steps % _STEPS_BETWEEN_CHECKS == 0 and not torch.isfinite(value):  # each look makes a GPU wait
            raise _diverged(recipe)
        return value

    train_classifier(
        network, optimizer, loss, crops, recipe.schedule, device=device, workers=workers, state=state, advance=advance
    )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in network.state_dict().values()):
        raise _diverged(recipe)
    network.eval()
    return network


def network_predictions(
    network: nn.Module,
    index: Index,
    numbers: Numbering,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    precision: Precision = "float32",
    workers: int = -1,
    advance: Callable[[int], None] = ignore,
) -> tuple[Predictions, Features]:
    """The predictions of a network for labelled images, and the outputs they are made from, which name the images that
    could not be decoded and are left out.

    Args:
        numbers: The network's class numbers for the labels of the index.

    Raises:
        Diverged: Some of the network's outputs are not finite.
    """
    outputs = extract_features(
        network,
        index,
        preprocessing,
        batch_size=batch_size,
        device=device,
        precision=precision,
        workers=workers,
        advance=advance,
    )
    if not np.isfinite(outputs.features).all():
        raise Diverged("the fine-tuned network's outputs are not finite; lower learning rates may help")
    return predictions(torch.from_numpy(outputs.features), torch.from_numpy(numbers(outputs.labels))), outputs


def _diverged(recipe: FinetuningRecipe) -> Diverged:
    return Diverged(
        f"fine-tuning diverged at learning rates {recipe.backbone_lr:g} (encoder) and {recipe.head_lr:g} (new layer); "
        "give lower ones"
    )
