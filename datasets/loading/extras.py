"""What a step has beside its views, where the method asks for it: where the views lie, and the labels of the images.

Both are inputs of a batch, by names as in `view_maker`. Sample numbers are among the inputs of every batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LABELS = " labels"  # int64, `(n,)`


def place_of(view: str) -> str:
    """The name of where a view lies in its image: `augmentation.view_box`, float32, `(n, 4)`, in shares of the image.
    The boxes of `view_maker` are in pixels, for what is cut on the device."""
    return f"{view} place"


@dataclass(frozen=True)
class Extras:
    """What is asked for.

    Attributes:
        boxes: Whether where the views lie.
        labels: The class numbers of all images of the data set, int64, -1 for none; None where they are not asked for.
    """

    boxes: bool = False
    labels: NDArray[np.int64] | None = None

    def labels_of(self, samples: NDArray[np.int64]) -> dict[str, Tensor]:
        """The labels of some samples, by their name; nothing where they are not asked for."""
        return {} if self.labels is None else {LABELS: torch.from_numpy(self.labels[samples])}


NO_EXTRAS = Extras()
