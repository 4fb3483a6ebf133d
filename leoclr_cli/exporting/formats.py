"""The formats of `leoclr export`."""

from __future__ import annotations

from enum import StrEnum


class ExportFormat(StrEnum):
    """What --format takes."""

    torchvision = "torchvision"
    timm = "timm"
    safetensors = "safetensors"
    onnx = "onnx"
    detectron2 = "detectron2"

    @property
    def suffix(self) -> str:
        """Of the file's name."""
        if self is ExportFormat.detectron2:
            return ".detectron2.pth"
        return ".pth" if self in (ExportFormat.torchvision, ExportFormat.timm) else f".{self}"
