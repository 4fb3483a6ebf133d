"""Fine-tune an encoder for a score, resuming or reusing earlier work."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from leoclr.cli.run.devices import check_backbone
from leoclr.cli.scoring.evaluation import Evaluation
from leoclr.cli.terminal import progress
from leoclr.datasets.shards.index import Index
from leoclr.evals.accuracy import IntArray, Predictions
from leoclr.evals.classes import Numbering, match_classes, own_classes
from leoclr.evals.finetuning.finetune import Diverged, FinetuningRecipe, finetune, network_predictions
from leoclr.evals.finetuning.supervised import Schedule
from leoclr.evals.scores import Predicted
from leoclr.evals.tables import METRICS

FINETUNED = "{}, fine-tuned from its weights"  # what of the encoder was scored
_PREDICTIONS = "predictions"
_MANY_IMAGES = 10_000
FEW_LABELS = 0.015  # up to this share the recipes are those for 1 % of the labels


def label_recipe(
    share: float, images: int, epochs: int | None, backbone_lr: float | None, head_lr: float | None, batch: int
) -> FinetuningRecipe:
    """How a share of the labels, of so many images, is learnt from: the paper's epochs (60 for 1 %, else 30), and
    otherwise SwAV's recipe (arXiv 2006.09882), which names learning rates for encoder and new layer.

    Its rate of 5 for the new layer is for the 12,811 images of ImageNet's 1 %. On a few hundred, in which an epoch has
    two steps, it ends at chance (CIFAR-10: 11 % instead of 37 %), so that there it is that of larger shares. What is
    not None replaces a part of the recipe.
    """
    few = share <= FEW_LABELS
    usual = (0.02 if few else 0.01, 5.0 if few and images >= _MANY_IMAGES else 0.2)
    return FinetuningRecipe(
        Schedule(epochs or (60 if few else 30), "steps", decay=0.2),
        backbone_lr=usual[0] if backbone_lr is None else backbone_lr,
        head_lr=usual[1] if head_lr is None else head_lr,
        batch_size=batch,
    )


class Finetuned(NamedTuple):
    """What one training came to.

    Attributes:
        summary: As JSON: top1, top5, mean_per_class, images, seconds, and which test images were skipped.
    """

    summary: dict[str, Any]
    predicted: Predicted

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the summary, and nothing else."""
        return {metric: self.summary[metric] for metric in METRICS if metric in self.summary}


def finetuned(
    evaluation: Evaluation,
    train: Index,
    test: Index,
    recipe: FinetuningRecipe,
    what: str,
) -> Finetuned:
    """Fine-tune on `train` and score on `test`, unless that is done. That images were skipped becomes a note.

    Args:
        what: Name of the training for the progress bar.

    Raises:
        Diverged: The training did.
        EvaluationError: Labels are missing, or `test` has a class that `train` does not have.
        RunError: The backbone cannot be trained on such images on this device.
    """
    numbers = match_classes(train, test)
    view = evaluation.encoder.view
    work = evaluation.work(
        train, test, kind="finetune", recipe=asdict(recipe), view=view.protocol, batches="all images"
    )
    done = work.result()
    if done is not None and "diverged" in done:
        raise Diverged(done["diverged"])
    if done is None:
        try:
            done = work.finish(_measured(evaluation, train, test, numbers, recipe, what, work.state))
        except Diverged as error:
            work.finish({"diverged": str(error)})
            raise
    tested = "test data" if test is evaluation.data.test else "hold-out"
    evaluation.note_skipped(done.get("skipped", []), len(test), tested)
    summary = {key: value for key, value in done.items() if key != _PREDICTIONS}
    # `train` may lack classes of all the training data, whose numbers predictions are written with.
    places = own_classes(evaluation.data.train)(train.occurring)
    return Finetuned(summary, _unpacked(done[_PREDICTIONS], numbers, places, test))


def _measured(
    evaluation: Evaluation,
    train: Index,
    test: Index,
    numbers: Numbering,
    recipe: FinetuningRecipe,
    what: str,
    state: Path | None,
) -> dict[str, Any]:
    began = time.monotonic()
    request, crops = evaluation.request, evaluation.crops(train, recipe.batch_size)
    check_backbone(evaluation.backbone, evaluation.encoder.image_size, request.precision, evaluation.device)
    options: dict[str, Any] = {
        "device": evaluation.device,
        "precision": request.precision,
        "workers": request.workers,
    }
    with progress(what, recipe.schedule.epochs * len(train), "images") as advance:
        network = finetune(
            evaluation.backbone,
            evaluation.encoder.backbone.feature_dim,
            crops,
            recipe,
            state=state,
            advance=advance,
            **options,
        )
    with progress(f"{what}: test", len(test), "images") as advance:
        found, outputs = network_predictions(
            network,
            test,
            numbers,
            evaluation.encoder.preprocessing,
            batch_size=request.batch_size,
            advance=advance,
            **options,
        )
    seconds = round(time.monotonic() - began, 3)
    metrics = found.accuracies() | {"mean_per_class": found.mean_per_class()}
    summary = {"images": len(train), "seconds": seconds, "skipped": list(outputs.skipped)}
    return metrics | summary | {_PREDICTIONS: _packed(Predicted(outputs.numbers, found))}


def _packed(predicted: Predicted) -> dict[str, Any]:
    """Predictions as JSON. The labels are those of the test data."""
    found = predicted.predictions
    return {
        "numbers": predicted.numbers.tolist(),
        "predicted": found.predicted.tolist(),
        "confidence": [round(value, 6) for value in found.confidence.tolist()],
        "ranks": found.ranks.tolist(),
        "class_count": found.class_count,
    }


def _unpacked(packed: dict[str, Any], numbers: Numbering, places: IntArray, test: Index) -> Predicted:
    samples = np.array(packed["numbers"], np.int64)
    found = Predictions(
        labels=places[numbers(test.label[samples])],
        predicted=places[np.array(packed["predicted"], np.int64)],
        confidence=np.array(packed["confidence"], np.float32),
        ranks=np.array(packed["ranks"], np.int64),
        class_count=packed["class_count"],
    )
    return Predicted(samples, found)
