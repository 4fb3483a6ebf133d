"""Measures of collapse: spread and effective rank of the embeddings."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from leoclr.backends.method import spread
from leoclr.cli.terminal import warn

_COLLAPSED = 0.01  # an untrained ResNet lies around 0.1


class Health:
    """Measures the embeddings of a step, and warns once where they have collapsed.

    Args:
        main: Whether this process speaks.
    """

    def __init__(self, main: bool) -> None:
        self._speaks = main

    def measures(self, embeddings: Tensor | None, step: int) -> dict[str, float]:
        """Spread and effective rank of embeddings, `(n, d)`, taken to length one; nothing where there are none."""
        if embeddings is None:
            return {}
        deviation, rank = (float(value) for value in spread(F.normalize(embeddings.float(), dim=1)))
        if deviation < _COLLAPSED and self._speaks:
            warn(f"the embeddings have collapsed at step {step}: standard deviation {deviation:.4f} of 1")
            self._speaks = False
        return {"embedding_std": deviation, "effective_rank": rank}
