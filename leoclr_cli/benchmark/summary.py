"""Results of a benchmark: a table, JSON, and the bottleneck."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from leoclr.cli.preflight.memory import memory_line

_WORTH_IT = 1.05  # less than the machine drifts by

Part = Literal["data", "model", "all"]


@dataclass(frozen=True)
class Rate:
    """One measurement.

    Attributes:
        name: What was measured.
        part: What it is a part of: making views, the model's step, or everything together.
        images_per_second: Median over the repetitions; `low` and `high` are its quartiles.
    """

    name: str
    part: Part
    images_per_second: float
    low: float
    high: float

    @staticmethod
    def of(name: str, part: Part, rates: Sequence[float]) -> Rate:
        """From the rates of one or more repetitions."""
        low, median, high = statistics.quantiles(rates, n=4) if len(rates) > 1 else (rates[0],) * 3
        return Rate(name, part, median, low, high)


@dataclass(frozen=True)
class Alternative:
    """What another value of a setting would do: its rate over that of the settings as they are."""

    setting: str
    part: Part
    ratio: float


@dataclass(frozen=True)
class Report:
    """All that was measured.

    Attributes:
        machine, settings: What with, as it stands in the table's head.
        data: Views of all loader processes, without a model.
        model: Bare steps on views that are there already.
        end_to_end: Both at once, as in training.
        memory: Of a step of training, with `batch` images.
    """

    machine: dict[str, Any]
    settings: dict[str, Any]
    stages: tuple[Rate, ...]
    operations: tuple[Rate, ...]
    data: Rate
    model: Rate
    end_to_end: Rate
    alternatives: tuple[Alternative, ...]
    memory: Mapping[str, int | None]
    seconds: float

    @property
    def limit(self) -> Part:
        """Which of the two is slower by itself."""
        return "data" if self.data.images_per_second < self.model.images_per_second else "model"

    @property
    def advice(self) -> tuple[Alternative, ...]:
        """The other values of settings that would help, the best first."""
        found = [one for one in self.alternatives if one.part == self.limit and one.ratio >= _WORTH_IT]
        return tuple(sorted(found, key=lambda one: -one.ratio))

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        advice = [asdict(one) for one in self.advice]
        return {**asdict(self), "limit": self.limit, "advice": advice}

    def as_text(self) -> str:
        """The table, and the verdict below it."""
        rows = [(rate.name, rate) for rate in (*self.stages, *self.operations, self.data, self.model, self.end_to_end)]
        width = max(len(name) for name, _ in rows)
        about = [", ".join(f"{name} {value}" for name, value in part.items()) for part in (self.machine, self.settings)]
        lines = [*about, "", f"{'':{width}}  {'images/s':>10}  {'quartiles':>19}  {'ms an image':>11}"]
        for name, rate in rows:
            spread = f"{_number(rate.low)} to {_number(rate.high)}"
            each = 1000 / rate.images_per_second
            lines.append(f"{name:{width}}  {_number(rate.images_per_second):>10}  {spread:>19}  {each:11.3f}")
        return "\n".join([*lines, "", *self._verdict()])

    def _verdict(self) -> list[str]:
        data, model = self.data.images_per_second, self.model.images_per_second
        slow, fast = sorted((data, model))
        limiting = "making the views" if self.limit == "data" else "the model's step"
        lines = [
            f"limit     {limiting}: by itself {_number(slow)} images/s, where the other part makes {_number(fast)}"
        ]
        share = self.end_to_end.images_per_second / slow
        lines.append(f"together  {share:.0%} of that" + (_COMPETING if share < 0.8 else ""))
        helps = [f"--set {one.setting} ({one.ratio:.2f} x this part's rate)" for one in self.advice]
        tried = any(one.part == self.limit for one in self.alternatives)
        none = (
            "none of the settings that were tried would help"
            if tried
            else "nothing else was measured, which takes more --seconds"
        )
        lines.append(f"memory    of a step of {self.memory['batch']} images, {memory_line(self.memory)}")
        return [*lines, f"try       {helps[0] if helps else none}", *(f"          {line}" for line in helps[1:])]


_COMPETING = ": loader processes and model compete for the processors"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"
