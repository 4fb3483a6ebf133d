"""`leoclr eval linear`: a linear classifier on frozen features."""

from __future__ import annotations

from leoclr.cli.eval_options import AsJson, Normalise, Output, Request, with_request


@with_request()
def linear(
    request: Request,
    normalise: Normalise = "standard",
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Train logistic regression on the features; its regularisation is chosen on a part of the training data.

    \b
    Examples:
      leoclr eval linear
      leoclr eval linear runs/first --train-data shards/train --data shards/test
      leoclr eval linear encoder.safetensors --train-data shards/train --normalise l2 -o linear.json
    """
    from leoclr.cli.console import progress
    from leoclr.cli.evaluation import Evaluation
    from leoclr.evals.linear import GRID
    from leoclr.evals.preprocessing import standard_view
    from leoclr.evals.scores import linear_score

    evaluation = Evaluation(request)
    view = standard_view(evaluation.encoder.image_size)
    train, test = evaluation.train_features(view), evaluation.test_features(view)
    with progress("linear probe", len(GRID) + 1, "fits") as advance:
        score = linear_score(train, test, normalise=normalise, seed=request.seed, advance=advance)
    evaluation.report("linear", score, [f"images: {view.protocol}"], output, as_json)
