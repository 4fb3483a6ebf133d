"""Files of tensors that other programs wrote: read without unpickling, and only where they are undamaged.

A state dict may be at the top or under "state_dict", "model" or, of DINO's two networks, "teacher" or else "student";
`leoclr.cli.run.layouts` has the names of its parts.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from leoclr.cli.run.layouts import backbone_tensors
from leoclr.cli.terminal import say
from leoclr.datasets.errors import CheckpointError
from leoclr.datasets.wording import in_bytes, printable

_WRAPPERS = ("state_dict", "model", "teacher", "student")
_ZIP = b"PK\x03\x04"  # by which torch, too, tells its format from the older one
# What training tools pickle beside the tensors: settings and records, which are replaced unseen.
_RECORDS = ("argparse", "lightning", "lightning_fabric", "numpy", "omegaconf", "pathlib", "pytorch_lightning", "typing")


class _Nothing:
    """Stands for an object that is not wanted: takes any arguments and any state, keeps and does nothing."""

    def __new__(cls, *arguments: Any, **named: Any) -> _Nothing:
        return object.__new__(cls)

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """Nothing."""

    def __setstate__(self, state: Any) -> None:
        """Nothing."""


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header metadata of a safetensors file.

    Raises:
        CheckpointError: It is not one.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from error


def read_torch_file(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The backbone's tensors in a file that `torch.save` wrote, and the names of the others.

    torch's restricted unpickler reads it. Records of training tools beside the tensors (Lightning, OmegaConf, NumPy)
    are replaced by an empty object; no class of theirs is imported.

    Raises:
        CheckpointError: It cannot be read, holds no state dict, or pickles anything that is not a tensor, which is
            never executed.
    """
    try:
        _refuse_damaged(path)
        # Explicit: TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD in the environment would turn the default off.
        with warnings.catch_warnings(), torch.serialization.safe_globals(_records(path)):
            warnings.simplefilter("ignore")  # of pickles that it refuses next
            content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file raises nearly any type
        asked = re.search(r"GLOBAL (\S+) ", str(error))
        reason = f"; it asks to run {asked[1]}" if asked else ""
        raise CheckpointError(f"{path} is refused: not a file of tensors that torch.save wrote{reason}") from error
    others = []
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            others += [f"{key}.{name}" for key, value in content.items() if key != wrapper for name in _tensors(value)]
            content = content[wrapper]
            if wrapper == "student":
                say(f"{path}: the weights are its student's; it holds no teacher")
    tensors, left_out = backbone_tensors(_checked(content, path), path)
    return tensors, [*others, *left_out]


def _tensors(value: Any) -> list[str]:
    """Names of tensors in what lies beside the state dict that is read: a second network, as a moving average."""
    if not isinstance(value, Mapping):
        return []
    return [name for name, tensor in value.items() if isinstance(name, str) and isinstance(tensor, Tensor)]


def _records(path: Path) -> list[Any]:
    """An empty object for each class of a training tool that the file names."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # not a zip file, or damaged: whoever loads it says so
        return []
    return [(type(name, (_Nothing,), {}), name) for name in names if name.partition(".")[0] in _RECORDS]


def _refuse_damaged(path: Path) -> None:
    """Compare the records of a zip file with their CRC-32, which torch does not; older formats have none.

    Raises:
        CheckpointError: One differs, or they are larger than the file, as none is that `torch.save` wrote.
    """
    with path.open("rb") as file:
        if file.read(len(_ZIP)) != _ZIP:
            return
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        stated, size = sum(record.file_size for record in records), path.stat().st_size
        if stated > size:
            raise CheckpointError(
                f"{path} is refused: its records are {in_bytes(stated)} in a file of {in_bytes(size)}; "
                "torch.save writes them uncompressed"
            )
        checked = any(record.CRC for record in records)  # torch.serialization.set_crc32_options(False) leaves them at 0
        if checked and (damaged := archive.testzip()) is not None:
            raise CheckpointError(
                f"{path} is damaged: {printable(damaged)} does not have its CRC-32; copy or download the file again"
            )


def _checked(content: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path} holds no state dict (a mapping from names to tensors)")
    for name, value in content.items():
        if not isinstance(name, str):
            wrong = f"its names are text, and {name!r} is {type(name).__name__}; save model.state_dict()"
        elif isinstance(value, _Nothing):
            tool = type(value).__name__.partition(".")[0]
            wrong = f"{name!r} is an object of {tool}, not a tensor"
            wrong += "; save torch.from_numpy of the arrays" if tool == "numpy" else "; save model.state_dict()"
        elif not isinstance(value, Tensor):
            wrong = f"{name!r} is {type(value).__name__}, not a tensor; save model.state_dict()"
        else:
            continue
        raise CheckpointError(f"{path} holds no state dict: {wrong}")
    return dict(content)
