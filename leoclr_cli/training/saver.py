"""Checkpoints of a run: when they are due, which of them stay, and what of them is kept once the run is finished."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from leoclr.cli.config.sections import RunSettings
from leoclr.cli.run.checkpoint import prune, step_folder, step_folders
from leoclr.cli.run.folder import RunFolder
from leoclr.cli.run.weights_only import keep_weights_only
from leoclr.cli.terminal import say, warn
from leoclr.cli.training.state import RunState
from leoclr.datasets.errors import CheckpointError
from leoclr.datasets.wording import counted, in_bytes

_FIRST_MINUTES = 3.0


class Saver:
    """Writes and removes the checkpoints of a run.

    The first checkpoint of a run comes after an epoch or a few minutes, so that an early failure costs little.

    Attributes:
        step: The newest saved step, or the one that the run begins or resumes after.

    Args:
        steps, steps_per_epoch: Of the whole run, and of an epoch.
        writes: Whether this process is the one that writes; the others only take part in collecting the tensors.
    """

    def __init__(
        self, run: RunFolder, state: RunState, settings: RunSettings, steps: int, steps_per_epoch: int, writes: bool
    ) -> None:
        self._run, self._state, self._settings, self._writes = run, state, settings, writes
        self._steps, self._steps_per_epoch = steps, steps_per_epoch
        self._held: int | None = None
        self.begin(0)

    def begin(self, step: int) -> None:
        """Let the time until the next checkpoint begin, after `step`."""
        self.step, self._saved_at = step, time.monotonic()

    def due(self, step: int) -> bool:
        """Whether the state after `step` is to be saved by the clock, on this process."""
        if self.step == 0 and step >= self._steps_per_epoch:  # several GPUs agree at every tenth step only
            return True
        longest = self._settings.checkpoint_minutes
        longest = longest if self.step else min(longest, _FIRST_MINUTES)
        return (time.monotonic() - self._saved_at) / 60 >= longest

    def keeps(self, step: int) -> bool:
        """Whether the checkpoint of a step is one that is kept for good."""
        every = self._settings.checkpoint_epochs * self._steps_per_epoch
        return every > 0 and step % every == 0

    def _stays(self, step: int) -> bool:
        return step == self._held or self.keeps(step)

    def hold(self, doubtful: bool) -> None:
        """Keep the newest checkpoint of now until the run is no longer doubtful, or complete."""
        if not doubtful:
            self._held = None
        elif self._held is None:
            self._held = self.step

    def save(self, step: int, bad_images: Sequence[str], alone: bool = False) -> None:
        """Write the checkpoint of a step and remove old ones. All processes must call it, but for one that is alone:
        it writes, whichever it is."""
        tensors = self._state.tensors()
        self.hold(self._held is not None and step < self._steps)
        if self._writes or alone:
            more = {"steps": self._steps, "epoch": step / self._steps_per_epoch, "bad_images": list(bad_images)}
            write = partial(self._state.save, self._run.checkpoints, step, tensors, **more)
            with self._run.still_there():
                try:
                    write()
                except CheckpointError as error:
                    if not self._made_room(error, step):
                        raise
                    write()
                prune(self._run.checkpoints, step, self._settings.keep, self._stays)
        self.begin(step)

    def _made_room(self, error: CheckpointError, step: int) -> bool:
        """Where the disk is full, remove the checkpoints that this save would remove afterwards but for the newest."""
        if not any(os.strerror(reason) in str(error) for reason in (errno.ENOSPC, errno.EDQUOT)):
            return False
        before = len(step_folders(self._run.checkpoints))
        prune(self._run.checkpoints, step, 1, self._stays)
        removed = before - len(step_folders(self._run.checkpoints))
        if removed:
            warn(f"the disk is full: removed {counted(removed, 'old checkpoint')} to save step {step:,}")
        return removed > 0

    def finish(self) -> Path:
        """Reduce the checkpoints of a finished run, if `run.keep_weights_only` says so; the newest one's folder."""
        if self._writes and self._settings.keep_weights_only and self.step >= self._steps:
            with self._run.still_there():
                before, after = keep_weights_only(self._run.checkpoints, self.step, self.keeps)
            if after < before:
                say(
                    f"kept only the weights of the encoder ({in_bytes(after)} of {in_bytes(before)}), as "
                    "run.keep_weights_only says; the run cannot be extended any more"
                )
        return step_folder(self._run.checkpoints, self.step)
