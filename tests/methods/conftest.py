"""For tests of methods: a network of a few numbers, and packages that bring methods."""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import nn

from leoclr.backends.method import Facts
from leoclr.backends.networks.backbones import Backbone
from leoclr.cli.config import fields, plugins

Install = Callable[..., Path]


def _tiny_backbone() -> Backbone:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    backbone = cast(Backbone, nn.Sequential(*layers))
    backbone.feature_dim = 6
    return backbone


def _staged_backbone() -> Backbone:
    """With the feature maps of two stages, as a ResNet has them: for 8 px, 6 x 6 and 4 x 4 cells."""
    torch.manual_seed(0)
    stages = {
        "layer3": nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
        "layer4": nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU()),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
    }
    backbone = cast(Backbone, nn.Sequential(OrderedDict(stages)))
    backbone.feature_dim = 6
    return backbone


def _facts(new_backbone: Callable[[], Backbone]) -> Facts:
    return Facts(
        new_backbone,
        pairs=(("x", "x1"), ("x", "x2")),
        batch_size=6,
    )


@pytest.fixture
def tiny_facts() -> Facts:
    """What a method of a few numbers is built from: batches of 6 images, LeOCLR's pairs."""
    return _facts(_tiny_backbone)


@pytest.fixture
def staged_facts() -> Facts:
    """The same, with a backbone that has stages."""
    return _facts(_staged_backbone)


def forget() -> None:
    """What was read of the installed packages."""
    for cached in (
        plugins.plugins,
        plugins.method_settings,
        plugins.policy_settings,
        plugins._policy,
        fields.plugin_sections,
        fields.all_fields,
        fields._adapter,
    ):
        cached.cache_clear()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """`install(name, source, methods={...}, views={...})`: a package as pip lays it down, on the path of this process
    and its children."""
    site = tmp_path / "site"
    site.mkdir()

    def make(name: str, source: str, methods: dict[str, str], views: dict[str, str] | None = None) -> Path:
        (site / f"{name}.py").write_text(source)
        sys.modules.pop(name, None)  # that of another test
        about = site / f"{name}-0.3.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.3\n")
        groups = {"leoclr.methods": methods, "leoclr.views": views or {}}
        lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in found.items()) for group, found in groups.items()]
        (about / "entry_points.txt").write_text("\n".join(lines))
        forget()
        return site

    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH", "")))))
    forget()
    yield make
    forget()
