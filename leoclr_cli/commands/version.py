"""`leoclr --version`; with `--verbose` the facts for a bug report, without names of users, files or machines."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from leoclr.cli.terminal import print_json

_PACKAGE = "leoclr-cli"


def print_version(verbose: bool, as_json: bool) -> None:
    """Print the version alone, or all of `about`."""
    if not verbose:
        print_json({"version": version(_PACKAGE)}) if as_json else print(f"leoclr {version(_PACKAGE)}")
        return
    found = about()
    if as_json:
        print_json(found)
        return
    print(f"leoclr {found['version']}")
    for title in ("machine", "packages", "environment"):
        width = max(map(len, found[title]), default=0)
        print(f"\n{title}")
        for name, value in (found[title] or {"none of those that matter is set": ""}).items():
            print(f"  {name:{width}}  {value}")


def about() -> dict[str, Any]:
    """Version, machine, packages and the variables that change results or speed."""
    return {
        "version": version(_PACKAGE),
        "machine": _machine(),
        "packages": _packages(),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name in _VARIABLES},
    }


_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "MKL_NUM_THREADS",
    "NCCL_DEBUG",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS",
    "PYTORCH_CUDA_ALLOC_CONF",
    "RANK",
    "WORLD_SIZE",
)


def _machine() -> dict[str, str]:
    import torch

    from leoclr.cli.run.versions import processor

    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = {
        "system": platform.platform(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "processor": f"{processor()}, {len(os.sched_getaffinity(0)) if _LINUX else os.cpu_count()} usable cores",
        "memory": f"{gib:.1f} GiB",
        "threads of torch": str(torch.get_num_threads()),
        "CUDA of torch": torch.version.cuda or "none",
    }
    shared = Path("/dev/shm")
    if shared.is_dir():
        space = os.statvfs(shared)
        found["shared memory"] = f"{space.f_bsize * space.f_blocks / 2**30:.1f} GiB"
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        found[f"GPU {number}"] = f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB"
    return found


_LINUX = hasattr(os, "sched_getaffinity")


def _packages() -> dict[str, str]:
    """The version of every package that leoclr can use, those of its extras included."""
    names = {
        re.split(r"[^\w.-]", line, maxsplit=1)[0]
        for line in requires(_PACKAGE) or ()
        if "extra == 'dev'" not in line.replace('"', "'")
    }
    found = {}
    for name in sorted(names):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
