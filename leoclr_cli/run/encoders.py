"""Trained encoders, wherever they lie: a run, a checkpoint, an exported file, or another program's weights."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from leoclr.backends.networks.backbones import Backbone, build_backbone
from leoclr.backends.settings import Strict
from leoclr.backends.weights import weights_digest
from leoclr.cli.config.sections import AugmentationSettings, DataSettings, EncoderSettings
from leoclr.cli.run.checkpoint import Sound
from leoclr.cli.run.folder import RunFolder, find_checkpoint
from leoclr.cli.run.foreign_weights import Architecture, deduce, fit, listing, read_safetensors, read_torch_file
from leoclr.cli.terminal import say
from leoclr.datasets.errors import CheckpointError
from leoclr.evals.features.preprocessing import ResizeRule, standard_rule

_USUAL_PLACE = "encoder.backbone"  # of the backbone in checkpoints that do not say
_HEADER = "leoclr"
Triple = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class LoadedEncoder:
    """A backbone and what is needed to feed it.

    Attributes:
        backbone: On the CPU, in evaluation mode, without gradients.
        name, stem, width: The arguments it was built with.
        image_size: Side of the square images it was trained on, in pixels.
        mean, std: Per channel, of images scaled to 0..1, for the normalisation it was trained with.
        digest: SHA-256 of its weights, in hexadecimal.
        source: Where it comes from, for a person to read.
        run: The run folder it belongs to, if any.
    """

    backbone: Backbone
    name: str
    stem: str
    width: int
    image_size: int
    mean: Triple
    std: Triple
    digest: str
    source: str
    run: Path | None

    @property
    def resize(self) -> ResizeRule:
        """How a test image becomes the square that the encoder is fed with."""
        return standard_rule(self.image_size)


class Header(Strict):
    """What an exported safetensors file says of itself, as JSON in its metadata."""

    version: str
    digest: str
    backbone: str
    stem: Literal["imagenet", "cifar"]
    width: int
    image_size: int
    mean: Triple
    std: Triple
    resize: ResizeRule | None = None  # for other programs; files before version 0.2 do not say


@dataclass(frozen=True)
class _Preprocessing:
    image_size: int
    mean: Triple
    std: Triple


def load_encoder(path: Path | None, backbone: str | None = None) -> LoadedEncoder:
    """Load the encoder that a command's argument means.

    Args:
        path: A run, a checkpoint, an exported safetensors file or a state dict (.pth); None takes the newest run.
        backbone: Architecture of a state dict that does not tell it.

    Raises:
        CheckpointError: It is missing, damaged, pickles more than tensors, or does not fit its architecture (the
            keys are listed). Nothing is loaded in part.
    """
    found = find_checkpoint(path)
    loaded = _from_checkpoint(found) if isinstance(found, Sound) else _from_file(found, backbone)
    if backbone is not None and backbone != loaded.name:
        raise CheckpointError(f"{loaded.source} says itself that it is {loaded.name}, not {backbone}")
    return loaded


def fresh_encoder(like: LoadedEncoder, seed: int) -> LoadedEncoder:
    """The untrained counterpart of an encoder: same architecture and preprocessing, random weights from `seed`."""
    architecture = Architecture(like.name, like.stem, like.width)
    preprocessing = _Preprocessing(like.image_size, like.mean, like.std)
    return _finished(_build(architecture, seed), architecture, preprocessing, f"untrained, seed {seed}", None)


def header_of(encoder: LoadedEncoder) -> Header:
    """What an exported file says of itself."""
    return Header(
        version=version("leoclr-cli"),
        digest=encoder.digest,
        backbone=encoder.name,
        stem="cifar" if encoder.stem == "cifar" else "imagenet",
        width=encoder.width,
        image_size=encoder.image_size,
        mean=encoder.mean,
        std=encoder.std,
        resize=encoder.resize,
    )


def write_encoder(encoder: LoadedEncoder, path: Path) -> None:
    """Write a safetensors file that `load_encoder` reads; its tensors have the names of the library's model."""
    # One key alone: safetensors writes several in any order, and the same encoder is to give the same bytes.
    save_file(plain_tensors(encoder), path, metadata={_HEADER: header_of(encoder).model_dump_json()})


