"""Save a checkpoint when a run cannot continue: lost server, damaged shard, killed process.

The first process saves. Where it is the one that was killed, another does: all hold the same weights, optimizer and
queue, and only BatchNorm's running statistics are each process's own.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from leoclr.cli.run.checkpoint import newest_sound
from leoclr.cli.run.folder import RunFolder
from leoclr.cli.run.lock import RunLock
from leoclr.cli.terminal import say, warn
from leoclr.datasets.errors import CheckpointError, LeoclrError, RunError
from leoclr.datasets.wording import in_a_line


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
def saved_on_failure(
    run: RunFolder, main: bool, worth_it: Callable[[], bool], save: Callable[[], bool]
) -> Iterator[None]:
    """Around the steps of a run: save the newest finished one where something fails that the weights have no part in,
    and say how the run goes on.

    Args:
        main: Whether this is the first process.
        worth_it: Whether there is something sound to save.
        save: Writes the checkpoint; False where another process does.
    """
    try:
        yield
    except Exception as error:  # whatever a method of another package raises
        saved = False
        if not isinstance(error, Unsound | CheckpointError):
            try:
                saved = worth_it() and save()
            except (LeoclrError, RuntimeError) as second:  # a GPU that has failed answers nothing more
                warn(f"the newest step cannot be saved: {in_a_line(second)}")
        if not isinstance(error, Unsound) and (main or saved):
            _say_how_it_goes_on(run, saved)
        raise


def _say_how_it_goes_on(run: RunFolder, saved: bool) -> None:
    newest, _ = newest_sound(run.checkpoints)
    if newest is not None:
        what = "saved after step" if saved else "the newest checkpoint is that of step"
        command = f"leoclr train --resume {shlex.quote(str(run.path))}"
        say(f"{what} {newest.step:,}, as the run cannot go on; once it can:  {command}")


def saved_by_one(run: RunFolder, main: bool, step: int, save: Callable[[], None]) -> bool:
    """Save on the first process, or on another if that has ended without. Of several, the one that gets the lock does.

    Returns:
        Whether this process saved.

    Raises:
        LeoclrError: The first process cannot save.
    """
    if main:
        save()
        return True
    if not run.settings_file.exists():  # a run folder that this machine does not share with the first process
        return False
    try:
        with RunLock(run.path):
            newest, _ = newest_sound(run.checkpoints)
            if newest is not None and newest.step >= step:
                return False
            save()
    except LeoclrError:  # the first process lives, or another was faster, or has said why this cannot be
        return False
    return True
