"""Schedule of checkpoints by time."""

from __future__ import annotations

import time

_FIRST_MINUTES = 3.0


class SaveClock:
    """The newest saved step, and when the next save is due.

    The first checkpoint of a run comes after an epoch or a few minutes, so that an early failure costs little.

    Args:
        step: The step that a run begins or resumes after.
        minutes: Between checkpoints.
        steps_per_epoch: For the first checkpoint.
    """

    def __init__(self, step: int, minutes: float, steps_per_epoch: int) -> None:
        self.step = step
        self._minutes, self._steps_per_epoch = minutes, steps_per_epoch
        self._saved_at = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether the state after `step` is to be saved now."""
        if self.step == 0 and step == self._steps_per_epoch:
            return True
        longest = self._minutes if self.step else min(self._minutes, _FIRST_MINUTES)
        return (time.monotonic() - self._saved_at) / 60 >= longest

    def saved(self, step: int) -> None:
        """Note a save."""
        self.step, self._saved_at = step, time.monotonic()
