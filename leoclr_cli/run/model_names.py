"""Names of models: prefixes for the hub, timm, torchvision and local folders, which `named_weights` loads.

    local-dir:FOLDER             config.json and weights, as timm and `leoclr export --format hf` write them
    hf-hub:OWNER/NAME[@REVISION] the same from the Hugging Face hub
    timm:NAME[.TAG]              timm's pre-trained weights, which lie on the hub
    torchvision:NAME[.WEIGHTS]   torchvision's pre-trained weights, from PyTorch's server

The last three use the network, and nothing else does.
"""

from __future__ import annotations

from pathlib import Path

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
SCHEMES = ("local-dir", "hf-hub", "timm", "torchvision")


def is_named(text: str) -> bool:
    """Whether a text names weights and is no path."""
    scheme, colon, _ = text.partition(":")
    return bool(colon) and scheme in SCHEMES and not Path(text).exists()


def is_model_folder(path: Path) -> bool:
    """Whether a folder is one that `local-dir:` takes."""
    return (path / CONFIG).is_file() and any((path / name).is_file() for name in WEIGHTS)
