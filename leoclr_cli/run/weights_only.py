"""Checkpoints reduced to the weights that scores and exports read, for a run that is finished.

The encoder's tensors are written to a file of their own; then the manifest is replaced by one that lists this file in
place of the others, which are removed last. A process that is killed on the way leaves a sound checkpoint: before the
manifest is replaced the complete one, afterwards the reduced one, perhaps beside files that nothing reads any more.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError

from leoclr.cli.run.checkpoint import FORMAT, MANIFEST, STATE, Sound, prune, step_folder, step_folders, verify
from leoclr.cli.run.json_file import read_json_object
from leoclr.datasets.errors import CheckpointError
from leoclr.datasets.files import atomic_path, sha256_file, write_atomic

GROUP = "encoder"  # of the only tensors of a reduced checkpoint
USUAL_PLACE = "encoder.backbone"  # of the encoder in checkpoints that do not say


def is_weights_only(checkpoint: Sound) -> bool:
    """Whether a checkpoint is reduced, so that no training can go on from it."""
    return f"{GROUP}.safetensors" in checkpoint.files


def weights_group(checkpoint: Sound) -> str:
    """The group of tensors with the weights of the encoder."""
    return GROUP if is_weights_only(checkpoint) else "model"


def keep_weights_only(folder: Path, newest: int, keep: Callable[[int], bool]) -> tuple[int, int]:
    """Reduce the checkpoint of step `newest` and those of the steps that `keep` answers True for; remove the others.

    Returns:
        Bytes of the checkpoints before and after.

    Raises:
        CheckpointError: A file cannot be read or written; every checkpoint is sound, reduced or not.
    """
    before = _size(folder)
    _reduce(verify(step_folder(folder, newest)))
    prune(folder, newest, 1, keep)
    for step, path in step_folders(folder):
        if step < newest:
            with suppress(CheckpointError):  # it is damaged, and stays as it is
                _reduce(verify(path))
    return before, _size(folder)


def refusal(run: Path) -> CheckpointError:
    """The error of a run that is to go on from a reduced checkpoint."""
    return CheckpointError(
        f"{run} keeps only the weights of its encoder (run.keep_weights_only), and no optimizer state to train on "
        f"with; `leoclr train --init {shlex.quote(str(run))}` begins a new run from these weights"
    )


def _reduce(checkpoint: Sound) -> None:
    if is_weights_only(checkpoint):
        return
    from safetensors.torch import save_file  # and with it torch, which a list of runs has no use for

    path = checkpoint.path
    loaded = checkpoint.load(groups=("model",))
    prefix = f"{loaded.state.get('encoder', USUAL_PLACE)}."
    tensors = {name: tensor for name, tensor in loaded.tensors["model"].items() if name.startswith(prefix)}
    if not tensors:
        raise CheckpointError(f"{path} holds no weights called {prefix}*")
    file = path / f"{GROUP}.safetensors"
    try:
        with atomic_path(file) as temporary:
            save_file(tensors, temporary)
        state = read_json_object(path / MANIFEST)["files"][STATE]
        files = {STATE: state, file.name: {"bytes": file.stat().st_size, "sha256": sha256_file(file)}}
        content = {"format": FORMAT, "step": checkpoint.step, "files": files}
        write_atomic(path / MANIFEST, json.dumps(content, indent=1).encode())
        for name in checkpoint.files:
            if name not in files:
                (path / name).unlink()
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be reduced to weights: {error}") from error


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
