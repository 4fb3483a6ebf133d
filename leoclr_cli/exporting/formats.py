"""Formats of `leoclr export`."""

from __future__ import annotations

from enum import StrEnum


class ExportFormat(StrEnum):
    """What --format takes."""

    hf = "hf"
    torchvision = "torchvision"
    timm = "timm"
    safetensors = "safetensors"
    onnx = "onnx"
    detectron2 = "detectron2"

    @property
    def is_folder(self) -> bool:
        """Whether a folder is written, and not a file."""
        return self is ExportFormat.hf

    @property
    def suffix(self) -> str:
        """Of the file's or folder's name; no two formats share one."""
        return _SUFFIXES.get(self, f".{self}")


def formats_of(name: str) -> tuple[ExportFormat, ...]:
    """The formats that a file of this name can hold, by its suffix; all where it says nothing."""
    for suffix, formats in _OF_SUFFIXES.items():
        if name.lower().endswith(suffix):
            return formats
    return tuple(ExportFormat)


def usual_format(backbone: str, width: int) -> ExportFormat:
    """The most portable format of those that hold an architecture in any stem.

    Args:
        width: Channels of the first stage of a ResNet; libraries have 64.
    """
    if width != 64:
        return ExportFormat.safetensors
    return ExportFormat.timm if backbone.startswith("timm:") else ExportFormat.torchvision


_SUFFIXES = {
    ExportFormat.hf: "-hf",
    ExportFormat.torchvision: ".pth",
    ExportFormat.timm: ".timm.pth",
    ExportFormat.detectron2: ".detectron2.pth",
}
_STATE_DICTS = (ExportFormat.torchvision, ExportFormat.timm, ExportFormat.detectron2)
_OF_SUFFIXES = {
    ".safetensors": (ExportFormat.safetensors,),
    ".onnx": (ExportFormat.onnx,),
    **dict.fromkeys((".pth", ".pt", ".pth.tar", ".bin"), _STATE_DICTS),
}
