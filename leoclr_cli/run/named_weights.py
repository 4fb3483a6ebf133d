"""Load weights by name, and from folders in timm's layout. Files are untrusted: no pickle is executed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from torch import Tensor

from leoclr.cli.config.sections import AugmentationSettings
from leoclr.cli.run.foreign_weights import HALVES, TRANSFORMED, Architecture, Found, Input
from leoclr.cli.run.layouts import backbone_tensors
from leoclr.cli.run.model_names import CONFIG, WEIGHTS, is_model_folder
from leoclr.cli.run.tensor_files import read_safetensors, read_torch_file
from leoclr.datasets.errors import CheckpointError, SettingsError
from leoclr.datasets.json_text import parse_json_text
from leoclr.datasets.wording import in_a_line

_MAX_CONFIG_BYTES = 1 << 20


def fetch(text: str) -> Path | Found:
    """The folder that a name means, on the disk; or the weights themselves, where they are no folder's.

    Raises:
        CheckpointError: There is nothing of this name, or it cannot be fetched.
        SettingsError: An extra is not installed.
    """
    scheme, _, name = text.partition(":")
    if scheme == "torchvision":
        return _torchvision(name)
    folder = {"local-dir": Path, "hf-hub": _hub, "timm": _timm}[scheme](name)
    if not is_model_folder(folder):
        raise CheckpointError(f"{text}: {folder} does not hold {CONFIG} and {' or '.join(WEIGHTS)}")
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """The content of a folder's config.json; CheckpointError where it is none of timm's."""
    path = folder / CONFIG
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_CONFIG_BYTES + 1)
        content = parse_json_text(data) if len(data) <= _MAX_CONFIG_BYTES else None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("architecture"), str):
        raise CheckpointError(f"{path} is not the configuration of a timm model: it names no architecture")
    return content


def read_weights(folder: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors in a folder that `is_model_folder`, and names that are left out."""
    path = next(folder / name for name in WEIGHTS if (folder / name).is_file())
    if path.suffix == ".safetensors":
        return backbone_tensors(read_safetensors(path)[0], path)
    return read_torch_file(path)


def described(config: dict[str, Any], folder: Path, backbone: str | None) -> tuple[Architecture, Input]:
    """The architecture that a configuration of timm's names, and the input that it describes.

    Args:
        backbone: The name without `timm:` is taken where the user says it, as for torchvision's ResNets.

    Raises:
        CheckpointError: It needs arguments that leoclr does not give, or describes an input that cannot be.
    """
    name = config["architecture"].partition(".")[0]
    extra = sorted((config.get("model_args") or {}).keys() - {"img_size"})
    if extra:
        raise CheckpointError(f"{folder / CONFIG}: model_args {', '.join(extra)}: leoclr builds {name} without them")
    told = config.get("pretrained_cfg", config)
    usual = AugmentationSettings()
    try:
        size = int(told.get("input_size", (3, 224, 224))[-1])
        mean, std = (
            tuple(float(value) for value in told.get(key, default))
            for key, default in (("mean", usual.mean), ("std", usual.std))
        )
        if size < 1 or len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError("not three means and positive deviations, or no size")
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{folder / CONFIG}: pretrained_cfg is not timm's: {error}") from None
    architecture = Architecture(name if backbone == name else f"timm:{name}")
    stated = "mean" in told or "std" in told
    return architecture, Input(size, (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]), stated)


def _hub(name: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise SettingsError("hf-hub: and timm: need huggingface_hub: pip install 'leoclr-cli[hf]'") from None
    repository, _, revision = name.partition("@")
    problem: Exception | None = None
    try:
        folder = Path(hf_hub_download(repository, CONFIG, revision=revision or None)).parent
    except Exception as error:  # its versions bring HTTP clients of their own, whose errors have no root in common
        raise CheckpointError(f"hf-hub:{name} cannot be fetched: {in_a_line(error)}") from error
    for weights in WEIGHTS:
        try:
            return Path(hf_hub_download(repository, weights, revision=revision or None)).parent
        except Exception as error:
            problem = problem or error
    assert problem is not None
    raise CheckpointError(f"hf-hub:{name}: {folder.name} has no readable {' or '.join(WEIGHTS)}: {in_a_line(problem)}")


def _timm(name: str) -> Path:
    try:
        import timm
    except ImportError:
        raise SettingsError(f"timm:{name} needs timm: pip install 'leoclr-cli[timm]'") from None
    known: Any = timm
    found = known.get_pretrained_cfg(name)
    if found is None or not found.hf_hub_id:
        close = ", ".join(known.list_pretrained(f"{name.partition('.')[0]}*")[:4]) or "none of this name"
        raise CheckpointError(f"timm has no pre-trained weights {name!r} on the hub; it has {close}")
    return _hub(found.hf_hub_id)


def _torchvision(name: str) -> Found:
    import torch
    from torchvision import models

    model, _, tag = name.partition(".")
    try:
        kinds = models.get_model_weights(model)
        weights: Any = kinds[tag] if tag else kinds.DEFAULT
    except (ValueError, KeyError):
        known = ", ".join(weights.name for weights in kinds) if model in models.list_models(models) else "no such model"
        raise CheckpointError(f"torchvision has no weights {name!r}; it has {known}") from None
    file = Path(os.path.basename(urlparse(weights.url).path))
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(weights.url, str(path), file.stem.rpartition("-")[2], progress=False)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"torchvision:{name} cannot be fetched: {in_a_line(error)}") from error
    about = weights.transforms()
    tensors, left_out = read_torch_file(path)
    mean, std = (HALVES, HALVES) if model in TRANSFORMED else (tuple(about.mean), tuple(about.std))
    size = Input(int(about.crop_size[0]), mean, std)
    return Found(tensors, left_out, Architecture(model), size, f"torchvision:{model}.{weights.name}")
