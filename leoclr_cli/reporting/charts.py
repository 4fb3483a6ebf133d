"""Charts of a report: training metrics, and accuracy over the share of labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from leoclr.cli.reporting.line_charts import Axis, Series, svg_line_chart
from leoclr.cli.reporting.markup import Html, element
from leoclr.cli.reporting.run_facts import ReportedRun
from leoclr.cli.reporting.score_tiles import checkpoint_name
from leoclr.cli.run.json_file import number, part
from leoclr.datasets.views import POLICIES

PERCENT: Callable[[float], str] = lambda value: f"{100 * value:.3g} %"  # noqa: E731
PLAIN: Callable[[float], str] = lambda value: f"{value:.4g}"  # noqa: E731
# Measure, title, how values are written, whether the axis begins at 0.
_CHARTS = (
    ("knn", "k-NN top-1 while training", PERCENT, False),
    ("lr", "Learning rate", PLAIN, True),
    ("embedding_std", "Spread of the embeddings (0: collapsed)", PLAIN, True),
    ("effective_rank", "Effective rank of the embeddings", PLAIN, True),
    ("images_per_second", "Images per second", PLAIN, True),
    ("waiting", "Share of the time spent waiting for data", PERCENT, True),
)
_LABELS = Axis("labels", " %", logarithmic=True)


@dataclass(frozen=True)
class LossKind:
    """What a loss is of. Losses of other kinds do not compare.

    Attributes:
        terms: How many terms, one for each pair of views, are summed; None where that is not known.
    """

    backend: str
    terms: int | None

    @property
    def label(self) -> str:
        """What the loss of one run is called."""
        return f"loss, sum of {self.terms} terms" if self.terms is not None and self.terms > 1 else "loss"


def loss_kind(run: ReportedRun) -> LossKind:
    """What the loss in a run's metrics is of."""
    backend = run.settings.get("backend", "?")
    reduction = run.settings.get(f"{backend}.reduction")
    policy = POLICIES.get(run.settings.get("views", ""))
    if reduction == "mean":
        return LossKind(backend, 1)
    return LossKind(backend, len(policy.pairs) if policy is not None and reduction == "sum" else None)


def training_charts(runs: Sequence[ReportedRun]) -> Html:
    """The measures over the epochs, all runs on one chart where they can be compared."""
    charts = _loss_charts(runs)
    for measure, title, show, zero in _CHARTS:
        series = [Series(run.name, colour, run.curves.get(measure, ())) for colour, run in enumerate(runs)]
        if any(one.points for one in series):
            charts.append(svg_line_chart(title, series, show, zero))
    return element("div", *charts, class_="charts") if charts else Html()


def label_chart(runs: Sequence[ReportedRun]) -> Html:
    """Top-1 over the share of the labels, of one curve of each run: of the newest checkpoint, with the most points."""
    series = []
    for colour, run in enumerate(runs):
        curves = {
            (checkpoint_name(record), len(points), str(record.get("date"))): points
            for record in run.records.values()
            if (points := _label_points(record))
        }
        if curves:
            series.append(Series(run.name, colour, curves[max(curves)]))
    if not series:
        return Html()
    return svg_line_chart(
        "Top-1 with a part of the labels, fine-tuned", series, PERCENT, x=_LABELS, class_="chart single"
    )


def _loss_charts(runs: Sequence[ReportedRun]) -> list[Html]:
    """One chart where all losses are of one kind; else one for each method, per term where the terms are known."""
    kinds = [loss_kind(run) for run in runs]
    told = [(colour, run, kind) for colour, (run, kind) in enumerate(zip(runs, kinds, strict=True))]
    told = [(colour, run, kind) for colour, run, kind in told if run.curves.get("loss")]
    if len({kind for _, _, kind in told}) <= 1:
        series = [Series(run.name, colour, run.curves["loss"]) for colour, run, _ in told]
        return [svg_line_chart(told[0][2].label.capitalize(), series, PLAIN)] if told else []
    charts = []
    for backend in dict.fromkeys(kind.backend for _, _, kind in told):
        mine = [one for one in told if one[2].backend == backend]
        if any(kind.terms is None for _, _, kind in mine):
            charts += [
                svg_line_chart(f"Loss of {run.name} ({backend})", [Series(run.name, colour, run.curves["loss"])], PLAIN)
                for colour, run, _ in mine
            ]
            continue
        series = [
            Series(run.name, colour, [(x, y / (kind.terms or 1)) for x, y in run.curves["loss"]])
            for colour, run, kind in mine
        ]
        charts.append(svg_line_chart(f"Loss per term, one for each pair of views ({backend})", series, PLAIN))
    return charts


def _label_points(record: dict[str, object]) -> list[tuple[float, float]]:
    """Share of the labels in per cent, and top-1; older records tell the share that was asked for alone."""
    if record.get("kind") != "label-curve":
        return []
    points = []
    for key in part(record, "results"):
        share = number(part(record, "details", "shares", key).get("labelled"))
        try:
            percent = 100 * share if share is not None else float(key.removesuffix("%"))
        except ValueError:
            continue
        top1 = number(part(record, "results", key).get("top1"))
        if top1 is not None and percent > 0:
            points.append((percent, top1))
    return sorted(points)
