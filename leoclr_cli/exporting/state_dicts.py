"""Tensor files: leoclr's own, and state dicts for torchvision, timm and Detectron2."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models

from leoclr.backends.settings import STANDARD_WIDTH
from leoclr.cli.exporting.target import Network, Target
from leoclr.cli.exporting.timm_models import arguments, require_timm, timm_name
from leoclr.cli.run.encoders import read_encoder, write_encoder
from leoclr.datasets.errors import CheckpointError


class Safetensors(Target):
    """leoclr's own: weights, architecture and preprocessing in one file."""

    def check(self) -> None:
        """Every encoder fits."""

    def write(self, path: Path) -> None:
        write_encoder(self.encoder, path)

    def open(self, path: Path) -> Network:
        return read_encoder(path).backbone

    def usage(self, path: Path) -> tuple[str, ...]:
        return (
            "from leoclr.api import load_encoder",
            f"model = load_encoder({str(path)!r})  # features of a Pillow image: model(model.preprocess(image)[None])",
        )


class StateDict(Target):
    """What torch.save writes of a library's model, plain tensors only: it loads with weights_only=True."""

    package: str

    def write(self, path: Path) -> None:
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.encoder.backbone.state_dict().items()}
        # Through memory: on a full disk torch.save fails with a RuntimeError that does not say so.
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        path.write_bytes(buffer.getbuffer())

    def refuse_width(self) -> None:
        name, width = self.encoder.name, self.encoder.width
        if width != STANDARD_WIDTH:
            raise CheckpointError(
                f"{self.package}'s {name} has no width {width}; export --format safetensors or onnx instead"
            )

    def adapt_stem(self, network: Any) -> None:
        if self.encoder.stem == "cifar":
            network.conv1 = nn.Conv2d(3, STANDARD_WIDTH, 3, padding=1, bias=False)
            network.maxpool = nn.Identity()

    def stem_usage(self) -> tuple[str, ...]:
        if self.encoder.stem != "cifar":
            return ()
        return (
            f"model.conv1 = torch.nn.Conv2d(3, {STANDARD_WIDTH}, 3, padding=1, bias=False)  # the CIFAR stem",
            "model.maxpool = torch.nn.Identity()",
        )


class Torchvision(StateDict):
    """For torchvision's classifier of the same name, whose last layer stays as it is."""

    package = "torchvision"

    def check(self) -> None:
        if self.encoder.name.startswith("timm:"):
            raise CheckpointError(f"torchvision has no {self.encoder.name}; export --format timm instead")
        self.refuse_width()

    def open(self, path: Path) -> Network:
        name = self.encoder.name
        network: nn.Module = models.get_model(name, weights=None)
        self.adapt_stem(network)
        missing, unexpected = network.load_state_dict(torch.load(path, weights_only=True), strict=False)
        layers = {key.rpartition(".")[0] for key in missing}
        if unexpected or len(layers) != 1:
            raise CheckpointError(f"torchvision's {name} misses {missing} and does not know {unexpected}")
        parent, _, attribute = layers.pop().rpartition(".")
        setattr(network.get_submodule(parent), attribute, nn.Identity())
        return network.eval()

    def usage(self, path: Path) -> tuple[str, ...]:
        return (
            "import torch, torchvision",
            f"model = torchvision.models.{self.encoder.name}()",
            *self.stem_usage(),
            f"model.load_state_dict(torch.load({str(path)!r}, weights_only=True), strict=False)  # not the last layer",
        )


class Timm(StateDict):
    """For timm's model without classifier. Its ResNets have the names and the arithmetic of torchvision's."""

    package = "timm"

    def check(self) -> None:
        timm_name(self.encoder)
        self.refuse_width()
        require_timm("timm")

    def open(self, path: Path) -> Network:
        import timm

        own = arguments(self.encoder)
        network: nn.Module = timm.create_model(timm_name(self.encoder), pretrained=False, num_classes=0, **own)
        self.adapt_stem(network)
        network.load_state_dict(torch.load(path, weights_only=True))
        return network.eval()

    def usage(self, path: Path) -> tuple[str, ...]:
        told = "".join(f", {key}={value}" for key, value in arguments(self.encoder).items())
        return (
            "import timm, torch",
            f'model = timm.create_model("{timm_name(self.encoder)}", num_classes=0{told})',
            *self.stem_usage(),
            f"model.load_state_dict(torch.load({str(path)!r}, weights_only=True))",
        )


class Detectron2(Torchvision):
    """For Detectron2's ResNets, in a file that its checkpointer matches with a detector by name, whether the body is C4
    or FPN. The check runs the weights in torchvision's model under their old names, as Detectron2 is not on PyPI."""

    package = "Detectron2"

    def check(self) -> None:
        name, stem = self.encoder.name, self.encoder.stem
        if not re.fullmatch(r"resnet\d+", name) or stem != "imagenet":
            raise CheckpointError(f"Detectron2 has plain ResNets with the imagenet stem, not {name} with stem {stem}")
        self.refuse_width()

    def write(self, path: Path) -> None:
        tensors = self.encoder.backbone.state_dict()
        model = {
            _detectron2_name(name): tensor.cpu().contiguous()
            for name, tensor in tensors.items()
            if not name.endswith("num_batches_tracked")  # Detectron2's frozen BatchNorm has none
        }
        buffer = io.BytesIO()
        torch.save({"model": model, "matching_heuristics": True, "__author__": "leoclr"}, buffer)
        path.write_bytes(buffer.getbuffer())

    def open(self, path: Path) -> Network:
        network: Any = models.get_model(self.encoder.name, weights=None)
        network.fc = nn.Identity()
        stored = torch.load(path, weights_only=True)["model"]
        old = {_detectron2_name(name): name for name in network.state_dict() if "num_batches" not in name}
        if stored.keys() != old.keys():
            raise CheckpointError(f"Detectron2's names do not fit: {sorted(stored.keys() ^ old.keys())[:5]}")
        network.load_state_dict({old[name]: tensor for name, tensor in stored.items()}, strict=False)
        return network.eval()  # type: ignore[no-any-return]

    def usage(self, path: Path) -> tuple[str, ...]:
        mean, std = ([round(255 * value, 3) for value in values] for values in (self.encoder.mean, self.encoder.std))
        return (
            "from detectron2.config import get_cfg",
            "cfg = get_cfg()",
            f"cfg.MODEL.WEIGHTS = {str(path)!r}",
            'cfg.INPUT.FORMAT = "RGB"',
            f"cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = {mean}, {std}",
            f"cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.STRIDE_IN_1X1 = {self.encoder.name[6:]}, False",
            'cfg.MODEL.RESNETS.NORM, cfg.MODEL.BACKBONE.FREEZE_AT = "SyncBN", 0  # as the paper and MoCo fine-tune',
        )


def _detectron2_name(name: str) -> str:
    """`layer1.0.downsample.1.weight` as `res2.0.shortcut.norm.weight`, `bn1.bias` as `stem.conv1.norm.bias`."""
    name = re.sub(r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}", name)
    name = name if name.startswith("res") else f"stem.{name}"
    name = re.sub(r"\bbn(\d)", r"conv\1.norm", name)
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
