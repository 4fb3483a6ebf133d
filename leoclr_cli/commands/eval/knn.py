"""`leoclr eval knn`: classify images by their nearest neighbours."""

from __future__ import annotations

from typing import Annotated

import typer

from leoclr.cli.scoring.request import (
    MEMORY,
    SIMILARITIES_PER_MIB,
    AsJson,
    Memory,
    Output,
    Outputs,
    PredictionsFile,
    Request,
    with_request,
)


@with_request()
def knn(
    request: Request,
    whiten: Annotated[
        bool,
        typer.Option(
            "--whiten", help="Give all directions of the features the same variance before neighbours are searched."
        ),
    ] = False,
    memory: Memory = MEMORY,
    output: Output = None,
    predictions: PredictionsFile = None,
    as_json: AsJson = False,
) -> None:
    """Classify test images by their nearest training images: k = 200 weighted, and k = 20 by majority.

    \b
    Examples:
      leoclr eval knn
      leoclr eval knn runs/first --train-data shards/train --data shards/test
      leoclr eval knn resnet18.pth --train-data 'shards/train-{000..009}.tar' --data shards/test --json
      leoclr eval knn runs/first --whiten -o whitened.json
    """
    from leoclr.cli.scoring.evaluation import Evaluation
    from leoclr.evals.scores import knn_score

    evaluation = Evaluation(request)
    view = evaluation.encoder.view
    train, test = evaluation.train_features(view), evaluation.test_features(view)
    score = knn_score(train, test, device=evaluation.device, chunk=memory * SIMILARITIES_PER_MIB, whiten=whiten)
    evaluation.report("knn", score, [f"images: {view.protocol}"], Outputs(output, predictions, as_json))
