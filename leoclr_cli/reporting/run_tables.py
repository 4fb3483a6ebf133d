"""Tables of a report: settings, scores, environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leoclr.cli.config.fields import plugin_sections
from leoclr.cli.reporting.markup import Html, element, join, table
from leoclr.cli.reporting.run_facts import ReportedRun, flat
from leoclr.cli.run.json_file import lines_of, number, part
from leoclr.evals.tables import HALF_WIDTHS, METRICS

_METRICS = METRICS | {"ap50": "AP50 %", "ap": "AP %", "ap75": "AP75 %"}


def chip(colour: int, name: str) -> Html:
    """A run's name with its colour."""
    return element("span", element("i", class_=f"swatch bg{colour}"), name, class_="chip")


def has_effect(key: str, settings: Mapping[str, str]) -> bool:
    """Whether a setting is of all runs, or of the run's own method or views: older records hold those of others too."""
    own = {settings.get(choice, "").strip('"').replace("-", "_") for choice in ("backend", "views")}
    section = key.partition(".")[0]
    return section in own or section not in plugin_sections()


def settings_tables(runs: Sequence[ReportedRun], defaults: Mapping[str, str]) -> Html:
    """What differs, between the runs or from the defaults, for all to see; everything, folded away."""
    keys = list(dict.fromkeys(key for run in runs for key in run.settings if has_effect(key, run.settings)))
    if len(runs) > 1:
        told = [key for key in keys if len({run.settings.get(key) for run in runs}) > 1]
        heading = "What differs between the runs"
        empty = "Nothing: the runs have the same settings."
    else:
        told = [key for key in keys if key in defaults and runs[0].settings[key] != defaults[key]]
        heading, empty = "What is not as by default", "Nothing: every setting has its default."
    headings: list[object] = ["setting", *(chip(colour, run.name) for colour, run in enumerate(runs)), "default"]

    def rows(wanted: Sequence[str]) -> list[list[object]]:
        return [
            [element("code", key), *(_setting(run, key) for run in runs), element("code", defaults.get(key, "-"))]
            for key in wanted
        ]

    first = table(headings, rows(told), class_="differs") if told else element("p", empty, class_="quiet")
    folded = element("details", element("summary", f"All {len(keys)} settings"), table(headings, rows(keys)))
    return join(element("h3", heading), first, folded)


def score_tables(runs: Sequence[ReportedRun]) -> Html:
    """One table for each kind of score, the protocols below it."""
    kinds = sorted({record["kind"] for run in runs for record in run.records.values()})
    parts = []
    for kind in kinds:
        found = [
            (colour, run, record)
            for colour, run in enumerate(runs)
            for record in run.records.values()
            if record["kind"] == kind
        ]
        parts.append(element("div", element("h3", kind), _scores(found), _protocols(found), class_="card"))
    return join(*parts)


def environment_table(runs: Sequence[ReportedRun], digests: Sequence[str | None]) -> Html:
    """Where and with what the runs were made, and the digests that tell data and weights from others."""
    columns: list[dict[str, str]] = []
    for run, digest in zip(runs, digests, strict=True):
        told = {"started": _text(run.content.get("started")), "command": _command(run.content.get("command"))}
        told |= dict(flat(run.part("environment"))) | dict(flat(run.part("versions")))
        data = run.part("data")
        told |= {
            f"{split} data": _text(data.get(name)) for split, name in (("training", "train"), ("validation", "val"))
        }
        told |= {"training images": _text(data.get("samples")), "data digest": _text(data.get("digest"))}
        told["weights digest"] = digest or "-"
        columns.append(told)
    keys = list(dict.fromkeys(key for told in columns for key in told))
    rows: list[list[object]] = [[key, *(element("code", told.get(key, "-")) for told in columns)] for key in keys]
    return table(["", *(chip(colour, run.name) for colour, run in enumerate(runs))], rows)


def _setting(run: ReportedRun, key: str) -> Html:
    return element("code", run.settings.get(key, "-"))


