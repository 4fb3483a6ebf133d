"""Folders in the layout of the Hugging Face hub, for timm and transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from leoclr.backends.settings import STANDARD_WIDTH
from leoclr.cli.exporting.model_card import CURVE, VIEWS, write_card
from leoclr.cli.exporting.target import Network, Target, Transform
from leoclr.cli.exporting.timm_models import arguments, pretrained_cfg, require_timm, timm_name
from leoclr.cli.run.encoders import header_of, plain_tensors
from leoclr.datasets.errors import CheckpointError

WEIGHTS, CONFIG = "model.safetensors", "config.json"


class HubFolder(Target):
    """`config.json`, `model.safetensors` and a model card. timm builds the network from a name and its arguments, so
    that only what timm itself can build is written."""

    def check(self) -> None:
        require_timm("hf")
        name, encoder = timm_name(self.encoder), self.encoder
        if encoder.stem != "imagenet" or encoder.width != STANDARD_WIDTH:
            what = "the CIFAR stem" if encoder.stem != "imagenet" else f"width {encoder.width}"
            others = "safetensors or onnx" if encoder.width != STANDARD_WIDTH else "safetensors, torchvision or onnx"
            raise CheckpointError(f"timm builds no {name} with {what} from a config.json; export --format {others}")

    def write(self, path: Path) -> None:
        name = timm_name(self.encoder)
        network = self._network()
        config = {
            "architecture": name,
            "num_classes": 0,
            "num_features": network.num_features,
            "global_pool": _pooling(network),
            "model_args": arguments(self.encoder),
            "pretrained_cfg": pretrained_cfg(self.encoder, network),
            "leoclr": header_of(self.encoder).model_dump(mode="json"),  # other programs pass over it
        }
        save_file(plain_tensors(self.encoder), path / WEIGHTS, metadata={"format": "pt"})  # transformers asks for it
        (path / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        write_card(path, self.encoder, name, self.options)

    def stale(self, path: Path) -> tuple[str, ...]:
        """The pictures of an earlier export: nobody would look for views of training images after `--no-views`."""
        config = path / CONFIG
        if not config.is_file() or '"leoclr"' not in config.read_text(encoding="utf-8", errors="replace"):
            return ()
        return (CURVE, VIEWS)

    def open(self, path: Path) -> Network:
        import timm

        network: nn.Module = timm.create_model(f"local-dir:{path}", pretrained=True)
        return network.eval()

    def preprocessing(self, path: Path) -> Transform:
        import timm

        data: Any = timm.data
        transform: Transform = data.create_transform(**data.resolve_data_config(pretrained_cfg=_cfg(path)))
        return transform

    def usage(self, path: Path) -> tuple[str, ...]:
        return (
            "import timm, transformers",
            f"model = timm.create_model({f'local-dir:{path}'!r}, pretrained=True)  # num_classes=10: a new classifier",
            f"model = transformers.AutoModel.from_pretrained({str(path)!r})  # features: model(pixels).pooler_output",
        )

    def _network(self) -> Any:
        import timm

        with torch.random.fork_rng(devices=[]):
            return timm.create_model(
                timm_name(self.encoder), pretrained=False, num_classes=0, **arguments(self.encoder)
            )


def _cfg(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / CONFIG).read_text(encoding="utf-8"))["pretrained_cfg"]
    return found


def _pooling(network: Any) -> str | None:
    """The name of the pooling: timm keeps it in the model, in a module of the model, or in one of its head."""
    pooling = getattr(network, "global_pool", None) or getattr(getattr(network, "head", None), "global_pool", None)
    name = pooling if isinstance(pooling, str) else getattr(pooling, "pool_type", None)
    return name if isinstance(name, str) else None
