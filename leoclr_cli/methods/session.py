"""One process of `leoclr certify`: a part of a run, up to a step or to its end by a signal.

Run as `python -m leoclr.cli.methods.session` with the variables of torchrun where there are several processes; a
`Session` comes as JSON on standard input. What each step trained on is noted beside the run.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leoclr.backends.settings import Strict
from leoclr.cli.config.settings import Settings
from leoclr.cli.training import trainer
from leoclr.cli.training.data import TrainingData
from leoclr.datasets.loading.loader import Batch


class Session(Strict):
    """What a process is to do.

    Attributes:
        until: The step after which it is asked to stop.
        signal: What the first process sends itself after step `signal_step`; 0 for nothing.
    """

    settings: Settings
    run: Path
    resume: bool = False
    until: int
    signal: int = 0
    signal_step: int = 0


def samples_file(run: Path, rank: int) -> Path:
    """Where a process notes the samples of its steps, a JSON line each."""
    return run / f"samples-{rank}.jsonl"


def train(session: Session) -> None:
    """Train, and note the samples of each step."""
    done = 0

    def on_metrics(step: int, values: Any) -> None:
        nonlocal done
        done = step
        if session.signal and step == session.signal_step:
            os.kill(os.getpid(), session.signal)

    session.run.mkdir(parents=True, exist_ok=True)
    noted = samples_file(session.run, int(os.environ.get("RANK", "0")))

    make = TrainingData.batches

    def batches(data: TrainingData, *arguments: Any) -> Iterator[Batch]:
        with noted.open("a") as file:
            for batch in make(data, *arguments):
                file.write(json.dumps({"step": batch.step, "samples": batch.samples.tolist()}) + "\n")
                file.flush()
                yield batch

    TrainingData.batches = batches  # type: ignore[method-assign, assignment]
    resumed, stop = session.resume, lambda: done >= session.until
    trainer.train(session.settings, session.run, None, ["leoclr certify"], resumed, on_metrics, stop)


if __name__ == "__main__":
    train(Session.model_validate_json(sys.stdin.read()))
