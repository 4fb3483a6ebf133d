"""Optimizers, their parameter groups, and the learning-rate schedule."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from leoclr.backends.method import Method, ParameterGroup, Progress
from leoclr.backends.networks.depth import layers
from leoclr.backends.optimizers import LARS
from leoclr.cli.config.sections import OptimizerSettings


def learning_rate(step: int, steps: int, warmup_steps: int, peak: float, final: float = 0.0) -> float:
    """The rate of a step (from 0): linear from peak / warmup_steps up to `peak`, then half a cosine.

    Args:
        final: Share of the peak that the cosine ends at.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    height = 0.5 * (1 + math.cos(math.pi * progress))
    return peak * height if final == 0 else peak * (final + (1 - final) * height)


def build_optimizer(method: Method, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """The optimizer for what of a method is trained, with the method's groups of parameters.

    SGD decays every parameter, as MoCo and the paper do. AdamW and LARS leave out biases and normalisation, and LARS
    does not adapt them either (arXiv 2002.05709, appendix B.8).
    """
    groups = list(_groups(method, settings.name != "sgd", settings.layer_decay))
    if settings.name == "sgd":
        sgd = torch.optim.SGD(
            groups, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay, fused=True
        )
        if settings.momentum:  # else torch leaves its memory unwritten where fp16 overflows in the first step
            for group in sgd.param_groups:
                for parameter in group["params"]:
                    sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, settings.lr, weight_decay=settings.weight_decay, fused=True)
    for group in groups:
        if group["vectors"]:
            group |= {"trust": 0.0, "scale": group["scale"] * settings.vector_lr}
    return LARS(
        groups, settings.lr, settings.momentum, settings.weight_decay, trust=settings.trust, clip=settings.trust_clip
    )


def _groups(method: Method, leave_out_vectors: bool, layer_decay: float) -> Iterator[dict[str, Any]]:
    """torch's parameter groups: by the method's group, and matrices before vectors where those are told apart.

    Each has the `names` of its parameters, in `group` the number of the method's group, or -1, and in `scale` the
    factor of its rate that layer-wise decay gives.
    """
    found: dict[tuple[bool, int, float], dict[str, Any]] = {}
    scales, embeddings = _layer_scales(method, layer_decay), _embeddings(method)
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            vectors = leave_out_vectors and (parameter.ndim <= 1 or name in embeddings)
            number, scale = _group_of(name, method.groups), scales.get(name, 1.0)
            group = found.setdefault(
                (vectors, number, scale),
                {"params": [], "names": [], "vectors": vectors, "group": number, "scale": scale},
            )
            group["params"].append(parameter)
            group["names"].append(name)
    for (vectors, _, _), group in sorted(found.items(), key=lambda item: item[0]):
        yield group | ({"weight_decay": 0.0} if vectors else {})


def _layer_scales(method: Method, decay: float) -> dict[str, float]:
    """Factor of each parameter of the backbones: `decay ** n` where n layers follow. Heads are not in it."""
    scales: dict[str, float] = {}
    if decay < 1:
        for prefix, backbone in method.backbones().items():
            found = layers(name for name, _ in backbone.named_parameters())
            last = max(found.values(), default=0)
            scales |= {f"{prefix}.{name}": decay ** (last - number) for name, number in found.items()}
    return scales


def _embeddings(method: Method) -> set[str]:
    """What timm's networks say is not to decay: class token, position embedding."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, part in method.named_modules()
        if callable(own := getattr(part, "no_weight_decay", None))
        for name in own()
    }


def _group_of(name: str, groups: tuple[ParameterGroup, ...]) -> int:
    return next((number for number, group in enumerate(groups) if re.search(group.pattern, name)), -1)


def schedule(optimizer: torch.optim.Optimizer, method: Method, now: Progress, rate: float, peak: float) -> None:
    """Give each group its learning rate and weight decay of a step."""
    for group in optimizer.param_groups:
        number = group.get("group", -1)
        scale = group.get("scale", 1.0)
        if number < 0:
            group["lr"] = rate * scale
            continue
        own = method.groups[number]
        factor = own.lr(now) if callable(own.lr) else 1.0 if own.lr is None else own.lr
        group["lr"] = factor * scale * (peak if own.constant_lr else rate)
        if own.weight_decay is not None and not group["vectors"]:
            group["weight_decay"] = own.weight_decay(now)


def drop_frozen_gradients(optimizer: torch.optim.Optimizer, method: Method, now: Progress) -> None:
    """Take the gradients of groups that are frozen now: the optimizer leaves such parameters and their state alone."""
    for group in optimizer.param_groups:
        number = group.get("group", -1)
        frozen = method.groups[number].frozen if number >= 0 else None
        if frozen is not None and frozen(now):
            for parameter in group["params"]:
                parameter.grad = None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the optimizer remembers, by `PARAMETER.FIELD` with the parameter's name in the method."""
    return {
        f"{name}.{field}": value
        for name, parameter in _named(optimizer)
        for field, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Undo `optimizer_tensors`; the hyper-parameters stay as they are. Checkpoints of version 0.1.0, which have the
    parameter's number in place of its name, are read too.

    Each tensor gets the memory layout of its parameter: torch's fused kernels walk both as flat memory and would pair
    the wrong elements, without an error, if one were channels-last and the other not.

    Raises:
        KeyError: A tensor belongs to no parameter.
    """
    named = list(_named(optimizer))
    numbers = {name: number for number, (name, _) in enumerate(named)}
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        owner, _, field = name.rpartition(".")
        number = int(owner) if owner.isdigit() else numbers[owner]
        parameter = named[number][1]
        same_layout = torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
        states.setdefault(number, {})[field] = same_layout
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def _named(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """The parameters of an optimizer in the order of its groups, which numbers them."""
    for group in optimizer.param_groups:
        yield from zip(group["names"], group["params"], strict=True)
