"""Sizes of the recipes' data sets, to refuse other data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from leoclr.cli.recipes.steps import RecipePlan
from leoclr.datasets.errors import DataError
from leoclr.datasets.shards.locate import open_data, sibling_split

_TOLERANCE = 0.001  # images that could not be packed


@dataclass(frozen=True)
class Known:
    """A published data set.

    Attributes:
        splits: Images by split, the training data first; a folder without a split's name means that.
        classes: Of every labelled split.
        unlabelled: Splits without labels.
    """

    title: str
    splits: dict[str, int]
    classes: int
    unlabelled: tuple[str, ...] = ()


KNOWN = {
    "imagenet": Known("ImageNet-1K", {"train": 1_281_167, "val": 50_000}, 1000),
    "cifar10": Known("CIFAR-10", {"train": 50_000, "test": 10_000}, 10),
    "cifar100": Known("CIFAR-100", {"train": 50_000, "test": 10_000}, 100),
    "stl10": Known("STL-10", {"train": 5_000, "test": 8_000, "unlabeled": 100_000}, 10, ("unlabeled",)),
    "cars": Known("Stanford Cars", {"train": 8_144, "test": 8_041}, 196),
    "pets": Known("Oxford-IIIT Pets", {"train": 3_680, "test": 3_669}, 37),
}


def check_known(plan: RecipePlan) -> None:
    """Raise DataError where a data set that the recipe knows by name has other numbers of images or classes."""
    for name, split, specs in dict.fromkeys(_used(plan)):
        known = KNOWN[name]
        index = open_data(specs)
        images, classes = len(index), index.class_count
        wanted = known.splits[split]
        unlabelled = split in known.unlabelled
        if abs(images - wanted) > _TOLERANCE * wanted or not (unlabelled or classes == known.classes):
            found = f"{images:,} images of {classes:,} classes" if classes else f"{images:,} images without labels"
            expected = f"{wanted:,}" + ("" if unlabelled else f" of {known.classes:,}")
            raise DataError(
                f"{', '.join(specs)}: {found}, where the {split} split of {known.title} has {expected}; with "
                "--any-data the recipe runs on it nevertheless, as a trial"
            )


def _used(plan: RecipePlan) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Data set, split and shards of all that the recipe reads, but for data sets that it packs itself."""
    recipe = plan.recipe
    asked = [pretraining.data for pretraining in recipe.pretrain.values()]
    asked += [split for column in recipe.columns for split in (column.train_data, column.test_data) if split]
    for one in asked:
        name, _, split = one.partition("/")
        if name not in KNOWN or plan.data[name] in KNOWN:
            continue
        first, *others = KNOWN[name].splits
        specs = (plan.shards(one),)
        if split in KNOWN[name].splits:
            yield name, split, specs
        elif not split:
            yield name, first, specs
            if beside := sibling_split(specs):
                yield name, others[0], beside
