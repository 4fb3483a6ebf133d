"""From encoded images to views, beside torchvision's recipe, lightly's (where it is installed), and decoding alone.

Run: python benchmarks/compare_views.py [IMAGES] [--small IMAGES] [--images N] [--rounds N] [--json]

IMAGES is a folder or an archive.

224 px with MoCo-v2's augmentations, then 32 px with the preset `cifar10`. Without data, photographs that come with
scikit-learn are cut into pieces. All run in one process with one thread, and what counts is the processor time it
took, so the rates are images per core and second. The rounds alternate, because the speed of a machine drifts by more
than what is compared; the table gives medians and quartiles, also of the ratios within each round.

- The recipe is the one of the MoCo authors: Pillow's images, torchvision's transforms, float tensors, normalised. At
  32 px its images are decoded beforehand, as in torchvision's CIFAR10.
- leoclr is what a loader process does: it reads a sample of a shard, decodes it and makes a batch of bytes. "float"
  also makes it float and normalised, which training leaves to its device.
- Decoding alone is the fastest of three decoders: the floor of all of them.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_images
from torchvision import transforms

from leoclr.cli.commands.app import main as leoclr
from leoclr.cli.config.augmentation import augmentation_spec
from leoclr.cli.config.resolve import resolve
from leoclr.cli.config.sections import AugmentationSettings
from leoclr.cli.config.settings import Settings
from leoclr.datasets.images.normalise import normalise
from leoclr.datasets.loading.loader import StepDataset
from leoclr.datasets.loading.plan import Plan
from leoclr.datasets.shards.locate import open_data
from leoclr.datasets.shards.reader import SampleReader
from leoclr.datasets.views import POLICIES

_BATCH, _SMALL_BATCH = 16, 128  # the preset `cifar10` has batches of 512
Work = Callable[[int], object]  # makes the views of image i, or of the i-th batch


def sample_files(folder: Path, count: int, small: bool) -> None:
    """Pieces of photographs: JPEGs of 500 x 375 pixels, or PNGs of 32 x 32."""
    folder.mkdir()
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    generator = random.Random(0)
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        left, top = generator.randrange(photograph.width - 500), generator.randrange(photograph.height - 375)
        piece = photograph.crop((left, top, left + 500, top + 375))
        if small:
            piece.resize((32, 32)).save(folder / f"{number:05d}.png")
        else:
            piece.save(folder / f"{number:05d}.jpg", quality=90)


class Blur:
    """MoCo's Gaussian blur (its moco/loader.py)."""

    def __init__(self, sigmas: tuple[float, float]) -> None:
        self.sigmas = sigmas

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(*self.sigmas)))


def recipe(size: int, chosen: AugmentationSettings) -> tuple[Any, Any]:
    """MoCo-v2's transforms for a crop, and the same for the whole image."""
    photometric = [
        transforms.RandomApply(
            [transforms.ColorJitter(chosen.brightness, chosen.contrast, chosen.saturation, chosen.hue)], chosen.jitter
        ),
        transforms.RandomGrayscale(chosen.grayscale),
        *([transforms.RandomApply([Blur(chosen.blur_sigma)], chosen.blur)] if chosen.blur else []),
        transforms.RandomHorizontalFlip(chosen.flip),
        transforms.ToTensor(),
        transforms.Normalize(chosen.mean, chosen.std),
    ]
    crop = transforms.RandomResizedCrop(size, chosen.crop_scale, chosen.crop_ratio)
    return (
        transforms.Compose([crop, *photometric]),
        transforms.Compose([transforms.Resize((size, size)), *photometric]),
    )


def pillow(encoded: bytes) -> Image.Image:
    """As torchvision's loader of folders."""
    return Image.open(io.BytesIO(encoded)).convert("RGB")


def peers(settings: Settings, encoded: list[bytes], small: bool) -> dict[str, Work]:
    """The recipe with two and three views, and lightly's two."""
    crop, whole = recipe(settings.data.image_size, settings.augmentation)
    decoded = [pillow(data) for data in encoded] if small else []

    def image(number: int) -> Image.Image:
        return decoded[number] if small else pillow(encoded[number])

    def two(number: int) -> object:
        opened = image(number)
        return crop(opened), crop(opened)

    def three(number: int) -> object:
        opened = image(number)
        return whole(opened), crop(opened), crop(opened)

    found: dict[str, Work] = {"torchvision, 2 views": two, "torchvision, 3 views": three}
    if importlib.util.find_spec("lightly"):
        from lightly.transforms import MoCoV2Transform

        chosen = settings.augmentation
        transform = MoCoV2Transform(
            settings.data.image_size, min_scale=chosen.crop_scale[0], gaussian_blur=chosen.blur, cj_strength=1.0
        )
        found["lightly, 2 views"] = lambda number: transform(image(number))
    return found


