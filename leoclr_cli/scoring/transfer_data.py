"""Data sets for transfer: those of the paper's Table 3 by name, others as shards."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from leoclr.cli.image_folders import as_shards
from leoclr.cli.terminal import say
from leoclr.datasets.errors import DataError, EvaluationError
from leoclr.datasets.shards.locate import sibling_split

REPORTED = {  # Kornblith et al., arXiv 1805.08974, table 1
    "cifar10": "top1",
    "cifar100": "top1",
    "cars": "top1",
    "pets": "mean_per_class",
}

_SPLITS = {"train", "training", "trainval", "val", "valid", "validation", "test", "data", "shard", "shards", "tar"}


@dataclass(frozen=True)
class TransferData:
    """Training and test shards, the metric that the data set is reported with, and its name."""

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    metric: str


def transfer_data(specs: list[str], test_specs: list[str], root: Path, download: bool) -> TransferData:
    """Find the data that `--data` and `--test-data` name; a data set by name is packed into `root`/shards first.

    Raises:
        DataError: It is not there, or nothing says what the test data is.
    """
    name = specs[0]
    if name == "birdsnap":
        raise DataError(
            "birdsnap is in no library: its images must be fetched one by one; pack them in folders per class with "
            "`leoclr shard birdsnap/ shards/birdsnap` and give --data shards/birdsnap"
        )
    if len(specs) == 1 and name in REPORTED and not Path(name).exists():
        if test_specs:
            raise EvaluationError(f"--data {name} has test data of its own; leave out --test-data {test_specs[0]}")
        folder = root / "shards" / name
        _pack(name, folder, root, download)
        return TransferData(name, (str(folder / "train"),), (str(folder / "test"),), REPORTED[name])
    test = tuple(test_specs) or sibling_split(as_shards(specs, announce=False))
    if not test:
        raise EvaluationError(f"{name}: there is no val or test folder beside the training data; name it: --test-data")
    return TransferData(data_set_name(name), tuple(specs), test, "top1")


def data_set_name(spec: str) -> str:
    """What a data set is called: the last part of its address that names neither a split nor shards.
    `shards/birds/train` and `s3://bucket/birds/train-{000..009}.tar` are birds, and so is `shards/train` with
    `birds-000000.tar` in it."""
    path = Path(spec)
    shard = min((file.name for folder in (path, path / "train") for file in folder.glob("*.tar")), default="")
    around = () if "://" in spec else Path(os.path.abspath(spec)).parts
    for part in (*reversed(path.parts), re.sub(r"[-_.]?\d+\.tar$", "", shard), *reversed(around)):
        words = re.split(r"[^A-Za-z]+", part.removesuffix(".tar"))
        if not {word.lower() for word in words if word} <= _SPLITS:
            return re.split(r"[-_.]?[{\[*?]", part)[0].removesuffix(".tar") or part
    return Path(spec).name or spec


def _pack(name: str, folder: Path, root: Path, download: bool) -> None:
    """Pack one of torchvision's data sets, unless that is done: the folder holds all of it or nothing."""
    if any((folder / "train").glob("*.index.json")):
        return
    from leoclr.cli.packing import pack_source
    from leoclr.datasets.packing.pack import PackingRecipe

    pack_source(name, folder, PackingRecipe(name), root=root, download=download)
    say(f"packed {name} into {folder}")
