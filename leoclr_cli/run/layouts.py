"""Checkpoint layouts of training tools: the entries of the backbone and their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from leoclr.datasets.errors import CheckpointError
from leoclr.datasets.wording import first_of

# The first that any name begins with is the backbone; what has no such name is left out.
_BACKBONES = (
    re.compile(r"(?:module\.)?encoder_q\."),  # MoCo 1 and 2
    re.compile(r"(?:module\.)?base_encoder\."),  # MoCo 3
    re.compile(r"(?:module\.)?(?:model\.)?backbone\."),  # solo-learn, lightly, OpenSelfSup
    re.compile(r"(?:module\.)?teacher(?:_backbone|\.backbone)\."),  # DINO, lightly
    re.compile(r"(?:module\.)?student(?:_backbone|\.backbone)\."),
    re.compile(r"(?:module\.)?encoder\.(?!layers\.|pos_embedding|ln\.)"),  # SimSiam; the others are torchvision's ViTs
)
_WRAPPED = ("module.", "model.")
_COMPILED = re.compile(r"(?:^|(?<=\.))_orig_mod\.")  # torch.compile puts it before the names of what it wraps
_COUNT = "n_averaged"  # torch.optim.swa_utils.AveragedModel has it beside its "module."
_FEW = 4
_MOST = 8  # names of a summary
# lightly's examples cut a ResNet's classifier off with Sequential(*children[:-1]): its parts have numbers there.
_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


def backbone_tensors(tensors: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The backbone's tensors by its own names, and the names of all others, as they stand in the file.

    Raises:
        CheckpointError: Two networks have the backbone's names, or one of its tensors has no plain values.
    """
    names = _unwrapped({name: _COMPILED.sub("", name) for name in tensors if name != _COUNT})
    own, prefixes = names, dict.fromkeys(names, "")
    for pattern in _BACKBONES:
        found = {name: match for name, inner in names.items() if (match := pattern.match(inner))}
        if found:
            own = {name: names[name][match.end() :] for name, match in found.items()}
            prefixes = {name: match[0] for name, match in found.items()}
            break
    return _named(_one_network(tensors, own, prefixes, path)), sorted(tensors.keys() - own.keys())


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor is a plain one: not sparse, not nested, not on the meta device."""
    return tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_nested


def _unwrapped(names: dict[str, str]) -> dict[str, str]:
    """Names without what all of them begin with."""
    for prefix in _WRAPPED * 2:
        if all(name.startswith(prefix) for name in names.values()):
            names = {name: inner.removeprefix(prefix) for name, inner in names.items()}
    return names


def _one_network(
    tensors: Mapping[str, Tensor], own: Mapping[str, str], prefixes: Mapping[str, str], path: Path
) -> dict[str, Tensor]:
    """Tensors by their own names. A network may stand there twice, as where two modules share it; two may not.

    Args:
        own: The own name of each name in the file.
        prefixes: What stands before it.
    """
    seen: dict[str, str] = {}
    parts: dict[str, set[str]] = {}
    for name, inner in own.items():
        if not has_values(tensors[name]):
            raise CheckpointError(f"{path}: {name} is a {_kind(tensors[name])} tensor; save it with its values, dense")
        first = seen.setdefault(inner, name)
        parts.setdefault(prefixes[name], set()).add(inner)
        if first != name and not _same(tensors[first], tensors[name]):
            raise CheckpointError(f"{path} holds two networks, as {first} and {name} tell; save one of them alone")
    alike = list(parts)
    if any(parts[prefix] != parts[alike[0]] for prefix in alike):
        raise CheckpointError(f"{path} holds two networks, {'* and '.join(alike)}*; save one of them alone")
    return {inner: tensors[name] for inner, name in seen.items()}


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _kind(tensor: Tensor) -> str:
    return "meta" if tensor.is_meta else "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")


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
