"""Checkpoint layouts of training tools: the entries of the backbone and their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from leoclr.datasets.wording import first_of

# The first that any name begins with is the backbone; what has no such name is left out.
_BACKBONES = (
    re.compile(r"(?:module\.)?encoder_q\."),  # MoCo 1 and 2
    re.compile(r"(?:module\.)?base_encoder\."),  # MoCo 3
    re.compile(r"(?:module\.)?(?:model\.)?backbone\."),  # solo-learn, lightly, OpenSelfSup
    re.compile(r"(?:module\.)?student(?:_backbone|\.backbone)\."),  # DINO, lightly
    re.compile(r"(?:module\.)?encoder\.(?!layers\.|pos_embedding|ln\.)"),  # SimSiam; the others are torchvision's ViTs
)
_WRAPPED = ("module.", "model.")
_COMPILED = re.compile(r"(?:^|(?<=\.))_orig_mod\.")  # torch.compile puts it before the names of what it wraps
_FEW = 4
_MOST = 8  # names of a summary
# lightly's examples cut a ResNet's classifier off with Sequential(*children[:-1]): its parts have numbers there.
_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


def backbone_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The backbone's tensors by its own names, and the names of all others, as they stand in the file."""
    tensors = {_COMPILED.sub("", name): tensor for name, tensor in tensors.items()}
    for pattern in _BACKBONES:
        ends = {name: match.end() for name in tensors if (match := pattern.match(name))}
        if ends:
            own = {name[end:]: tensors[name] for name, end in ends.items()}
            return _named(own), sorted(tensors.keys() - ends.keys())
    for prefix in _WRAPPED:
        if all(name.startswith(prefix) for name in tensors):
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, []
    return dict(tensors), []


def _named(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    firsts = {name.partition(".")[0] for name in tensors}
    if not firsts <= _CHILDREN.keys() or "0" not in firsts:
        return tensors
    return {
        f"{_CHILDREN[first]}.{rest}": tensor
        for name, tensor in tensors.items()
        for first, _, rest in [name.partition(".")]
    }


def summary(names: Iterable[str]) -> str:
    """Names, many that begin alike as one: "fc.bias, fc.weight, module.encoder_k (161 tensors)"."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(_part(name), []).append(name)
    words = [
        word for part, own in groups.items() for word in (own if len(own) <= _FEW else [f"{part} ({len(own)} tensors)"])
    ]
    return first_of(words, _MOST)


def _part(name: str) -> str:
    parts: Sequence[str] = name.split(".")
    return ".".join(parts[:2] if parts[0] in ("module", "model") else parts[:1])
