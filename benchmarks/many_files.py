"""`leoclr shard` and `leoclr check` on very many tiny files: images a second, time, and peak memory.

Run: python benchmarks/many_files.py --files 1000000

The files are PNGs of 4 x 4 pixels, all different, a thousand in a folder, which is a class. Two sizes are run, a tenth
and all of them, so that the memory for each further image can be told from what any command takes. What the commands
print of rate and time left goes to standard error.
"""

from __future__ import annotations

import argparse
import os
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

_IN_FOLDER = 1000
_MIB = 2**20
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(number: int) -> bytes:
    """A picture whose pixels hold the number."""
    row = b"\0" + number.to_bytes(8, "big") + bytes(4)
    pixels = zlib.compress(row * 4, 1)
    return (
        _SIGNATURE
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", pixels)
        + chunk(b"IEND", b"")
    )


def write_files(folder: Path, files: int) -> None:
    """The images, a thousand in each folder."""
    for start in range(0, files, _IN_FOLDER):
        name = folder / f"class{start // _IN_FOLDER:05d}"
        name.mkdir(parents=True)
        for number in range(start, min(start + _IN_FOLDER, files)):
            (name / f"{number:08d}.png").write_bytes(png(number))


def run(*arguments: str) -> tuple[float, int]:
    """Seconds and peak resident memory in bytes of a command."""
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "leoclr.cli", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"leoclr {arguments[0]} ended with exit code {process.returncode}")
    return time.monotonic() - began, usage.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    options = parser.parse_args()
    peaks: dict[str, list[int]] = {"shard": [], "check": []}
    sizes = (max(1, options.files // 10), options.files)
    print(f"{'command':<8} {'images':>12} {'seconds':>8} {'images/s':>9} {'peak MiB':>9}")
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            write_files(Path(name) / "images", size)
            for command in ("shard", "check"):
                source = ("images", "shards") if command == "shard" else ("shards",)
                seconds, peak = run(command, *(f"{name}/{part}" for part in source))
                peaks[command].append(peak)
                print(f"{command:<8} {size:>12,} {seconds:>8.1f} {size / seconds:>9,.0f} {peak / _MIB:>9,.0f}")
    for command, (small, large) in peaks.items():
        print(f"{command}: {(large - small) / (sizes[1] - sizes[0]):,.0f} bytes for each further image")


if __name__ == "__main__":
    main()
