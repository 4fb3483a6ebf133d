"""The formats of `leoclr export`."""

from __future__ import annotations

from enum import StrEnum


class ExportFormat(StrEnum):
    """What --format takes."""

    torchvision = "torchvision"
    timm = "timm"
    safetensors = "safetensors"
    onnx = "onnx"

    @property
    def suffix(self) -> str:
        """Of the file's name."""
        return ".pth" if self in (ExportFormat.torchvision, ExportFormat.timm) else f".{self}"
