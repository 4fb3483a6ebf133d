"""Transfer to another data set: hyper-parameter search on part of its training data, then training on all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from leoclr.cli.scoring.evaluation import Evaluation
from leoclr.cli.scoring.finetuning import finetuned
from leoclr.cli.terminal import progress, say
from leoclr.evals.classes import stratified_holdout
from leoclr.evals.finetuning.finetune import Diverged, FinetuningRecipe
from leoclr.evals.finetuning.hyperparameters import REGULARISATIONS, STEPS, GridPoint, best, edges
from leoclr.evals.finetuning.supervised import Schedule
from leoclr.evals.probes.linear import HOLDOUT_SHARE, solver_of
from leoclr.evals.scores import Row, Score, linear_score
from leoclr.evals.tables import METRICS


def by_finetuning(
    evaluation: Evaluation, name: str, metric: str, points: Sequence[GridPoint], epochs: int | None, batch: int
) -> Score:
    """Fine-tune at every point of a grid on four fifths of the training data, choose on the fifth that is left, and
    fine-tune on all of it.

    Args:
        name: Of the data set.
        metric: Key of what chooses.
        epochs: Of each training; None takes those of 20,000 steps on all of the training data.

    Raises:
        EvaluationError: All points diverged.
    """
    train, test = evaluation.data.train, evaluation.data.test
    crops = evaluation.crops(train, batch)
    steps = crops.plan.steps_per_epoch
    schedule = Schedule(epochs or -(-STEPS // steps), "cosine")
    parts = stratified_holdout(train.label, HOLDOUT_SHARE, evaluation.request.seed)
    kept, held = (train.subset(part) for part in parts)
    found: dict[GridPoint, float | None] = {}
    for number, point in enumerate(points):
        what = f"search {number + 1} of {len(points)}"
        try:
            found[point] = finetuned(evaluation, kept, held, _recipe(point, schedule, batch), what).summary[metric]
        except Diverged:
            found[point] = None
        accuracy = found[point]
        say(f"{what}: {point}: {'diverged' if accuracy is None else f'{100 * accuracy:.2f} %'}")
    chosen = best(found)
    recipe = _recipe(chosen, schedule, batch)
    final = finetuned(evaluation, train, test, recipe, "fine-tuning on all training data")
    rows = (
        Row("finetuned", f"{name} test, fine-tuned", final.metrics),
        Row("holdout", "hold-out of the training data", {metric: found[chosen] or 0.0}),
    )
    protocol = (
        _reported(metric),
        f"hyper-parameters out of {len(points)} on a grid, by the reported accuracy on a stratified "
        f"{HOLDOUT_SHARE:.0%} of the training data (seed {evaluation.request.seed}); then trained on all of it",
        recipe.protocol,
        f"training images: {crops.protocol}; {crops.batches_protocol}",
    )
    details = {
        "data_set": name,
        "metric": metric,
        "learning_rate": chosen.learning_rate,
        "weight_decay": chosen.weight_decay,
        "grid": [
            {"learning_rate": point.learning_rate, "weight_decay": point.weight_decay, metric: value}
            for point, value in found.items()
        ],
        "training": final.summary,
    }
    return Score(rows, protocol, details, edges(chosen, points), {"finetuned": final.predicted})


def by_linear_probe(evaluation: Evaluation, name: str, metric: str) -> Score:
    """Logistic regression on the features, with a wide grid of regularisations; on a GPU where there is one."""
    view = evaluation.encoder.view
    train, test = evaluation.train_features(view), evaluation.test_features(view)
    with progress("linear probe", len(REGULARISATIONS) + 1, "fits") as advance:
        score = linear_score(
            train,
            test,
            grid=REGULARISATIONS,
            metric="mean_per_class" if metric == "mean_per_class" else "top1",
            seed=evaluation.request.seed,
            solver=solver_of(evaluation.device),
            device=evaluation.device,
            per_class=True,
            advance=advance,
        )
    rows = (replace(score.rows[0], label=f"{name} test, {score.rows[0].label}"), *score.rows[1:])
    details = score.details | {"data_set": name, "metric": metric}
    return replace(score, rows=rows, protocol=(_reported(metric), *score.protocol), details=details)


def _reported(metric: str) -> str:
    return f"reported with: {METRICS[metric].removesuffix(' %')} accuracy"


def _recipe(point: GridPoint, schedule: Schedule, batch: int) -> FinetuningRecipe:
    rate = point.learning_rate
    return FinetuningRecipe(
        schedule, backbone_lr=rate, head_lr=rate, weight_decay=point.decay_for_sgd, batch_size=batch
    )
