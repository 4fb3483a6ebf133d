"""Heads: the layers between backbone features and a loss."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import nn


def mlp(
    widths: Sequence[int],
    norm: bool = False,
    last_norm: Literal["none", "affine", "plain"] = "none",
    last_bias: bool | None = None,
    activation: type[nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Linear layers with an activation between them.

    Args:
        widths: Of the input, of each hidden layer and of the output.
        norm: Whether BatchNorm stands before each activation.
        last_norm: BatchNorm behind the last layer: "plain" has no scale and shift.
        last_bias: Of the last one; None where no BatchNorm is behind it.
        activation: ReLU, or another without arguments.
    """
    layers: list[nn.Module] = []
    *hidden, last = list(pairwise(widths))
    for before, after in hidden:
        layers.append(nn.Linear(before, after, bias=not norm))
        layers += [nn.BatchNorm1d(after), activation()] if norm else [activation()]
    layers.append(nn.Linear(*last, bias=last_norm == "none" if last_bias is None else last_bias))
    if last_norm != "none":
        layers.append(nn.BatchNorm1d(last[1], affine=last_norm == "affine"))
    return nn.Sequential(*layers)
