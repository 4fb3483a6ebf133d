"""Grids of the hyper-parameter search for transfer (SimCLR, arXiv 2002.05709, appendix B.8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from leoclr.datasets.errors import EvaluationError

STEPS = 20_000  # of a fine-tuning, at 256 images a step


def logarithmic(low: float, high: float, count: int) -> tuple[float, ...]:
    """Evenly spaced on a logarithmic scale, ends included, to three digits."""
    return tuple(float(f"{value:.3g}") for value in np.geomspace(low, high, count))


LEARNING_RATES = logarithmic(1e-4, 1e-1, 7)
WEIGHT_DECAYS = (0.0, *logarithmic(1e-6, 1e-3, 7))
REGULARISATIONS = logarithmic(1e-5, 1e6, 12)  # C of the linear probe, one a decade; SimCLR has 45 over the same range


@dataclass(frozen=True)
class GridPoint:
    """One choice of hyper-parameters.

    Attributes:
        weight_decay: A step takes this share of the weights, whatever the learning rate.
    """

    learning_rate: float
    weight_decay: float

    @property
    def decay_for_sgd(self) -> float:
        """SGD multiplies its weight decay with the learning rate; SimCLR divides it by that first."""
        return self.weight_decay / self.learning_rate

    def __str__(self) -> str:
        return f"lr {self.learning_rate:g}, weight decay {self.weight_decay:g}"


def grid(learning_rates: Sequence[float], weight_decays: Sequence[float]) -> list[GridPoint]:
    """All combinations, weak before strong, each once."""
    return [GridPoint(rate, decay) for rate in sorted(set(learning_rates)) for decay in sorted(set(weight_decays))]


def best(found: Mapping[GridPoint, float | None]) -> GridPoint:
    """The point with the highest accuracy, of equal ones the first; None is a training that diverged.

    Raises:
        EvaluationError: All diverged.
    """
    usable = {point: value for point, value in found.items() if value is not None}
    if not usable:
        rates = ", ".join(f"{rate:g}" for rate in sorted({point.learning_rate for point in found}))
        raise EvaluationError(f"fine-tuning diverged at every learning rate ({rates}); give lower ones with --lr")
    return max(usable, key=lambda point: usable[point])


def edges(chosen: GridPoint, points: Sequence[GridPoint]) -> tuple[str, ...]:
    """A line for each hyper-parameter whose chosen value is the highest or lowest of several above zero."""
    notes = []
    rates = sorted({point.learning_rate for point in points})
    decays = sorted({point.weight_decay for point in points})
    for name, value, values in (
        ("learning rate", chosen.learning_rate, rates),
        ("weight decay", chosen.weight_decay, decays),
    ):
        if len(values) > 2 and value > 0 and value in (values[0], values[-1]):
            notes.append(f"the chosen {name}, {value:g}, lies on the edge of the grid; the best may lie beyond")
    return tuple(notes)
