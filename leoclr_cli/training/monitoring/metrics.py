"""Log of metrics: metrics.jsonl, and the chosen trackers."""

from __future__ import annotations

import json
import math
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

from accelerate import Accelerator

from leoclr.cli.terminal import warn
from leoclr.datasets.errors import RunError
from leoclr.datasets.files import write_atomic
from leoclr.datasets.json_text import parse_json_text

_MODULES = {"tensorboard": ("tensorboardX", "tensorboard"), "wandb": ("wandb",), "mlflow": ("mlflow",)}


def require_trackers(names: Sequence[str]) -> None:
    """Raise RunError for a tracker that is not installed."""
    for name in names:
        if not any(find_spec(module) for module in _MODULES[name]):
            raise RunError(f"run.trackers: {name} is not installed: pip install {_MODULES[name][0]}")


def start_trackers(accelerator: Accelerator, settings: Mapping[str, Any]) -> None:
    """Start the trackers that the accelerator was told of; one that cannot start is reported, and all are left out."""
    try:
        accelerator.init_trackers("leoclr", dict(settings))
    except Exception as error:  # whatever a tracker raises, the run goes on
        warn(f"the trackers cannot start and are left out: {error}")
        accelerator.trackers = []
    _say_in_one_line_what_tensorboard_cannot_write()


def _say_in_one_line_what_tensorboard_cannot_write() -> None:
    """tensorboardX writes in a thread, and once more as Python exits; Python would show a traceback for each."""
    of_thread, of_exit, module = threading.excepthook, sys.unraisablehook, "tensorboardX"

    def in_thread(found: threading.ExceptHookArgs) -> None:
        if type(found.thread).__module__.startswith(module) and isinstance(found.exc_value, OSError):
            if found.exc_value.errno is not None:  # else the file was closed after an error that was told
                warn(f"TensorBoard's log cannot be written: {found.exc_value}")
        else:
            of_thread(found)

    def at_exit(found: Any) -> None:
        if not (getattr(found.object, "__module__", "") or "").startswith(module):
            of_exit(found)

    threading.excepthook, sys.unraisablehook = in_thread, at_exit


Listener = Callable[[int, Mapping[str, float]], None]


class MetricsLog:
    """Appends one JSON object a line and hands the same numbers to Accelerate's trackers.

    A tracker that fails (no network, a full disk elsewhere) is reported once and left out; it never stops a run.

    Only the first process writes; on the others nothing happens.

    Args:
        path: metrics.jsonl. Lines of steps after `step`, which a killed run wrote after its last checkpoint, go.
        listener: Called with the step and its values after a line is written.
    """

    def __init__(self, path: Path, accelerator: Accelerator, step: int, listener: Listener | None = None) -> None:
        self._listener = listener
        self._accelerator = accelerator
        self._trackers_work = bool(accelerator.trackers)
        self._file: TextIO | None = None
        if not accelerator.is_main_process:
            return
        if path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
            write_atomic(path, "".join(f"{line}\n" for line in kept).encode())
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record the values of a step. What is not finite is null in the file."""
        if self._file is None:
            return
        line: dict[str, Any] = {"step": step}
        line |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._trackers_work:
            try:
                self._accelerator.log(values, step=step)
            except Exception as error:  # whatever a tracker raises, the run goes on
                warn(f"the trackers failed and are left out from here on: {error}")
                self._trackers_work = False
        if self._listener is not None:
            self._listener(step, values)

    def close(self) -> None:
        """Close the file and the trackers."""
        if self._file is not None:
            self._file.close()
        if self._trackers_work:
            try:
                for tracker in self._accelerator.trackers:  # end_training would leave the group of processes, too
                    tracker.finish()
            except Exception as error:  # as above
                warn(f"the trackers failed at the end: {error}")


def _step_of(line: str) -> float:
    try:
        return float(parse_json_text(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # half a line, from a process that was killed
