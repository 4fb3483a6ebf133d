"""Load trained encoders from a run, a checkpoint, an exported file, or another program's weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from leoclr.backends.networks.backbones import Backbone, build_backbone, refused_size, usual_size
from leoclr.backends.settings import Strict
from leoclr.backends.weights import weights_digest
from leoclr.cli.config.sections import AugmentationSettings, DataSettings, EncoderSettings
from leoclr.cli.run.checkpoint import Sound
from leoclr.cli.run.folder import RunFolder, find_checkpoint
from leoclr.cli.run.foreign_weights import (
    Architecture,
    Found,
    Input,
    deduce,
    embedded_size,
    fitting_tensors,
    untold,
)
from leoclr.cli.run.layouts import backbone_tensors, summary
from leoclr.cli.run.model_names import is_named
from leoclr.cli.run.named_weights import check_pooling, described, fetch, read_config, read_weights
from leoclr.cli.run.tensor_files import read_safetensors, read_torch_file
from leoclr.cli.run.weights_only import USUAL_PLACE, weights_group
from leoclr.cli.terminal import say
from leoclr.datasets.errors import CheckpointError, first_fault
from leoclr.evals.features.preprocessing import Preprocessing, ResizeRule, TestView, standard_rule, standard_view

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
        states_normalisation: Whether mean and std are those of the source; else they are ImageNet's.
        left_out: Names of the source that are not the backbone's (projector, classifier, a second encoder).
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
    states_normalisation: bool
    left_out: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """What decides its features: networks of equal weights may compute otherwise (padding, activations)."""
        return f"{self.digest} {self.name} {self.stem} {self.width}"

    def at_size(self, image_size: int | None) -> LoadedEncoder:
        """The encoder for images of another size; None is its own.

        Raises:
            CheckpointError: Its network does not take them.
        """
        if image_size is None or image_size == self.image_size:
            return self
        if reason := refused_size(self.backbone, self.name, self.image_size, image_size):
            raise CheckpointError(f"--image-size {image_size}: {self.name} {reason}")
        return replace(self, image_size=image_size)

    @property
    def view(self) -> TestView:
        """How the images of a test become its input, but for the normalisation."""
        return standard_view(self.image_size)

    @property
    def preprocessing(self) -> Preprocessing:
        """How the images of a test become its input."""
        return Preprocessing(self.view, self.mean, self.std)

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


def load_encoder(path: Path | str | None, backbone: str | None = None) -> LoadedEncoder:
    """Load the encoder that a command's argument means.

    Args:
        path: A run, a checkpoint, an exported file or folder, or a state dict (.pth); a name of weights that are
            elsewhere (`hf-hub:`, `timm:`, `torchvision:`; see `leoclr.cli.run.model_names`); None takes the newest run.
        backbone: Architecture of a state dict that does not tell it.

    Raises:
        CheckpointError: It is missing, damaged, pickles more than tensors, or does not fit its architecture (the
            keys are listed). Nothing is loaded in part.
    """
    loaded = _loaded(find_checkpoint(Path(path) if path is not None else None), backbone)
    if backbone is not None and backbone != loaded.name:
        raise CheckpointError(f"{loaded.source} says itself that it is {loaded.name}, not {backbone}")
    if loaded.left_out:
        say(f"{loaded.source}: left out {summary(loaded.left_out)}, which are not the backbone's")
    return loaded


def _loaded(found: Sound | Path, backbone: str | None) -> LoadedEncoder:
    if isinstance(found, Sound):
        return _from_checkpoint(found)
    if is_named(str(found)):
        fetched = fetch(str(found))
        return _of(fetched) if isinstance(fetched, Found) else replace(_loaded(fetched, backbone), source=str(found))
    return _from_folder(found, backbone) if found.is_dir() else _from_file(found, backbone)


def fresh_encoder(like: LoadedEncoder, seed: int) -> LoadedEncoder:
    """The untrained counterpart of an encoder: same architecture and preprocessing, random weights from `seed`."""
    architecture = Architecture(like.name, like.stem, like.width)
    input = Input(like.image_size, like.mean, like.std)
    return _finished(_build(architecture, seed, like.image_size), architecture, input, f"untrained, seed {seed}", None)


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
    group = weights_group(sound)
    path, checkpoint = sound.path, sound.load(groups=(group,))
    try:
        recorded = checkpoint.state["settings"]  # the method itself need not be installed
        encoder = EncoderSettings.model_validate(recorded["encoder"])
        data = DataSettings.model_validate(recorded["data"])
        augmentation = AugmentationSettings.model_validate(recorded["augmentation"])
    except (KeyError, TypeError, ValidationError) as error:
        raise CheckpointError(f"{path / 'state.json'} holds no settings of this version: {_reason(error)}") from error
    model = checkpoint.tensors[group]
    prefix = f"{checkpoint.state.get('encoder', USUAL_PLACE)}."
    tensors = {name.removeprefix(prefix): model[name] for name in model if name.startswith(prefix)}
    architecture = Architecture(encoder.backbone, encoder.stem, encoder.width)
    input = Input(data.image_size, augmentation.mean, augmentation.std)
    run = path.resolve().parent.parent
    return _filled(architecture, input, tensors, path, run if RunFolder(run).settings_file.exists() else None)


def _from_folder(folder: Path, backbone: str | None) -> LoadedEncoder:
    config = read_config(folder)
    tensors, left_out = read_weights(folder)
    if _HEADER in config:
        return _from_exported(folder, tensors, {_HEADER: json.dumps(config[_HEADER])})
    architecture, input = described(config, folder, backbone)
    loaded = _of(Found(tensors, left_out, architecture, input, str(folder)))
    check_pooling(config, folder, loaded.backbone)
    return loaded


def _of(found: Found) -> LoadedEncoder:
    return _filled(found.architecture, found.input, found.tensors, Path(found.source), None, found.left_out)


def _from_file(path: Path, backbone: str | None) -> LoadedEncoder:
    if path.suffix == ".safetensors":
        tensors, metadata = read_safetensors(path)
        if _HEADER in metadata:
            return _from_exported(path, tensors, metadata)
        tensors, left_out = backbone_tensors(tensors, path)
    else:
        tensors, left_out = read_torch_file(path)
    architecture = deduce(tensors, path, backbone)
    if (unknown := untold(architecture, left_out)) is not None:
        say(f"{path}: {unknown}")
    size = 32 if architecture.stem == "cifar" else embedded_size(tensors) or usual_size(architecture.name)
    usual = AugmentationSettings()
    return _filled(architecture, Input(size, usual.mean, usual.std, stated=False), tensors, path, None, left_out)


def _from_exported(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> LoadedEncoder:
    try:
        header = Header.model_validate_json(metadata[_HEADER])
    except (KeyError, ValidationError) as error:
        raise CheckpointError(f"{path} has no readable leoclr header: {_reason(error)}") from error
    architecture = Architecture(header.backbone, header.stem, header.width)
    input = Input(header.image_size, header.mean, header.std)
    loaded = _filled(architecture, input, tensors, path, None)
    if loaded.digest != header.digest:
        raise CheckpointError(f"{path} has changed since it was exported (the SHA-256 of its weights differs)")
    return loaded


def _filled(
    architecture: Architecture,
    input: Input,
    tensors: dict[str, Tensor],
    path: Path,
    run: Path | None,
    left_out: Sequence[str] = (),
) -> LoadedEncoder:
    backbone = _build(architecture, 0, input.image_size)
    fitting, classifier = fitting_tensors(tensors, backbone.state_dict(), path, architecture)
    backbone.load_state_dict(fitting)
    return replace(_finished(backbone, architecture, input, str(path), run), left_out=(*classifier, *left_out))


def _finished(
    backbone: Backbone, architecture: Architecture, input: Input, source: str, run: Path | None
) -> LoadedEncoder:
    backbone.eval().requires_grad_(False)
    return LoadedEncoder(
        backbone=backbone,
        name=architecture.name,
        stem=architecture.stem,
        width=architecture.width,
        image_size=input.image_size,
        mean=input.mean,
        std=input.std,
        digest=weights_digest(backbone.state_dict()),
        source=source,
        run=run,
        states_normalisation=input.stated,
    )


def _build(architecture: Architecture, seed: int, image_size: int) -> Backbone:
    """A backbone with weights from `seed`; the global generator stays where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return build_backbone(architecture.name, architecture.stem, architecture.width, image_size=image_size)
        except ValueError as error:
            raise CheckpointError(f"cannot build {architecture}: {error}") from None


def _reason(error: Exception) -> str:
    return first_fault(error) if isinstance(error, ValidationError) else f"{error} is missing"
