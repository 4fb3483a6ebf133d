"""Kinds of methods that no built-in one is: a memory of every image, and a task without pairs of views."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from leoclr.cli.commands.app import main
from leoclr.cli.config.resolve import resolve
from leoclr.cli.methods.checks import check_method
from leoclr.cli.training.trainer import train
from leoclr.datasets.errors import SettingsError
from tests.conftest import TinySettings, png
from tests.methods.conftest import Install

MEANS = "        means = views['x1'].mean((1, 2, 3))[:, None].expand(-1, 16)\n"

MEMORY = '''"""Every image is a class, whose weights are its own embedding of an epoch ago (arXiv 1805.01978)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch.nn import functional as F

from leoclr.backends.distributed import gather
from leoclr.backends.losses import exact
from leoclr.backends.method import Method, Output
from leoclr.backends.networks.encoder import Encoder
from leoclr.backends.networks.heads import mlp
from leoclr.backends.settings import MethodSettings
from leoclr.datasets.views import View, ViewPolicy

ONE = ViewPolicy("one-view", {"x1": View()}, (), "One crop, pulled to nothing.")


class Settings(MethodSettings):
    """A memory bank."""

    default_views: ClassVar[str] = "one-view"
    needs_pairs: ClassVar[bool] = False


class Memory(Method):
    """An encoder, and the newest embedding of each image."""

    takes_samples = True

    def __init__(self, settings, facts):
        super().__init__()
        backbone = facts.new_backbone()
        self.encoder = Encoder(backbone, mlp((backbone.feature_dim, 16)))
        generator = torch.Generator().manual_seed(facts.seed)
        self.register_buffer("bank", F.normalize(torch.randn(facts.images, 16, generator=generator), dim=1))
        self.seen = []

    def forward(self, views, pairs, now, samples):
        embeddings = self.encoder(views["x1"])
        with torch.autocast(embeddings.device.type, enabled=False):
            logits = exact(embeddings) @ exact(self.bank).T / 0.1
            loss = F.cross_entropy(logits, samples)
        self.seen.append((samples, embeddings.detach()))
        return Output(loss, embeddings.detach())

    def after_update(self, now):
        for samples, embeddings in self.seen:
            self.bank[gather(samples)] = gather(embeddings).to(self.bank.dtype)
        self.seen.clear()

    def backbones(self):
        return {"encoder.backbone": self.encoder.backbone}
'''

TURNED = '''"""How an image was turned is told from the image alone (arXiv 1803.07728)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from leoclr.backends.method import Method, Output
from leoclr.backends.settings import MethodSettings
from leoclr.datasets.views import View, ViewPolicy

UPRIGHT = ViewPolicy("upright", {"x": View("whole", changes={"flip": 0.0})}, (), "The image, pulled to nothing.")


class Settings(MethodSettings):
    """Four directions."""

    default_views: ClassVar[str] = "upright"
    needs_pairs: ClassVar[bool] = False


class Turned(Method):
    """A classifier of four directions."""

    def __init__(self, settings, facts):
        super().__init__()
        self.backbone = facts.new_backbone()
        self.head = nn.Linear(self.backbone.feature_dim, 4)

    def forward(self, views, pairs, now):
        upright = next(iter(views.values()))
        images = torch.cat([torch.rot90(upright, turns, (2, 3)) for turns in range(4)])
        turns = torch.arange(4, device=images.device).repeat_interleave(len(upright))
        told = self.head(self.backbone(images)).float()
        return Output(F.cross_entropy(told, turns), None, {"right": (told.argmax(1) == turns).float().mean().detach()})

    def backbones(self):
        return {"backbone": self.backbone}
'''


MASKED = '''"""Patches that are hidden are told from the others, by a ViT (arXiv 2111.09886)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from leoclr.backends.distributed import rank
from leoclr.backends.losses import exact
from leoclr.backends.method import Method, Output
from leoclr.backends.settings import MethodSettings
from leoclr.backends.step_inputs import step_generator
from leoclr.datasets.views import View, ViewPolicy

CROPPED = ViewPolicy("cropped", {"x1": View()}, (), "One crop, pulled to nothing.")
PATCH = 16


class Settings(MethodSettings):
    """A share of the patches."""

    default_views: ClassVar[str] = "cropped"
    needs_pairs: ClassVar[bool] = False
    small: ClassVar[Mapping[str, Any]] = {
        "encoder.backbone": "timm:vit_tiny_patch16_224", "data.image_size": 32, "optimizer.name": "adamw"
    }

    hidden: float = 0.5


