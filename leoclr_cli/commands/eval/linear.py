"""`leoclr eval linear`: a linear classifier on the frozen encoder."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from leoclr.cli.commands.base.flags import refuse_without_effect
from leoclr.cli.scoring.request import (
    TRAIN_BATCH,
    AsJson,
    Normalise,
    Output,
    Outputs,
    PredictionsFile,
    Request,
    TrainBatch,
    with_request,
)
from leoclr.datasets.errors import EvaluationError

if TYPE_CHECKING:
    from leoclr.cli.scoring.evaluation import Evaluation
    from leoclr.evals.features.preprocessing import TestView
    from leoclr.evals.scores import Score

EPOCHS = 100
Protocol = Literal["scikit-learn", "lbfgs", "sgd"]


@with_request()
def linear(
    request: Request,
    protocol: Annotated[
        Protocol,
        typer.Option(
            "--protocol",
            help="scikit-learn: logistic regression on cached features; lbfgs: the same on the device, for millions of "
            "images; sgd: SGD on random crops, as in MoCo and the paper's Table 1.",
        ),
    ] = "scikit-learn",
    normalise: Normalise = "standard",
    epochs: Annotated[
        int, typer.Option("--epochs", min=1, metavar="N", help="Epochs of sgd; the rate falls after 60 % and 80 %.")
    ] = EPOCHS,
    lr: Annotated[
        list[float] | None,
        typer.Option(
            "--lr",
            metavar="RATE",
            help="Learning rate of sgd for a batch of 256; default: 30. Repeatable: all are trained at once, and "
            "held-out training data chooses.",
        ),
    ] = None,
    train_batch: TrainBatch = TRAIN_BATCH,
    output: Output = None,
    predictions: PredictionsFile = None,
    as_json: AsJson = False,
) -> None:
    """Train a linear classifier on the frozen encoder; hyper-parameters are chosen on held-out training data.

    \b
    Examples:
      leoclr eval linear
      leoclr eval linear runs/first --protocol sgd
      leoclr eval linear runs/first --protocol sgd --lr 3 --lr 10 --lr 30 --lr 100
      leoclr eval linear runs/first --train-data shards/train --data shards/test --protocol lbfgs
      leoclr eval linear encoder.safetensors --train-data shards/train --normalise l2 -o linear.json
    """
    from leoclr.cli.scoring.evaluation import Evaluation

    if protocol == "sgd":
        refuse_without_effect("with --protocol sgd", {"--normalise": normalise != "standard"})
    else:
        changed = {"--lr": bool(lr), "--epochs": epochs != EPOCHS, "--train-batch": train_batch != TRAIN_BATCH}
        refuse_without_effect("without --protocol sgd", changed)
    rates = sorted(set(lr or ()))
    if wrong := [rate for rate in rates if not 0 < rate < math.inf]:
        raise EvaluationError(f"--lr {wrong[0]:g}: a learning rate is a number above 0")
    evaluation = Evaluation(request)
    view = evaluation.encoder.view
    if protocol == "sgd":
        score = _by_sgd(evaluation, view, rates, epochs, train_batch)
    else:
        score = _on_features(evaluation, view, normalise, "device" if protocol == "lbfgs" else "scikit-learn")
    images = f"{'test ' if protocol == 'sgd' else ''}images: {view.protocol}"
    evaluation.report("linear", score, [images], Outputs(output, predictions, as_json))


def _on_features(
    evaluation: Evaluation,
    view: TestView,
    normalise: Literal["standard", "l2"],
    solver: Literal["scikit-learn", "device"],
) -> Score:
    from leoclr.cli.terminal import progress
    from leoclr.evals.probes.linear import GRID
    from leoclr.evals.scores import linear_score

    train, test = evaluation.train_features(view), evaluation.test_features(view)
    with progress("linear probe", len(GRID) + 1, "fits") as advance:
        return linear_score(
            train,
            test,
            normalise=normalise,
            seed=evaluation.request.seed,
            solver=solver,
            device=evaluation.device,
            advance=advance,
        )


def _by_sgd(evaluation: Evaluation, view: TestView, rates: list[float], epochs: int, batch: int) -> Score:
    from leoclr.cli.terminal import progress
    from leoclr.evals.classes import stratified_holdout
    from leoclr.evals.finetuning.supervised import Schedule
    from leoclr.evals.probes.linear import HOLDOUT_SHARE
    from leoclr.evals.probes.sgd import LEARNING_RATE, fit_sgd_probe
    from leoclr.evals.scores import sgd_score

    request, rates = evaluation.request, rates or [LEARNING_RATE]
    crops, schedule = evaluation.crops(evaluation.data.train, batch), Schedule(epochs)
    held = None
    if len(rates) > 1:
        _, numbers = stratified_holdout(crops.index.label, HOLDOUT_SHARE, request.seed)
        held = evaluation.holdout_features(crops.index, numbers, view)
    test = evaluation.test_features(view)
    work = evaluation.work(
        crops.index,
        evaluation.data.test,
        kind="linear-sgd",
        rates=rates,
        epochs=epochs,
        batch=batch,
        batches="all images",
    )
    with progress("linear probe", epochs * len(crops.index), "images") as advance:
        probe = fit_sgd_probe(
            evaluation.backbone,
            crops,
            evaluation.encoder.backbone.feature_dim,
            learning_rates=rates,
            held=held,
            schedule=schedule,
            device=evaluation.device,
            precision=request.precision,
            workers=request.workers,
            state=work.state,
            advance=advance,
        )
    return sgd_score(probe, test, crops, schedule)
