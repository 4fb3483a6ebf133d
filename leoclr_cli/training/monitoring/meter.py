"""Metrics of the steps of a run: losses, metrics of the method, embedding health, bad images."""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator
from torch import Tensor

from leoclr.backends.waits import waiting
from leoclr.cli.training.bad_images import BadImages, lines_of_all
from leoclr.cli.training.monitoring.health import measures
from leoclr.cli.training.step import StepResult


class Meter:
    """Gathers what steps found until it is asked for; asking exchanges between processes, so all must ask alike."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._results: list[StepResult] = []
        self._bad: list[str] = []

    def add(self, result: StepResult, bad: list[str]) -> None:
        """Note a step, and the images of it that could not be used. Only the newest embeddings are kept."""
        if self._results:
            self._results[-1] = self._results[-1]._replace(embeddings=None)
        self._results.append(result)
        self._bad += bad

    def settle(self, known: BadImages) -> float:
        """The mean loss over all processes; the bad images of all are counted.

        Raises:
            FloatingPointError: A loss is not finite, so that nothing is saved or reported that is not.
            DataError: There are too many bad images.
        """
        mean = self._mean([result.loss for result in self._results]) if self._results else 0.0
        if not math.isfinite(mean):
            raise FloatingPointError
        known.add(lines_of_all(self._bad, self._accelerator))
        self._bad.clear()
        return mean

    def measures(self) -> dict[str, float]:
        """The method's own metrics since the last call and the health of the newest embeddings, by name; means over
        the processes."""
        newest = self._results[-1]
        health = {name: self._mean([value]) for name, value in measures(newest.embeddings).items()}
        names = dict.fromkeys(name for result in self._results for name in result.metrics)
        own = {name: self._mean([r.metrics[name] for r in self._results if name in r.metrics]) for name in names}
        self._results.clear()
        return health | own

    def sound(self) -> bool:
        """Whether all losses of this process since the last call of `measures` are finite; exchanges nothing."""
        return all(bool(torch.isfinite(result.loss)) for result in self._results)

    def _mean(self, values: list[Tensor]) -> float:
        """Over steps and processes."""
        mean = torch.stack(values).mean()
        with waiting():
            return float(self._accelerator.reduce(mean, "mean"))
