"""Table of export formats and their classes."""

from __future__ import annotations

from leoclr.cli.exporting.formats import ExportFormat
from leoclr.cli.exporting.hub_folder import HubFolder
from leoclr.cli.exporting.onnx_graph import Onnx
from leoclr.cli.exporting.state_dicts import Detectron2, Safetensors, Timm, Torchvision
from leoclr.cli.exporting.target import Target

TARGETS: dict[ExportFormat, type[Target]] = {
    ExportFormat.hf: HubFolder,
    ExportFormat.safetensors: Safetensors,
    ExportFormat.torchvision: Torchvision,
    ExportFormat.timm: Timm,
    ExportFormat.onnx: Onnx,
    ExportFormat.detectron2: Detectron2,
}
