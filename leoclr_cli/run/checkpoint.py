"""Checkpoints: folders of safetensors and JSON, written atomically and verified before use.

    CHECKPOINTS/step-000000123/
        NAME.safetensors    one for each group of tensors
        state.json          everything that is not a tensor
        manifest.json       size and SHA-256 of each of the others; written last

A save fills a hidden folder beside the final one, syncs it to the disk and renames it, so that a killed process, a full
disk or a power cut leaves the earlier checkpoints intact and no partial one. Nothing is pickled, and files that the
manifest does not list are never opened.
"""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from leoclr.cli.run.json_file import read_json_object
from leoclr.datasets.errors import CheckpointError
from leoclr.datasets.files import fsync_folder, new_file_mode, sha256_file

if TYPE_CHECKING:
    from torch import Tensor

JSON = bool | int | float | str | Sequence["JSON"] | Mapping[str, "JSON"] | None

FORMAT = 1
MANIFEST = "manifest.json"
STATE = "state.json"
PARTIAL = ".partial-"
_STEP_FOLDER = re.compile(r"step-(\d{9,})")
_GROUP_FILE = re.compile(r"[A-Za-z0-9_-]+\.safetensors")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What one checkpoint folder holds.

    Attributes:
        path: The folder.
        step: Optimizer steps that had been taken.
        tensors: Group name -> tensor name -> tensor, on the CPU.
        state: Content of state.json.
    """

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


@dataclass(frozen=True)
class Sound:
    """A checkpoint folder whose files have been compared with the manifest. Loading hashes nothing again.

    Attributes:
        files: Names of the files that the manifest lists.
    """

    path: Path
    step: int
    files: tuple[str, ...]

    def load(self, groups: Collection[str] | None = None) -> Checkpoint:
        """Read it.

        Args:
            groups: Groups of tensors to read; None reads all.

        Raises:
            CheckpointError: A file is not what it claims to be, or one of `groups` is not there.
        """
        names = [Path(file).stem for file in self.files if file != STATE]
        for group in groups or ():
            if group not in names:
                raise CheckpointError(f"{self.path} holds no group {group!r}, only {', '.join(names)}")
        wanted = names if groups is None else groups
        state = read_json_object(self.path / STATE)
        tensors = {name: _read_group(self.path / f"{name}.safetensors") for name in wanted}
        return Checkpoint(self.path, self.step, tensors, state)


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` optimizer steps lies."""
    return folder / f"step-{step:09d}"


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, JSON]
) -> Path:
    """Write the checkpoint of `step` and return its folder. Leftovers of killed saves are removed first.

    A sound checkpoint of the same step is left as it is, because a run has one result at a step; a damaged one is
    replaced. Tensors that share memory are each written in full.

    Raises:
        CheckpointError: It cannot be written; earlier checkpoints are as they were. Names the bytes needed and free.
        ValueError: `state` holds NaN or infinity.
    """
    from safetensors.torch import save_file  # and with it torch, which takes seconds that a list of runs has no use for

    target = step_folder(folder, step)
    state_bytes = json.dumps(state, indent=1, allow_nan=False).encode()
    needed = len(state_bytes) + sum(tensor.nbytes for group in tensors.values() for tensor in group.values())
    try:
        folder.mkdir(exist_ok=True)  # and not its parents: a run that was moved away must not begin anew here
        _remove_leftovers(folder)
        if _is_sound(target):
            return target
        with _new_folder(target) as temporary:
            for name, group in tensors.items():
                save_file(_on_cpu(group), temporary / f"{name}.safetensors")
            (temporary / STATE).write_bytes(state_bytes)
            _seal(temporary, step)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write checkpoint {target}: {error}{_space(folder, needed, error)}") from error
    return target


def load_checkpoint(path: Path, groups: Collection[str] | None = None) -> Checkpoint:
    """Read a checkpoint folder after comparing every file with the manifest; see `verify` and `Sound.load`."""
    return verify(path).load(groups)


