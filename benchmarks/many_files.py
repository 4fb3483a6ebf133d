"""`leoclr shard` and `leoclr check` on very many tiny files: images a second, time, and peak memory.

Run: python benchmarks/many_files.py --files 1000000

The files are PNGs of 4 x 4 pixels, all different, a thousand in a folder, which is a class. Two sizes are run, a tenth
and all of them, so that the memory for each further image can be told from what any command takes. Then the packing is
killed (SIGKILL) when half of the shards are finished, and run again: what that takes, and whether the bytes are the
same. What the commands print of rate and time left goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

_IN_FOLDER = 1000
_MIB = 2**20
SHARDS = ("--name", "tiny")
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


def start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "leoclr.cli", *arguments], stdout=subprocess.DEVNULL)


def run(*arguments: str) -> tuple[float, float, int]:
    """Seconds, seconds of processor and peak resident memory in bytes of a command."""
    began = time.monotonic()
    process = start(*arguments)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"leoclr {arguments[0]} ended with exit code {process.returncode}")
    return time.monotonic() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def kill_half_way(images: Path, out: Path, shards: int) -> int:
    """Start to pack, and end that with SIGKILL when half of so many shards are finished; returns how many were."""
    process = start("shard", str(images), str(out), *SHARDS)
    while (finished := finished_shards(out)) < shards // 2:
        if process.poll() is not None:
            raise SystemExit("leoclr shard ended before it could be killed")
        time.sleep(0.1)
    process.kill()
    process.wait()
    return finished


def finished_shards(out: Path) -> int:
    journal = out / ".packing" / "journal.jsonl"
    return max(0, journal.read_bytes().count(b"\n") - 1) if journal.exists() else 0


def digests(out: Path) -> list[str]:
    """SHA-256 of every shard, by the index."""
    (index,) = out.glob("*.index.json")
    content: dict[str, Any] = json.loads(index.read_bytes())
    return [shard["sha256"] for shard in content["shards"]]


def measure(folder: Path, size: int) -> dict[str, int]:
    """Pack and check so many images in `folder`; peak memory of each command."""
    images, shards = folder / f"images-{size}", folder / f"shards-{size}"
    if not images.exists():
        write_files(images, size)
    peaks = {}
    for command in ("shard", "check"):
        source = (str(images), str(shards), *SHARDS, "--overwrite") if command == "shard" else (str(shards),)
        seconds, processor, peaks[command] = run(command, *source)
        report(command, size, seconds, processor, peaks[command])
    return peaks


def report(command: str, size: int, seconds: float, processor: float, peak: int) -> None:
    rate = f"{size / seconds:>9,.0f}"
    print(f"{command:<16} {size:>10,} {seconds:>8.1f} {processor:>10.1f} {rate} {peak / _MIB:>9,.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where to write, and to find files again; default: a temporary one")
    options = parser.parse_args()
    sizes = (max(1, options.files // 10), options.files)
    print(f"{'command':<16} {'images':>10} {'seconds':>8} {'processor':>10} {'images/s':>9} {'peak MiB':>9}")
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = options.folder or Path(temporary)
        small, large = (measure(folder, size) for size in sizes)
        images, shards, again = (folder / f"{name}-{sizes[1]}" for name in ("images", "shards", "again"))
        wanted = digests(shards)
        shutil.rmtree(again, ignore_errors=True)
        finished = kill_half_way(images, again, len(wanted))
        report("shard, go on", sizes[1], *run("shard", str(images), str(again), *SHARDS))
        same = digests(again) == wanted
    for command in small:
        further = (large[command] - small[command]) / (sizes[1] - sizes[0])
        print(f"{command}: {further:,.0f} bytes for each further image")
    print(f"killed after {finished} of {len(wanted)} shards; the same bytes in the end: {'yes' if same else 'NO'}")


if __name__ == "__main__":
    main()