def _scores(found: Sequence[tuple[int, ReportedRun, dict[str, Any]]]) -> Html:
    metrics = list(
        dict.fromkeys(
            metric
            for _, _, record in found
            for values in _results(record).values()
            for metric in values
            if not metric.endswith(tuple(HALF_WIDTHS))
        )
    )
    keys = dict.fromkeys(key for _, _, record in found for key in _results(record))
    protocols = _numbered(found)
    rows: list[list[object]] = []
    for key in keys:  # the runs below each other, figure by figure
        for colour, run, record in found:
            if values := _results(record).get(key):
                cells = [percent(values, metric) for metric in metrics]
                place = protocols[_protocol(run, record)]
                which = f", protocol {place}" if len(protocols) > 1 else ""
                rows.append([chip(colour, run.name), f"{_label(record, key)}{_weights(run, record)}{which}", *cells])
    return table(["run", "", *(_METRICS.get(metric, metric) for metric in metrics)], rows, class_="scores")


def _label(record: Mapping[str, Any], key: str) -> str:
    """What the table of the score calls a row; older records have its key alone."""
    return str(part(record, "rows").get(key, key.replace("_", " ")))


def _weights(run: ReportedRun, record: Mapping[str, Any]) -> str:
    """Which weights were scored, where a run's scores are of several checkpoints."""
    digests = {digest for one in run.records.values() if (digest := _digest(one)) != "-"}
    return f", weights {_digest(record)}" if len(digests) > 1 else ""


def _digest(record: Mapping[str, Any]) -> str:
    return _text(part(record, "checkpoint").get("digest"))[:8]


def _results(record: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    return {
        key: {name: found for name, value in values.items() if (found := number(value)) is not None}
        for key, values in part(record, "results").items()
        if isinstance(values, dict)
    }


def percent(values: Mapping[str, Any], metric: str) -> str:
    """A result in per cent with its intervals, such as "75.00 ± 2.10 (images)"; "" where it is none."""
    value = number(values.get(metric))
    if value is None:
        return ""
    if not -1 <= value <= 1:
        return f"{value:g}"
    halves = {over: number(values.get(f"{metric}_{name}")) for name, over in HALF_WIDTHS.items()}
    intervals = [f"± {100 * half:.2f} ({over})" for over, half in halves.items() if half is not None]
    return " ".join([f"{100 * value:.2f}", *intervals])


def _protocols(found: Sequence[tuple[int, ReportedRun, dict[str, Any]]]) -> Html:
    """Each protocol once. More than one is pointed out: figures under different protocols are not for comparison."""
    protocols: dict[tuple[str, ...], list[Html]] = {}
    notes = []
    for colour, run, record in found:
        protocols.setdefault(_protocol(run, record), []).append(chip(colour, run.name))
        notes += [element("p", f"{run.name}: {line}", class_="notice") for line in lines_of(record.get("notes"))]
    if len(protocols) > 1:
        notes.append(
            element(
                "p",
                "Protocol, test data or checkpoint differ between these figures; compare them with care.",
                class_="notice",
            )
        )
    folded = [
        element(
            "div",
            element("b", f"protocol {place} ") if len(protocols) > 1 else Html(),
            *chips,
            element("ul", *(element("li", line) for line in lines)),
        )
        for place, (lines, chips) in enumerate(protocols.items(), start=1)
    ]
    return join(*notes, element("details", element("summary", "Protocol"), *folded))


def _protocol(run: ReportedRun, record: Mapping[str, Any]) -> tuple[str, ...]:
    digest = _text(part(record, "data", "test").get("digest"))[:12]
    seed = f"seed {_text(record.get('seed'))}, test data {digest}{_weights(run, record)}"
    return (*lines_of(record.get("protocol")), seed)


def _numbered(found: Sequence[tuple[int, ReportedRun, dict[str, Any]]]) -> dict[tuple[str, ...], int]:
    """The protocols of a kind of score, from 1, so that each figure can say which is its own."""
    protocols = dict.fromkeys(_protocol(run, record) for _, run, record in found)
    return {lines: place for place, lines in enumerate(protocols, start=1)}


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None or value == "" else str(value)


def _command(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else "-"
