"""Save a checkpoint when a run cannot continue: lost server, damaged shard, killed process."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from leoclr.cli.run.folder import RunFolder
from leoclr.cli.terminal import say, warn
from leoclr.datasets.errors import CheckpointError, LeoclrError, RunError


class Unsound(RunError):
    """The weights are not worth keeping: a loss or a gradient is not finite, or the embeddings have collapsed."""


def not_finite(run: RunFolder, step: int, keys: Sequence[str], main: bool) -> Unsound:
    """The error of a step whose loss or gradient is not finite, which the run folder notes for `leoclr replay`.

    Args:
        step: Where it was noticed; on a GPU, the step itself may be a few steps earlier.
        keys: Images of the batch on this process.
    """
    if main:
        run.note_failure(step, keys)
    again = f"`leoclr replay {shlex.quote(str(run.path))}`"
    return Unsound(
        f"the loss or its gradient is not finite at step {step}; the last checkpoint is kept. Try a smaller --lr or "
        f"more warm-up. The batch began with {', '.join(keys[:8])}; {again} shows where it begins"
    )


@contextmanager
def saved_on_failure(run: Path, worth_it: Callable[[], bool], save: Callable[[], int]) -> Iterator[None]:
    """Around the steps of a run: save the newest finished one where something fails that the weights have no part in.

    Args:
        worth_it: Whether there is something sound to save.
        save: Writes the checkpoint and returns its step.
    """
    try:
        yield
    except (LeoclrError, OSError, RuntimeError) as error:
        if not isinstance(error, Unsound | CheckpointError) and worth_it():
            try:
                step = save()
            except LeoclrError as second:
                warn(f"the newest step cannot be saved: {second}")
            else:
                command = f"leoclr train --resume {shlex.quote(str(run))}"
                say(f"saved after step {step:,}, as the run cannot go on; once it can:  {command}")
        raise
