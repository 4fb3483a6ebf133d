"""Gain on new data and loss on old data after further training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from leoclr.cli.run.folder import find_checkpoint
from leoclr.cli.scoring.comparisons import compared
from leoclr.cli.scoring.evaluation import Evaluation
from leoclr.cli.scoring.records import FORMAT, Record, kept, show
from leoclr.cli.scoring.request import MEMORY, SIMILARITIES_PER_MIB, Request
from leoclr.cli.terminal import say
from leoclr.datasets.wording import aligned
from leoclr.evals.mcnemar import Comparison
from leoclr.evals.probes.linear import solver_of
from leoclr.evals.scores import Score, knn_score, linear_score

Probe = Literal["knn", "linear"]
_ORDER = ("before", "after")


@dataclass(frozen=True)
class Data:
    """Labelled data for a score: for the classifier, and for the test (looked for beside it where it is empty)."""

    train: Sequence[str]
    test: Sequence[str]


def forgetting(
    request: Request, before: Path, after: Path, data: Mapping[str, Data], probe: Probe, output: Path, as_json: bool
) -> None:
    """Score two encoders on each data set, set them beside each other and compare them image by image.

    Args:
        data: By name, the new data first.
        output: File for the records and the comparison.

    Raises:
        LeoclrError: Encoders, data or labels are unusable; what can be is refused before the first score.
    """
    for checkpoint in (before, after):
        find_checkpoint(checkpoint)
    scores, notes = dict[str, Record](), list[str]()
    tests: dict[str, dict[str, Any]] = {}
    for name, where in data.items():
        found: list[Score] = []
        for when, checkpoint in zip(_ORDER, (before, after), strict=True):
            say(f"{name} data, {when}: {checkpoint}")
            own = replace(request, checkpoint=checkpoint, train_data=[*where.train], data=[*where.test] or None)
            evaluation = Evaluation(own)
            score, images = _score(evaluation, probe)
            record = evaluation.record(probe, score, images)
            notes += [f"{name} data, {when}: {note}" for note in record["notes"]]
            found.append(score)
            scores[f"{name}, {when}"] = record
        tests[name] = _compared(found)
    together = {
        "format": FORMAT,
        "kind": "forgetting",
        "scores": scores,
        "changes": tests,  # after less before
        "notes": notes,
        "seed": request.seed,
    }
    with kept(together, output):
        show(together, as_json, _text)


def _score(evaluation: Evaluation, probe: Probe) -> tuple[Score, list[str]]:
    view = evaluation.encoder.view
    train, test = evaluation.train_features(view), evaluation.test_features(view)
    if probe == "knn":
        score = knn_score(train, test, device=evaluation.device, chunk=MEMORY * SIMILARITIES_PER_MIB)
    else:
        device, seed = evaluation.device, evaluation.request.seed
        score = linear_score(train, test, seed=seed, solver=solver_of(device), device=device)
    return score, [f"images: {view.protocol}"]


def _compared(found: Sequence[Score]) -> dict[str, Any]:
    """After with before, by the first classifier of the probe; the test images are the same."""
    before, after = found
    classifier = next(iter(before.predictions))
    (pair,) = compared({"after": after.predictions, "before": before.predictions}, [classifier])
    test: dict[str, Any] = pair["tests"][classifier]
    return test


def _text(together: Mapping[str, Any]) -> str:
    return "\n".join(_lines(together))


def _lines(together: Mapping[str, Any]) -> Iterator[str]:
    rows = [["top-1 %", *_ORDER, "change"]]
    for name, test in together["changes"].items():
        figures = [_first(together["scores"][f"{name}, {when}"]) for when in _ORDER]
        change = f"{100 * test['difference']:+.2f} +/- {100 * test['half_width']:.2f}"
        rows.append([f"{name} data", *(f"{100 * figure:.2f}" for figure in figures), change])
    yield aligned(rows)
    yield ""
    for name, test in together["changes"].items():
        yield f"{name} data, after less before: {Comparison(**test)}"
    yield ""
    for name in together["changes"]:
        yield from (f"{name} data: {line}" for line in together["scores"][f"{name}, after"]["protocol"])


def _first(record: Mapping[str, Any]) -> float:
    return float(next(iter(record["results"].values()))["top1"])
