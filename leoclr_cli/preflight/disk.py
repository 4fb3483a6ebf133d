"""Whether there is room for a run's checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path

from leoclr.backends.method import Method
from leoclr.cli.preflight.memory import OPTIMIZER_COPIES


def check_disk(run: Path, method: Method, optimizer: str) -> list[str]:
    """A warning where the disk of a run folder, which need not exist, has no room for one more checkpoint.

    Args:
        optimizer: `optimizer.name`.
    """
    weights = sum(value.nbytes for value in method.state_dict().values())
    trained = sum(parameter.nbytes for parameter in method.parameters() if parameter.requires_grad)
    needed = weights + OPTIMIZER_COPIES[optimizer] * trained
    place = next(folder for folder in (run.absolute(), *run.absolute().parents) if folder.exists())
    try:
        free = shutil.disk_usage(place).free
    except OSError:
        return []
    if free >= needed:
        return []
    return [
        f"{run}: a checkpoint needs about {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free on its disk; make "
        "room before the first one is due, or name another --output"
    ]