def decoders(encoded: list[bytes], small: bool) -> dict[str, Work]:
    """Decoding alone, to pixels in an array."""
    found: dict[str, Work] = {
        "decode, Pillow": lambda number: np.asarray(pillow(encoded[number])),
        "decode, OpenCV": lambda number: cv2.imdecode(np.frombuffer(encoded[number], np.uint8), cv2.IMREAD_COLOR),
    }
    if not small:
        found["decode, simplejpeg"] = lambda number: simplejpeg.decode_jpeg(encoded[number])
    return found


def ours(settings: Settings, shards: Path, batch: int) -> dict[str, Work]:
    """Batches as a loader process makes them."""
    index = open_data([str(shards)])
    plan = Plan.of(index, batch, settings.train.seed)
    chosen = settings.augmentation
    found: dict[str, Work] = {}
    for executor, views in (("fast", "leoclr"), ("pillow", "leoclr"), ("fast", "pairwise")):
        changed = settings.model_copy(update={"augmentation": chosen.model_copy(update={"executor": executor})})
        dataset = StepDataset(index, plan, POLICIES[views], augmentation_spec(changed))
        count = len(POLICIES[views].views)
        found[f"leoclr {executor}, {count} views"] = dataset.__getitem__
        if (executor, views) == ("fast", "leoclr"):

            def normalised(step: int, dataset: StepDataset = dataset) -> object:
                return [normalise(view, chosen.mean, chosen.std) for view in dataset[step].views.values()]

            found[f"leoclr {executor}, {count} views, float"] = normalised
    return found


def measure(
    single: Mapping[str, Work], batched: Mapping[str, Work], images: int, batch: int, rounds: int
) -> dict[str, list[float]]:
    """Images per second of processor time of each in each round, after one that does not count."""
    rates: dict[str, list[float]] = {name: [] for name in (*single, *batched)}
    steps = images // batch
    for number in range(rounds + 1):
        for name in rates:
            began = time.process_time()
            if name in single:
                for image in range(steps * batch):
                    single[name](image)
            else:
                for step in range(number * steps, (number + 1) * steps):
                    batched[name](step)
            if number:
                rates[name].append(steps * batch / (time.process_time() - began))
    return rates


def quartiles(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": median, "low": low, "high": high}


def compare(source: Path | None, preset: str, arguments: argparse.Namespace) -> list[dict[str, object]]:
    """One row for each that was measured, then one for each ratio."""
    settings = resolve(preset, None, {}, {}).settings
    size = settings.data.image_size
    small = size < 64
    with tempfile.TemporaryDirectory() as folder:
        files, shards = Path(folder, "files"), Path(folder, "shards")
        if source is None:
            sample_files(files, max(arguments.images, 4 * _SMALL_BATCH if small else 0), small)
        try:
            leoclr(["shard", str(source or files), str(shards)])
        except SystemExit as ended:
            if ended.code:
                raise
        index = open_data([str(shards)])
        batch = _SMALL_BATCH if small else _BATCH
        images = min(len(index), max(arguments.images, 4 * batch))
        reader = SampleReader(index)
        encoded = [reader.read(number) for number in range(images)]
        floors = decoders(encoded, small)
        single = peers(settings, encoded, small) | floors
        rates = measure(single, ours(settings, shards, batch), images, batch, arguments.rounds)
    rows: list[dict[str, object]] = [{"size": size, "what": name, **quartiles(found)} for name, found in rates.items()]
    fastest = max(floors, key=lambda name: statistics.median(rates[name]))
    for other in ("torchvision, 3 views", "torchvision, 2 views", "leoclr pillow, 3 views", fastest):
        for name in ("leoclr fast, 3 views", "leoclr fast, 3 views, float"):
            ratios = [mine / theirs for mine, theirs in zip(rates[name], rates[other], strict=True)]
            rows.append({"size": size, "what": f"{name} / {other}", "ratio": True, **quartiles(ratios)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source", nargs="?", type=Path, help="photographs; JPEGs for the decoders' sake")
    parser.add_argument("--small", type=Path, help="images of 32 x 32 pixels")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # of lightly's imports
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rows = compare(arguments.source, "imagenet", arguments) + compare(arguments.small, "cifar10", arguments)
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        digits = 2 if "ratio" in row else 0
        numbers = "{median:10,.{0}f} ({low:,.{0}f} to {high:,.{0}f})".format(digits, **row)
        print(f"{row['size']:4} px  {row['what']:58} {numbers}")


if __name__ == "__main__":
    main()
