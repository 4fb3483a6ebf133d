"""Python interface: load an encoder, compute features, train.

    from leoclr.api import embed, load_encoder, train

The functions are those of the commands. Importing them is quick; torch is imported when one is called. Errors that a
user can mend are `LeoclrError`s.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from leoclr.cli.config.settings import Settings
from leoclr.cli.training.result import TrainResult
from leoclr.datasets.errors import LeoclrError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from leoclr.api.encoder import Encoder

__all__ = ["LeoclrError", "Settings", "TrainResult", "embed", "load_encoder", "train"]

Place = str | os.PathLike[str]


class Flag(Protocol):
    """What `train` asks whether it is to stop: a `threading.Event`, for one."""

    def is_set(self) -> bool:
        """Whether it is."""


def load_encoder(path: Place | None = None, *, backbone: str | None = None) -> Encoder:
    """Load a trained encoder as a module in evaluation mode, on the CPU, without gradients.

    Args:
        path: Whatever `leoclr eval` takes: a run, a checkpoint, an exported file or folder, another tool's weights, or
            a name such as `hf-hub:OWNER/NAME`; None takes the newest run in the working folder.
        backbone: Architecture of a state dict that does not tell it.

    Raises:
        CheckpointError: It is missing, damaged, or does not fit its architecture.
        RunError: `path` is None and there is no run.
    """
    from leoclr.api.encoder import Encoder
    from leoclr.cli.run.encoders import load_encoder as load

    return Encoder(load(None if path is None else os.fspath(path), backbone))


def embed(
    encoder: Encoder,
    images: Place | Image | Sequence[Place] | Sequence[Image],
    *,
    batch_size: int = 256,
    workers: int = -1,
) -> NDArray[np.float32]:
    """The features of images, shape `(n, encoder.feature_dim)`, in the order of the images; on the encoder's device.

    Args:
        images: Pillow images; or image files; or shards, as `leoclr embed` takes them (then in the index's order); or
            one of these.
        workers: Loader processes for shards; 0 loads in this one, -1 chooses.

    Raises:
        DataError: Shards are missing or damaged, or an image cannot be decoded, or `images` are neither.
    """
    from leoclr.api.encoder import embed_images

    return embed_images(encoder, images, batch_size, workers)


def train(
    settings: Settings | Mapping[str, Any],
    output: Place,
    *,
    preset: str | None = None,
    resume: bool = False,
    on_metrics: Callable[[int, Mapping[str, float]], None] | None = None,
    stop: Flag | None = None,
) -> TrainResult:
    """Pre-train an encoder, as `leoclr train` does, in this process.

    Args:
        settings: All of them, or those that differ from the preset or the defaults, by section
            (`{"train": {"epochs": 10}}`) or by dotted key (`{"train.epochs": 10}`).
        output: The run folder.
        resume: Whether to go on from the newest checkpoint in `output`; the settings must be those of the run, or
            have more epochs. Without a run in `output`, one begins.
        on_metrics: Called with step and measures each time a line of metrics.jsonl is written.
        stop: When it is set, the run saves after the step and ends; `resume` continues. From the main thread, Ctrl-C
            does the same.

    Returns:
        How the run ended; `stopped_by` is not 0 where it was stopped.

    Raises:
        LeoclrError: The data, the settings, the device, the run folder or the loss do not allow to go on.
    """
    from leoclr.api.settings import settled
    from leoclr.cli.run.folder import RunFolder
    from leoclr.cli.run.recorded import recorded_settings, refuse_changes
    from leoclr.cli.training.trainer import train as run_training

    chosen = settled(settings, preset)
    if resume and RunFolder(Path(output)).settings_file.exists():
        refuse_changes(Path(output), recorded_settings(Path(output)), chosen)
    command = ["leoclr.api.train"]
    asked = stop.is_set if stop is not None else None
    return run_training(chosen, Path(output), preset, command, resume, on_metrics=on_metrics, asked_to_stop=asked)
