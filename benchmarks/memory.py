"""Peak memory of training on a data set and on one ten times as large, with the same number of steps.

Run: python benchmarks/memory.py

A process's share of memory is counted (PSS: what it shares with others, also libraries with programs that have nothing
to do with it, is split among them), summed over the trainer
and its loader workers, twenty times a second. The largest resident set of a single process is what the system itself
recorded. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import webdataset

_TIMES = (1, 10)
_PIXELS = 32
_SHARD = 5000
_MIB = 2**20
_SECONDS = 0.05  # between two looks at the memory


def write_shards(folder: Path, images: int) -> None:
    """Noise in small uncompressed images, 3 kB each."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    header = f"P6 {_PIXELS} {_PIXELS} 255\n".encode()
    with webdataset.ShardWriter(str(folder / "noise-%06d.tar"), maxcount=_SHARD, verbose=0, encoder=False) as writer:
        for number in range(images):
            pixels = generator.integers(0, 256, (_PIXELS, _PIXELS, 3), np.uint8)
            writer.write({"__key__": f"{number:08d}", "ppm": header + pixels.tobytes()})


def train(data: Path, output: Path, epochs: int) -> tuple[int, int]:
    """Peak memory in bytes of the whole tree of processes, and of its largest process."""
    command = [sys.executable, "-m", "leoclr.cli", "train", "--data", str(data), "--output", str(output)]
    command += ["--epochs", str(epochs), "--batch-size", "50", "--workers", "2", "--device", "cpu"]
    command += ["--backbone", "resnet18", "--set", "encoder.width=16", "--set", "data.image_size=32"]
    command += ["--set", "moco.queue=100", "--set", "moco.bn_splits=1", "--set", "run.trackers="]
    log = output.with_suffix(".log")
    peak = ended = 0
    with log.open("w") as stderr:
        trainer = subprocess.Popen(command, stderr=stderr)
    while not ended:
        peak = max(peak, tree_memory(psutil.Process(trainer.pid)))
        time.sleep(_SECONDS)
        ended, status, usage = os.wait4(trainer.pid, os.WNOHANG)
    trainer.returncode = os.waitstatus_to_exitcode(status)
    if trainer.returncode:
        sys.exit(log.read_text())
    return peak, usage.ru_maxrss * 1024


def tree_memory(process: psutil.Process) -> int:
    """PSS of a process and all below it; those that end meanwhile count nothing."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                total += one.memory_full_info().pss
    return total


def measure(images: int) -> list[dict[str, int]]:
    """One row for each size of the data set."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for times in _TIMES:
            data = Path(folder) / f"data-{times}"
            write_shards(data, images * times)
            tree, process = train(data, Path(folder) / f"run-{times}", epochs=max(_TIMES) // times)
            size = sum(file.stat().st_size for file in data.iterdir())
            rows.append({"images": images * times, "data": size, "tree": tree, "process": process})
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=5000, help="images of the smaller data set")
    parser.add_argument("--json", action="store_true", help="print JSON, in bytes")
    arguments = parser.parse_args()
    rows = measure(arguments.images)
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'images':>10}  {'data, MiB':>10}  {'all processes, MiB':>20}  {'largest process, MiB':>20}")
    for row in rows:
        megabytes = [f"{row[name] / _MIB:,.1f}" for name in ("data", "tree", "process")]
        print(f"{row['images']:>10,}  {megabytes[0]:>10}  {megabytes[1]:>20}  {megabytes[2]:>20}")


if __name__ == "__main__":
    main()