def plain_tensors(encoder: LoadedEncoder) -> dict[str, Tensor]:
    """The weights on the CPU, contiguous."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.backbone.state_dict().items()}


def read_encoder(path: Path) -> LoadedEncoder:
    """Read what `write_encoder` wrote.

    Raises:
        CheckpointError: It is damaged or of another kind.
    """
    tensors, metadata = read_safetensors(path)
    return _from_exported(path, tensors, metadata)


def _from_checkpoint(sound: Sound) -> LoadedEncoder:
    path, checkpoint = sound.path, sound.load(groups=("model",))
    try:
        recorded = checkpoint.state["settings"]  # the method itself need not be installed
        encoder = EncoderSettings.model_validate(recorded["encoder"])
        data = DataSettings.model_validate(recorded["data"])
        augmentation = AugmentationSettings.model_validate(recorded["augmentation"])
    except (KeyError, TypeError, ValidationError) as error:
        raise CheckpointError(f"{path / 'state.json'} holds no settings of this version: {_reason(error)}") from error
    model = checkpoint.tensors["model"]
    prefix = f"{checkpoint.state.get('encoder', _USUAL_PLACE)}."
    tensors = {name.removeprefix(prefix): model[name] for name in model if name.startswith(prefix)}
    architecture = Architecture(encoder.backbone, encoder.stem, encoder.width)
    preprocessing = _Preprocessing(data.image_size, augmentation.mean, augmentation.std)
    run = path.resolve().parent.parent
    is_in_run = RunFolder(run).settings_file.exists()
    return _filled(architecture, preprocessing, tensors, path, run if is_in_run else None)


def _from_file(path: Path, backbone: str | None) -> LoadedEncoder:
    if path.suffix == ".safetensors":
        tensors, metadata = read_safetensors(path)
        if _HEADER in metadata:
            return _from_exported(path, tensors, metadata)
    else:
        tensors = read_torch_file(path)
    architecture = deduce(tensors, path, backbone)
    size = DataSettings().image_size if architecture.stem == "imagenet" else 32
    usual = AugmentationSettings()
    return _filled(architecture, _Preprocessing(size, usual.mean, usual.std), tensors, path, None)


def _from_exported(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> LoadedEncoder:
    try:
        header = Header.model_validate_json(metadata[_HEADER])
    except (KeyError, ValidationError) as error:
        raise CheckpointError(f"{path} has no readable leoclr header: {_reason(error)}") from error
    architecture = Architecture(header.backbone, header.stem, header.width)
    preprocessing = _Preprocessing(header.image_size, header.mean, header.std)
    loaded = _filled(architecture, preprocessing, tensors, path, None)
    if loaded.digest != header.digest:
        raise CheckpointError(f"{path} has changed since it was exported (the SHA-256 of its weights differs)")
    return loaded


def _filled(
    architecture: Architecture, preprocessing: _Preprocessing, tensors: dict[str, Tensor], path: Path, run: Path | None
) -> LoadedEncoder:
    backbone = _build(architecture, seed=0)
    fitting, left_out = fit(tensors, backbone.state_dict(), path, architecture)
    if left_out:
        say(f"{path}: left out {listing(left_out)}, which are not the backbone's")
    backbone.load_state_dict(fitting)
    return _finished(backbone, architecture, preprocessing, str(path), run)


def _finished(
    backbone: Backbone, architecture: Architecture, preprocessing: _Preprocessing, source: str, run: Path | None
) -> LoadedEncoder:
    backbone.eval().requires_grad_(False)
    return LoadedEncoder(
        backbone=backbone,
        name=architecture.name,
        stem=architecture.stem,
        width=architecture.width,
        image_size=preprocessing.image_size,
        mean=preprocessing.mean,
        std=preprocessing.std,
        digest=weights_digest(backbone.state_dict()),
        source=source,
        run=run,
    )


def _build(architecture: Architecture, seed: int) -> Backbone:
    """A backbone with weights from `seed`; the global generator stays where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return build_backbone(architecture.name, architecture.stem, architecture.width)
        except ValueError as error:
            raise CheckpointError(f"cannot build {architecture}: {error}") from None


def _reason(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return f"{error} is missing"
    first: Any = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
