"""The estimate of a step's memory beside the peak of a real run on the CPU, for backbones and image sizes.

Run: python benchmarks/step_memory.py

The estimate is what `leoclr train --dry-run --json` prints. The peak is the largest resident set of the training
process in three steps, as the system recorded it (`ru_maxrss`, in KiB on Linux). No loader processes are started: their
share is a constant for each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import webdataset

_BATCHES = {32: 256, 96: 96, 224: 32}
_STEPS = 3
_GIB = 2**30


def write_shard(folder: Path, images: int) -> None:
    """Small images of noise, which training enlarges."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    with webdataset.TarWriter(str(folder / "noise-000000.tar"), encoder=False) as writer:
        for number in range(images):
            pixels = generator.integers(0, 256, (32, 32, 3), np.uint8)
            writer.write({"__key__": f"{number:05d}", "ppm": b"P6 32 32 255\n" + pixels.tobytes()})


def command(backbone: str, size: int, data: Path) -> list[str]:
    stem = ["--set", "encoder.stem=cifar"] if size == 32 and backbone.startswith("resnet") else []
    return [
        *(sys.executable, "-m", "leoclr.cli", "train", "--json", "--data", str(data), "--device", "cpu"),
        *("--backbone", backbone, "--set", f"data.image_size={size}", "--batch-size", str(_BATCHES[size]), *stem),
        *("--epochs", "1", "--workers", "0", "--set", "moco.queue=1536", "--set", "run.trackers="),
        *("--set", "run.knn_epochs=0", "--set", "moco.bn_splits=1"),
    ]


def measured(backbone: str, size: int, folder: Path) -> dict[str, Any]:
    """Estimate and peak of one setting, in bytes."""
    data = folder / f"images-{_BATCHES[size] * _STEPS}"
    if not data.exists():
        write_shard(data, _BATCHES[size] * _STEPS)
    planned = subprocess.run([*command(backbone, size, data), "--dry-run"], capture_output=True, text=True)
    if planned.returncode:
        sys.exit(planned.stderr)
    run = folder / f"{backbone.replace(':', '-')}-{size}"
    with run.with_suffix(".log").open("w") as log:
        trainer = subprocess.Popen([*command(backbone, size, data), "--output", str(run)], stdout=log, stderr=log)
        _, status, usage = os.wait4(trainer.pid, 0)
    trainer.returncode = os.waitstatus_to_exitcode(status)
    if trainer.returncode:
        sys.exit(run.with_suffix(".log").read_text())
    estimate = json.loads(planned.stdout)["memory"]["needed"]
    peak = usage.ru_maxrss * 1024
    return {
        "backbone": backbone,
        "image_size": size,
        "batch_size": _BATCHES[size],
        "estimate": estimate,
        "peak": peak,
        "ratio": round(estimate / peak, 3),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backbone", nargs="+", default=["resnet18", "resnet50", "timm:vit_tiny_patch16_224"])
    parser.add_argument("--size", nargs="+", type=int, choices=_BATCHES, default=list(_BATCHES), help="pixels")
    parser.add_argument("--json", action="store_true", help="print JSON, in bytes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [measured(name, size, Path(folder)) for name in arguments.backbone for size in arguments.size]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'backbone':>26}  {'size':>4}  {'batch':>5}  {'estimate, GiB':>13}  {'peak, GiB':>9}  {'ratio':>5}")
    for row in rows:
        gib = [f"{row[name] / _GIB:.2f}" for name in ("estimate", "peak")]
        print(
            f"{row['backbone']:>26}  {row['image_size']:>4}  {row['batch_size']:>5}  {gib[0]:>13}  {gib[1]:>9}"
            f"  {row['ratio']:>5}"
        )


if __name__ == "__main__":
    main()