class Masked(Method):
    """A ViT whose input has noise in place of some patches, and a linear layer that gives their pixels."""

    def __init__(self, settings, facts):
        super().__init__()
        if facts.image_size % PATCH:
            raise ValueError(f"masked needs whole patches of {PATCH} px, and data.image_size is {facts.image_size}")
        self.backbone = facts.new_backbone()
        self.decoder = nn.Linear(self.backbone.feature_dim, 3 * PATCH**2)
        self.settings, self.batch, self.seed = settings, facts.batch_size, facts.seed
        self.cells = facts.image_size // PATCH

    def forward(self, views, pairs, now):
        images = next(iter(views.values()))
        drawn = torch.rand(
            max(self.batch, len(images)), 1, self.cells, self.cells, generator=step_generator(self.seed, now)
        )
        mine = drawn[rank() * len(images) :][: len(images)].to(images.device)
        mask = (mine < self.settings.hidden).to(images.dtype)
        shown = images * (1 - F.interpolate(mask, scale_factor=PATCH))
        tokens = self.backbone.forward_features(shown)[:, -self.cells**2 :]
        pixels = F.unfold(images, PATCH, stride=PATCH).transpose(1, 2)
        error = (exact(self.decoder(tokens)) - exact(pixels)).abs().mean(dim=2)
        hidden = exact(mask.flatten(1))
        return Output((error * hidden).sum() / (self.settings.hidden * hidden.numel()), None)

    def backbones(self):
        return {"backbone": self.backbone}
'''


CHECKS = ("loss and gradients", "two processes equal one", "stopped equals uninterrupted", "checkpoint round trip")


def test_a_method_may_remember_each_image(install: Install, tmp_path: Path) -> None:
    place = "leoclr_memory"
    install(place, MEMORY, {"memory": f"{place}:Memory"}, {"one-view": f"{place}:ONE"})
    assert [result for result in check_method("memory", tmp_path, CHECKS) if not result.passed] == []


@pytest.mark.parametrize("resident", ["no", "yes"])
def test_samples_are_the_numbers_of_the_images_in_the_data(
    resident: str, install: Install, tmp_path: Path, make_shards: Callable[..., Path], tiny_settings: TinySettings
) -> None:
    """In place of an embedding, each row of the memory holds the mean of the image's pixels."""
    place = f"leoclr_noted_{resident}"
    plain = 'View("whole", changes={"jitter": 0.0, "grayscale": 0.0, "blur": 0.0})'
    noted = MEMORY.replace("View()", plain).replace("embeddings.detach()))", "means.detach()))")
    noted = noted.replace("        self.seen.append", MEANS + "        self.seen.append")
    install(place, noted, {"noted": f"{place}:Memory"}, {"one-view": f"{place}:ONE"})
    changes = {"data__resident": resident, "train__accumulation": "2", "train__epochs": "2", "run__workers": "2"}
    settings = tiny_settings(make_shards((10, 14)), backend="noted", views="one-view", **changes)
    result = train(settings, tmp_path / "run", None, ["test"], resume=False)
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(png(number)))) for number in range(24)]) / 255
    scaled = (pixels - settings.augmentation.mean) / settings.augmentation.std
    bank = load_file(Path(result.checkpoint) / "model.safetensors")["bank"]
    assert bank[:, 0].numpy() == pytest.approx(scaled.mean((1, 2, 3)), abs=1e-5)


@pytest.mark.slow
def test_a_method_may_do_without_pairs(
    install: Install, tmp_path: Path, make_shards: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    place = "leoclr_turned"
    install(place, TURNED, {"turned": f"{place}:Turned"}, {"upright": f"{place}:UPRIGHT"})
    assert [result for result in check_method("turned", tmp_path, CHECKS) if not result.passed] == []
    with pytest.raises(SettingsError, match="views upright: there are no pairs"):
        resolve(None, None, {}, {"backend": "moco", "views": "upright"})
    with pytest.raises(SystemExit) as exit_code:
        main(["views", str(make_shards((2,))), "--set", "backend=turned", "-o", str(tmp_path / "views.png")])
    assert not exit_code.value.code and (tmp_path / "views.png").exists()


@pytest.mark.slow
def test_a_method_may_need_tokens_of_a_vision_transformer(install: Install, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    place = "leoclr_masked"
    install(place, MASKED, {"masked": f"{place}:Masked"}, {"cropped": f"{place}:CROPPED"})
    results = {result.name: result for result in check_method("masked", tmp_path)}
    assert [result for result in results.values() if not result.passed] == []
    assert "refused: this backbone cannot be trained" in results["views multicrop"].detail
