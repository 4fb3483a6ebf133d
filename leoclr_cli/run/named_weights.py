"""Load weights by name, and from folders in timm's layout. Files are untrusted: no pickle is executed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from leoclr.backends.settings import Fraction, PositiveFraction
from leoclr.cli.config.sections import AugmentationSettings, Side
from leoclr.cli.run.foreign_weights import HALVES, TRANSFORMED, Architecture, Found, Input
from leoclr.cli.run.layouts import backbone_tensors
from leoclr.cli.run.model_names import CONFIG, WEIGHTS, is_model_folder
from leoclr.cli.run.tensor_files import read_safetensors, read_torch_file
from leoclr.datasets.errors import CheckpointError, SettingsError, first_fault
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
    arguments = _model_args(config, folder)
    # timm writes these for every model; `check_pooling` looks at global_pool, as its default is the network's.
    usual = {"img_size", "num_classes", "global_pool"} | ({"in_chans"} if arguments.get("in_chans") == 3 else set())
    _refuse(sorted(arguments.keys() - usual), name, folder)
    told = config.get("pretrained_cfg", config)
    try:
        found = _Told.model_validate(told)
    except ValidationError as error:
        raise CheckpointError(f"{folder / CONFIG}: pretrained_cfg is not timm's: {first_fault(error)}") from None
    architecture = Architecture(name if backbone == name else f"timm:{name}")
    return architecture, Input(found.input_size[-1], found.mean, found.std, stated="mean" in told or "std" in told)


def check_pooling(config: dict[str, Any], folder: Path, network: nn.Module) -> None:
    """Raise CheckpointError where a configuration asks for another pooling than that of the network as it was built."""
    head = getattr(network, "head", None)
    places = (getattr(head, "global_pool", None), getattr(head, "pool_type", None), getattr(network, "global_pool", ""))
    kinds = (getattr(place, "pool_type", place) for place in places)
    own = next((kind for kind in kinds if kind and isinstance(kind, str)), "avg")  # torchvision's do not say
    if _model_args(config, folder).get("global_pool", own) != own:
        _refuse(["global_pool"], config["architecture"].partition(".")[0], folder)


class _Told(BaseModel):
    """What of timm's `pretrained_cfg` is read, within the bounds of the settings."""

    model_config = ConfigDict(allow_inf_nan=False)

    input_size: tuple[int, Side, Side] = (3, 224, 224)
    mean: tuple[Fraction, Fraction, Fraction] = AugmentationSettings().mean
    std: tuple[PositiveFraction, PositiveFraction, PositiveFraction] = AugmentationSettings().std


def _model_args(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    arguments = config.get("model_args") or {}
    if not isinstance(arguments, dict):
        raise CheckpointError(f"{folder / CONFIG}: model_args must be an object, such as {{}}")
    return arguments


def _refuse(arguments: list[str], name: str, folder: Path) -> None:
    if arguments:
        listed = ", ".join(arguments)
        raise CheckpointError(f"{folder / CONFIG}: model_args {listed}: leoclr builds {name} without them")


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
