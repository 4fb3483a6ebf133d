"""Versions of the software of a run, recorded in every run and checkpoint."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_PACKAGES = (
    "leoclr-cli",
    "torch",
    "torchvision",
    "accelerate",
    "pillow",
    "simplejpeg",
    "opencv-python-headless",
    "numpy",
    "scikit-learn",
    "webdataset",
)


def versions() -> dict[str, str]:
    """Version of Python and of each package that can change a result."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def environment(device: torch.device, ranks: int) -> dict[str, str | int]:
    """The hardware and the thread count; on a CPU, equal weights need equal thread counts."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {
        "device": device.type,
        "device_name": name,
        "processes": ranks,
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
    }


def processor() -> str:
    """What the processor calls itself. Linux knows it, platform.processor() mostly does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