def newest_sound(folder: Path) -> tuple[Sound | None, list[str]]:
    """The newest checkpoint in `folder` that verifies, and one line for each newer one that does not.

    The first is None where there is no sound checkpoint.
    """
    passed_over: list[str] = []
    for _, path in reversed(step_folders(folder)):
        try:
            return verify(path), passed_over
        except CheckpointError as error:
            passed_over.append(f"passed over a damaged checkpoint: {error}")
    return None, passed_over


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The folder of `newest_sound`, where nothing is loaded from it."""
    sound, passed_over = newest_sound(folder)
    return None if sound is None else sound.path, passed_over


def prune(folder: Path, newest: int, keep: int, protect: Callable[[int], bool]) -> None:
    """Remove all but the newest `keep` checkpoints, except those whose step `protect` answers True for.

    Those after step `newest` are damaged, else the run would have resumed from there. They neither count nor go: the
    run writes over them when it comes to their step. A folder is renamed before it is emptied, so that a killed process
    leaves no half of a checkpoint.

    Raises:
        CheckpointError: One cannot be removed.
    """
    for step, path in [found for found in step_folders(folder) if found[0] <= newest][:-keep]:
        if not protect(step):
            doomed = path.with_name(f"{PARTIAL}{path.name}")
            try:
                os.replace(path, doomed)
                shutil.rmtree(doomed)
            except OSError as error:
                raise CheckpointError(f"cannot remove the old checkpoint {path}: {error}") from error


def verify(path: Path) -> Sound:
    """Compare each file of a checkpoint folder with the manifest.

    Memory stays bounded whatever the files hold. Files that the manifest does not list are ignored.

    Raises:
        CheckpointError: Names the file that is missing, changed or not allowed.
    """
    manifest = read_json_object(path / MANIFEST)
    files, step = manifest.get("files"), manifest.get("step")
    if manifest.get("format") != FORMAT or type(step) is not int or not isinstance(files, dict):
        raise CheckpointError(f"{path / MANIFEST} is not a manifest of format {FORMAT}")
    for name in files:
        if name != STATE and not _GROUP_FILE.fullmatch(name):
            raise CheckpointError(f"{path / MANIFEST} lists {name!r}: only {STATE} and NAME.safetensors are allowed")
    if STATE not in files:
        raise CheckpointError(f"{path / MANIFEST} does not list {STATE}")
    for name, expected in files.items():
        _verify_file(path / name, expected)
    return Sound(path, step, tuple(files))


def _verify_file(path: Path, expected: Any) -> None:
    try:
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            raise CheckpointError(f"{path} is missing")
        if size != expected["bytes"]:
            raise CheckpointError(f"{path} has {size:,} bytes instead of {expected['bytes']:,}")
        if sha256_file(path) != expected["sha256"]:
            raise CheckpointError(f"{path} has changed since it was saved (its SHA-256 differs)")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path.parent / MANIFEST} says no size and SHA-256 for {path.name!r}") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def _is_sound(path: Path) -> bool:
    try:
        verify(path)
    except CheckpointError:
        return False
    return True


def step_folders(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of everything named like a checkpoint, oldest first."""
    if not folder.is_dir():
        return []
    matches = ((_STEP_FOLDER.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir())
    return sorted((int(match[1]), path) for match, path in matches if match)


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A hidden folder that becomes `target` when the block ends well and is removed when it does not."""
    temporary = target.with_name(f"{PARTIAL}{target.name}")
    try:
        temporary.mkdir()
        yield temporary
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_folder(target.parent)


def _seal(folder: Path, step: int) -> None:
    """Give every file the usual mode and sync it, then write the manifest that makes the folder a checkpoint."""
    entries, mode = {}, new_file_mode(folder)
    for path in sorted(folder.iterdir()):
        path.chmod(mode)  # safetensors leaves 0600
        _fsync_file(path)
        entries[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"format": FORMAT, "step": step, "files": entries}, indent=1))
    _fsync_file(manifest)
    fsync_folder(folder)


def _fsync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _remove_leftovers(folder: Path) -> None:
    """Remove what a killed save or a killed prune left. The run's lock keeps other writers away."""
    for path in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(path)


def _on_cpu(group: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that share no memory, which safetensors would refuse, in row-major order."""
    import torch

    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in group.items()
    }


def _space(folder: Path, needed: int, error: Exception) -> str:
    if os.strerror(errno.EFBIG) in str(error):  # safetensors' error has no number
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        most = "" if limit == resource.RLIM_INFINITY else f" of {limit:,} bytes (`ulimit -f`)"
        return f"; it needs {needed:,} bytes, more than the limit{most or ' of this disk'} for a file"
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return ""
    return f"; it needs {needed:,} bytes, {free:,} are free"


def _read_group(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from error
