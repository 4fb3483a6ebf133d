"""Weights of other programs: their architecture is inferred from names and shapes, and all of it must be there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from leoclr.backends.settings import STANDARD_WIDTH
from leoclr.datasets.errors import CheckpointError
from leoclr.datasets.wording import first_of

_HEADS = (
    *("fc.", "classifier.", "head.", "heads.", "projection_head.", "projector.", "predictor.", "prototypes."),
    *("head_dist.", "aux1.", "aux2.", "AuxLogits."),  # DeiT's second head; GoogLeNet's and Inception's on the way
)
HALVES = (0.5, 0.5, 0.5)
# torchvision's own weights of these turn ImageNet's normalisation into mean and deviation 0.5 first (transform_input).
TRANSFORMED = ("googlenet", "inception_v3")
_COUNTER = "num_batches_tracked"
_MOST = 8  # names of a listing
# (whether the blocks are bottlenecks, blocks in each stage) -> torchvision's name
_RESNETS: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}


@dataclass(frozen=True)
class Input:
    """What a network was trained on: side of its images in pixels, mean and deviation per channel in 0..1, and whether
    its file states these two."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    stated: bool = True


@dataclass(frozen=True)
class Architecture:
    """The arguments of `leoclr.backends.networks.backbones.build_backbone`."""

    name: str
    stem: str = "imagenet"
    width: int = STANDARD_WIDTH

    def __str__(self) -> str:
        return f"{self.name} ({self.stem} stem, width {self.width})"


@dataclass(frozen=True, eq=False)
class Found:
    """Weights with all that is needed to build their network; `left_out` are names in the file that are not its."""

    tensors: dict[str, Tensor]
    left_out: list[str]
    architecture: Architecture
    input: Input
    source: str


def deduce(tensors: Mapping[str, Tensor], path: Path, name: str | None) -> Architecture:
    """The architecture that a state dict is of.

    Args:
        tensors: The state dict, without prefixes.
        path: Where it comes from, for the message.
        name: The backbone, where the user named it; None deduces plain ResNets.

    Raises:
        CheckpointError: It cannot be deduced and is not given.
    """
    resnet = _deduce_resnet(tensors)
    if name is not None:
        return Architecture(name, resnet.stem, resnet.width) if resnet and resnet.name == name else Architecture(name)
    if resnet is None:
        raise CheckpointError(
            f"{path} does not tell its architecture; name it with --backbone "
            f"(it holds {first_of(sorted(tensors), _MOST)})"
        )
    return resnet


def _deduce_resnet(tensors: Mapping[str, Tensor]) -> Architecture | None:
    stem, inner = tensors.get("conv1.weight"), tensors.get("layer1.0.conv2.weight")
    if stem is None or inner is None or stem.dim() != 4:
        return None
    depths = tuple(len({name.split(".")[1] for name in tensors if name.startswith(f"layer{n}.")}) for n in (1, 2, 3, 4))
    name = _RESNETS.get(("layer1.0.conv3.weight" in tensors, depths))
    width, _, _, kernel = stem.shape
    # ResNeXt and wide ResNets have the same depths.
    if name is None or inner.shape != (width, width, 3, 3) or kernel not in (3, 7):
        return None
    return Architecture(name, "imagenet" if kernel == 7 else "cifar", width)


def untold(architecture: Architecture, left_out: Sequence[str]) -> str | None:
    """What names and shapes leave open and is taken for granted, for the user to know."""
    if architecture.stem == "cifar" and left_out:
        return "its CIFAR stem is taken to pad by 1 pixel; solo-learn's pads by 2, and its features differ"
    if architecture.name in TRANSFORMED:
        name = architecture.name
        return (
            f"taken to be trained on images of ImageNet's mean and deviation; for torchvision's own weights, of 0.5, "
            f"name torchvision:{name}"
        )
    return None


def embedded_size(tensors: Mapping[str, Tensor]) -> int | None:
    """Side in pixels of the images that the position embedding of one of timm's ViTs is for; None where there is none.

    Args:
        tensors: Its state dict. The embedding holds class and register tokens beside the patches, or patches alone.
    """
    places, patches = tensors.get("pos_embed"), tensors.get("patch_embed.proj.weight")
    if places is None or patches is None or places.dim() != 3 or patches.dim() != 4:
        return None
    if patches.shape[1] != 3:  # patches of the output of convolutions
        return None
    tokens = sum(tensors[name].shape[1] for name in ("cls_token", "dist_token", "reg_token") if name in tensors)
    for count in (places.shape[1] - tokens, places.shape[1]):
        side = math.isqrt(max(0, count))
        if side and side**2 == count:
            return side * patches.shape[-1]
    return None


def fitting_tensors(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path, architecture: Architecture
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors a backbone wants, and the names of the classifier's or projector's, which it has no place for.

    BatchNorm's step counters, which old files lack, are taken from `expected`; where all of a file was cast, they are
    cast back.

    Raises:
        CheckpointError: Lists what is missing, unexpected, or of another shape or type; nothing is ever loaded in part.
    """
    # timm's gemma4_vit and others: their own names look like SimSiam's, without which they are handed over.
    tensors = {inner if (inner := f"encoder.{name}") in expected else name: tensors[name] for name in tensors}
    left_out = sorted(name for name in tensors.keys() - expected.keys() if name.startswith(_HEADS))
    counters = {name: tensor for name, tensor in expected.items() if name.endswith(_COUNTER)}
    given = counters | {name: tensor for name, tensor in tensors.items() if name not in left_out}
    given |= {name: _as_counter(given[name], counter) for name, counter in counters.items()}
    both = [(name, given[name], tensor) for name, tensor in sorted(expected.items()) if name in given]
    shapes = [f"{name} {_shape(had)} instead of {_shape(want)}" for name, had, want in both if had.shape != want.shape]
    types = [
        f"{name} {_type(had)} instead of {_type(want)}"
        for name, had, want in both
        if had.shape == want.shape and not _fits(had.dtype, want.dtype)
    ]
    problems = {
        "missing": sorted(expected.keys() - given.keys()),
        "unexpected": sorted(given.keys() - expected.keys()),
        "of another shape": shapes,
        "of another type": types,
    }
    found = [f"{len(names)} {problem}: {first_of(names, _MOST)}" for problem, names in problems.items() if names]
    if found:
        raise CheckpointError(f"{path} does not fit {architecture}; {'; '.join(found)}")
    return given, left_out


def _as_counter(given: Tensor, expected: Tensor) -> Tensor:
    """A counter of steps in the type it should have; `expected` where a type of 16 bits made the number infinite."""
    if given.shape != expected.shape or given.is_complex() or given.is_quantized:
        return given
    return given.to(expected.dtype) if math.isfinite(given.double().item()) else expected


def _fits(given: torch.dtype, expected: torch.dtype) -> bool:
    """Whether numbers of a type may be loaded in place of another: any floating-point ones for each other."""
    return given == expected or (given.is_floating_point and expected.is_floating_point)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
