"""Facts about a run from its folder.

Every file may be missing, damaged or malicious: readable ones are used, the others are named."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leoclr.cli.run.folder import RunFolder
from leoclr.cli.run.json_file import number, part
from leoclr.datasets.json_text import parse_json_text
from leoclr.datasets.wording import counted

_MAX_RECORD_BYTES = 16 * 2**20
_SHOWN_BAD_IMAGES = 20


@dataclass
class ReportedRun:
    """A run as far as it can be told.

    Attributes:
        name: Of its folder.
        content: run.json.
        settings: Dotted key to value.
        curves: Name of a measure to its points, (epoch, value), in order.
        records: The JSON of each evaluation, by file name.
        bad_images: How many lines bad-images.txt has, and the first of them.
        problems: One line for each thing that cannot be told.
    """

    folder: RunFolder
    name: str
    content: dict[str, Any]
    settings: dict[str, str]
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    bad_images: tuple[int, tuple[str, ...]] = (0, ())
    problems: list[str] = field(default_factory=list)

    @property
    def epochs(self) -> float:
        """How far the curves reach."""
        return max((points[-1][0] for points in self.curves.values()), default=0.0)

    def last(self, measure: str) -> float | None:
        """The last value of a curve."""
        points = self.curves.get(measure)
        return points[-1][1] if points else None

    @property
    def mean_rate(self) -> float | None:
        """Images per second over the run: each stretch between two lines counts by its epochs."""
        epochs, time, before = 0.0, 0.0, 0.0
        for epoch, rate in self.curves.get("images_per_second", ()):
            if rate > 0 and epoch > before:
                epochs, time = epochs + epoch - before, time + (epoch - before) / rate
            before = epoch
        return epochs / time if time else None

    def part(self, *keys: str) -> Mapping[str, Any]:
        """An object inside run.json; empty where there is none."""
        return part(self.content, *keys)


def read_run(path: Path) -> ReportedRun:
    """Read a run folder; RunError where it is none."""
    folder = RunFolder(path)
    content = folder.read()
    settings = content.get("settings")
    run = ReportedRun(folder, path.resolve().name, content, dict(flat(settings if isinstance(settings, dict) else {})))
    _read_curves(run)
    _read_records(run)
    _read_bad_images(run)
    return run


def flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and values as text."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value if isinstance(value, str) else json.dumps(value)


def _read_curves(run: ReportedRun) -> None:
    try:
        lines = run.folder.metrics.open("rb")
    except OSError:
        run.problems.append("There is no metrics.jsonl: nothing is known of its training.")
        return
    left_out = 0
    with lines:
        for line in lines:
            try:
                values = parse_json_text(line)
            except ValueError:
                values = None
            epoch = number(values.pop("epoch", None)) if isinstance(values, dict) else None
            if epoch is None:
                left_out += line.endswith(b"\n")  # else half a line, from a process that was killed
                continue
            for name, value in values.items():
                if (found := number(value)) is not None:
                    run.curves.setdefault(name, []).append((epoch, found))
    if left_out:
        run.problems.append(f"metrics.jsonl: {counted(left_out, 'line')} of no measures left out.")
    for points in run.curves.values():
        points.sort(key=lambda point: point[0])


def _read_records(run: ReportedRun) -> None:
    for path in sorted(run.folder.evals.glob("*.json")):
        try:
            if path.stat().st_size > _MAX_RECORD_BYTES:
                raise ValueError("too large")
            record = parse_json_text(path.read_bytes())
            if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
                raise ValueError("no record of a score")
        except (OSError, ValueError) as error:
            run.problems.append(f"evals/{path.name} cannot be read: {error}")
            continue
        for number_of, one in enumerate(_curves_of(run, record)):
            run.records[f"{path.name}{f'#{number_of}' if number_of else ''}"] = one


def _curves_of(run: ReportedRun, record: dict[str, Any]) -> list[dict[str, Any]]:
    """The curves of this run, where a file holds those of several encoders side by side; else the record itself."""
    curves = record.get("curves")
    if not isinstance(curves, list):
        return [record]
    found = [curve for curve in curves if isinstance(curve, dict) and isinstance(curve.get("kind"), str)]
    own = [curve for curve in found if _run_of(curve) == run.name]
    return own or found[:1]


def _run_of(record: Mapping[str, Any]) -> str:
    """The name of the run folder that the scored checkpoint lies in: RUN/checkpoints/STEP."""
    return Path(str(part(record, "checkpoint").get("path"))).parent.parent.name


def _read_bad_images(run: ReportedRun) -> None:
    count, shown = 0, []
    try:
        with run.folder.bad_images.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                count += 1
                if count <= _SHOWN_BAD_IMAGES:
                    shown.append(line.rstrip("\n")[:500])
    except OSError:
        return
    run.bad_images = count, tuple(shown)
