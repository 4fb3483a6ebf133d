"""Result of a training run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        stopped_by: Number of the signal that stopped it, or 0 where it is complete.
        loss: Mean over the last stretch that was logged; None where no step was left to make.
        knn: The last k-NN score of this session in [0, 1], or None.
        images_per_second: Mean of this session, without the time of scoring and saving.
        seconds: Of this session, all of it.
    """

    run: str
    checkpoint: str
    step: int
    steps: int
    stopped_by: int
    loss: float | None
    knn: float | None
    images_per_second: float
    seconds: float
    bad_images: int
    labelled: bool
