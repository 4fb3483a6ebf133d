"""Feature extraction from shards beside the bare forward pass on images that are in memory already, in one run.

Run: OMP_NUM_THREADS=1 python benchmarks/compare_features.py [--images N] [--rounds N] [--json]

ResNet-18 with the stem for small images at 32 px, batch 256, channels last, in float32 and, where the processor has it,
bf16. The rounds alternate, because the speed of a machine drifts; the table gives medians, quartiles, and the ratio
within each round. There is one loader process, which has a core of its own where the thread count leaves one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import webdataset
from PIL import Image
from torch import Tensor, nn

from leoclr.backends.networks.backbones import build_backbone
from leoclr.datasets.images.normalise import normalise
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.locate import open_data
from leoclr.evals.features.extract import Precision, extract_features
from leoclr.evals.features.preprocessing import Preprocessing, WholeImage

BATCH, SIDE = 256, 32
MEAN, STD = (0.49, 0.48, 0.45), (0.2, 0.2, 0.2)


def shards(folder: Path, count: int) -> Index:
    """Pictures of 32 px as PNG."""
    generator = np.random.default_rng(0)
    with webdataset.TarWriter(str(folder / "x-000000.tar")) as writer:
        for number in range(count):
            small = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            pixels = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
            writer.write({"__key__": f"{number:06d}", "png": pixels, "cls": number % 10})
    return open_data([str(folder)])


def bare(backbone: nn.Module, images: Tensor, precision: Precision) -> float:
    """Images per second of the forward pass alone, normalisation included."""
    began = time.perf_counter()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        for batch in torch.split(images, BATCH):
            backbone(normalise(batch, MEAN, STD))
    return len(images) / (time.perf_counter() - began)


def extracted(backbone: nn.Module, index: Index, precision: Precision) -> float:
    """Images per second from shards to features in an array."""
    began = time.perf_counter()
    preprocessing = Preprocessing(WholeImage(SIDE), MEAN, STD)
    found = extract_features(backbone, index, preprocessing, batch_size=BATCH, precision=precision, workers=1)
    return len(found.features) / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    backbone = build_backbone("resnet18", "cifar").eval().to(memory_format=torch.channels_last)
    precisions: list[Precision] = ["float32", "bf16"] if torch.ops.mkldnn._is_mkldnn_bf16_supported() else ["float32"]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        index = shards(Path(folder), arguments.images)
        images = torch.randint(256, (arguments.images, 3, SIDE, SIDE), dtype=torch.uint8)
        images = images.to(memory_format=torch.channels_last)
        for precision in precisions:
            bare(backbone, images[:BATCH], precision)
            pairs = [
                (bare(backbone, images, precision), extracted(backbone, index, precision))
                for _ in range(arguments.rounds)
            ]
            for name, rates in zip(("bare forward", "extraction"), zip(*pairs, strict=True), strict=True):
                low, median, high = statistics.quantiles(rates, n=4)
                rows.append({"precision": precision, "what": name, "median": median, "low": low, "high": high})
            ratio = statistics.median(ours / forward for forward, ours in pairs)
            rows.append({"precision": precision, "what": "ratio", "median": ratio})
    if arguments.json:
        print(json.dumps({"threads": torch.get_num_threads(), "rows": rows}, indent=1))
        return
    for row in rows:
        spread = f" ({row['low']:,.0f} to {row['high']:,.0f}) images/s" if "low" in row else ""
        print(f"{row['precision']:8} {row['what']:13} {row['median']:8,.{0 if spread else 2}f}{spread}")


if __name__ == "__main__":
    main()
