"""Reading speed beside webdataset's own pipeline and torchvision's ImageFolder, on the same images, in one run.

Run: python benchmarks/compare_reading.py [FOLDER OF IMAGES] [--images N] [--rounds N] [--json]

All read in one process, shuffled as each of them shuffles (leoclr and ImageFolder over everything, webdataset by
shards and a buffer of 1,000), from the page cache. The rounds alternate, because the speed of a machine drifts by more
than what is compared; the table gives medians, quartiles, and the ratio to the faster of the two others.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import webdataset
from PIL import Image
from torchvision.datasets import ImageFolder

from leoclr.cli.commands.app import main as leoclr
from leoclr.datasets.randomness import Permutation
from leoclr.datasets.shards.locate import open_data
from leoclr.datasets.shards.reader import SampleReader

_SIDE = (500, 375)
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
Reader = Callable[[int], Iterator[object]]


def photographs(folder: Path, count: int, source: Path | None) -> None:
    """`count` files in ten class folders: those of `source` again and again, or smooth noise as JPEG."""
    found = sorted(path for path in source.rglob("*") if path.suffix.lower() in _SUFFIXES) if source else []
    generator = np.random.default_rng(0)
    for number in range(count):
        target = folder / f"class{number % 10}"
        target.mkdir(parents=True, exist_ok=True)
        if found:
            path = found[number % len(found)]
            (target / f"{number:06d}{path.suffix.lower()}").write_bytes(path.read_bytes())
        else:
            small = Image.fromarray(generator.integers(0, 256, (24, 32, 3), dtype=np.uint8))
            small.resize(_SIDE, Image.Resampling.BICUBIC).save(target / f"{number:06d}.jpg", quality=90)


def readers(images: Path, shards: Path, decoded: bool) -> dict[str, Reader]:
    """By name, what yields every image of an epoch once."""
    index = open_data([str(shards)])
    ours = SampleReader(index)

    def read_ours(epoch: int) -> Iterator[object]:
        for number in Permutation(len(index), 0, epoch)(np.arange(len(index))).tolist():
            yield ours.image(number) if decoded else ours.read(number)

    def read_webdataset(epoch: int) -> Iterator[object]:
        paths = [str(path) for path in sorted(shards.glob("*.tar"))]
        pipeline = webdataset.WebDataset(paths, shardshuffle=len(paths), seed=epoch).shuffle(1000)
        return iter(pipeline.decode("pilrgb") if decoded else pipeline)

    def file_bytes(path: str) -> bytes:
        with open(path, "rb") as file:
            return file.read()

    folder = ImageFolder(str(images)) if decoded else ImageFolder(str(images), loader=file_bytes)

    def read_folder(epoch: int) -> Iterator[object]:
        order = torch.randperm(len(folder), generator=torch.Generator().manual_seed(epoch))
        return (folder[number] for number in order.tolist())

    return {"leoclr": read_ours, "webdataset": read_webdataset, "ImageFolder": read_folder}


def measure(found: dict[str, Reader], rounds: int, images: int) -> dict[str, list[float]]:
    """Images per second of each reader in each round, after one that does not count."""
    rates: dict[str, list[float]] = {name: [] for name in found}
    for number in range(rounds + 1):
        for name, read in found.items():
            began = time.perf_counter()
            count = sum(1 for _ in read(number))
            if count != images:
                raise SystemExit(f"{name} read {count} of {images} images")
            if number:
                rates[name].append(count / (time.perf_counter() - began))
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source", nargs="?", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # webdataset leaves its shards open
    results = []
    with tempfile.TemporaryDirectory() as folder:
        images, shards = Path(folder, "images"), Path(folder, "shards")
        photographs(images, arguments.images, arguments.source)
        try:
            leoclr(["shard", str(images), str(shards), "--shard-size", "16"])
        except SystemExit as ended:
            if ended.code:
                raise
        for decoded in (False, True):
            rates = measure(readers(images, shards, decoded), arguments.rounds, arguments.images)
            medians = {name: statistics.median(values) for name, values in rates.items()}
            ratios = [ours / max(*others) for ours, *others in zip(*rates.values(), strict=True)]
            for name, values in rates.items():
                low, _, high = statistics.quantiles(values, n=4)
                results.append({"decoded": decoded, "reader": name, "median": medians[name], "low": low, "high": high})
            results.append({"decoded": decoded, "ratio": statistics.median(ratios)})
    if arguments.json:
        print(json.dumps(results, indent=1))
        return
    for row in results:
        what = "decoded" if row["decoded"] else "bytes"
        if "ratio" in row:
            print(f"{what:8} leoclr / faster of the others, median of the rounds: {row['ratio']:.2f}\n")
        else:
            print(
                f"{what:8} {row['reader']:12} {row['median']:10,.0f} images/s ({row['low']:,.0f} to {row['high']:,.0f})"
            )


if __name__ == "__main__":
    main()
