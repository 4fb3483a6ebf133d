"""The digits of scikit-learn as PNG files."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from leoclr.cli.quickstart.digits import write_digits
from leoclr.datasets.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work") / "digits"
    write_digits(folder)
    return folder


def test_every_digit_is_written_once_and_without_loss(folder: Path) -> None:
    digits = load_digits()
    paths = sorted(folder.glob("*/*/*.png"), key=lambda path: path.stem)

    assert [int(path.stem) for path in paths] == list(range(1797))
    for path, levels, label in zip(paths, digits.images, digits.target, strict=True):
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("L", (8, 8))
            assert np.array_equal(np.rint(np.asarray(image) * (16 / 255)), levels)
        assert path.parent.name == str(label)


def test_split_is_fixed_and_keeps_the_share_of_each_class(folder: Path) -> None:
    test = sorted(path.relative_to(folder / "test").as_posix() for path in folder.glob("test/*/*.png"))
    train = Counter(path.parent.name for path in folder.glob("train/*/*.png"))

    assert (len(test), train.total()) == (500, 1297)
    for label, count in Counter(name.split("/")[0] for name in test).items():
        assert count / 500 == pytest.approx(train[label] / 1297, abs=0.002)
    assert hashlib.sha256("\n".join(test).encode()).hexdigest()[:16] == "b529e3f87e73a2e3"


def test_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="exists already"):
        write_digits(tmp_path)

    assert list(tmp_path.iterdir()) == []
