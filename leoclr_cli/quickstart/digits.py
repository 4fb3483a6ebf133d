"""Real images without a download: scikit-learn's handwritten digits as a folder of PNG files."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from leoclr.datasets.errors import DataError

TEST_IMAGES = 500
SPLIT_SEED = 0
GREY_LEVELS = 16


def write_digits(folder: Path) -> None:
    """Writes 1,297 training and 500 test images as `folder/SPLIT/CLASS/NUMBER.png`, 8 x 8 pixels, grey.

    NUMBER is the image's place in scikit-learn's data set, CLASS its digit. The split is always the same and keeps
    the share of each class. Grey levels 0 to 16 become 0 to 255, each its own value, so nothing is lost. The folder
    appears only when all of it is written.

    Raises:
        DataError: The folder exists already.
    """
    if folder.exists():
        raise DataError(f"{folder} exists already; name a folder that does not")
    digits = load_digits()
    levels = np.rint(digits.images * (255 / GREY_LEVELS)).astype(np.uint8)
    numbers = np.arange(len(levels))
    train, test = train_test_split(numbers, test_size=TEST_IMAGES, stratify=digits.target, random_state=SPLIT_SEED)
    unfinished = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        for split, members in (("train", train), ("test", test)):
            for label in digits.target_names:
                (unfinished / split / str(label)).mkdir(parents=True)
            for number in members:
                path = unfinished / split / str(digits.target[number]) / f"{number:04d}.png"
                Image.fromarray(levels[number]).save(path)
        os.replace(unfinished, folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
