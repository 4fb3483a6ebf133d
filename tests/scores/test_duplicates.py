"""`leoclr duplicates`: near copies by features, equal bytes, and the list that `leoclr shard` takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError

from leoclr.backends.networks.backbones import build_backbone
from leoclr.cli.image_folders import as_shards
from leoclr.datasets.shards.copies import exact_copies
from leoclr.datasets.shards.locate import open_data
from leoclr.evals import near_copies as module
from leoclr.evals.features.extract import Features
from leoclr.evals.near_copies import near_copies, unit_features

Run = Callable[..., tuple[int, str, str]]


def clusters(count: int, seed: int) -> NDArray[np.float32]:
    """Features with clusters of several sizes, in any order."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(count // 5, 12))
    features = centres[random.integers(0, len(centres), count)] + random.normal(0, 0.15, (count, 12))
    return features.astype(np.float32) + 3.0  # a direction that all share


def one_by_one(features: NDArray[np.float32], threshold: float) -> tuple[list[int], list[float]]:
    """The definition, in float64."""
    centred = features.astype(np.float64) - features.astype(np.float64).mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    kept, original, similarity = list[int](), list[int](), list[float]()
    for number in range(len(unit)):
        cosines = {other: float(unit[number] @ unit[other]) for other in kept}
        nearest = max(cosines, key=lambda other: cosines[other], default=None)
        if nearest is not None and cosines[nearest] >= threshold:
            original.append(nearest)
            similarity.append(cosines[nearest])
        else:
            kept.append(number)
            original.append(number)
            similarity.append(1.0)
    return original, similarity


def units_of(features: NDArray[np.float32], tmp_path: Path) -> NDArray[Any]:
    halves = np.array_split(np.arange(len(features)), 3)
    pieces = [Features(features[rows], np.full(len(rows), -1), rows) for rows in halves]
    return unit_features(lambda: pieces, np.arange(len(features)), len(features), features.shape[1], tmp_path)


@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("memory", [0, 40_000, 1 << 29])
def test_copies_are_those_of_the_definition(tmp_path: Path, threshold: float, memory: int) -> None:
    features = clusters(150, seed=int(threshold * 100))
    done = list[int]()
    found = near_copies(units_of(features, tmp_path), threshold, memory=memory, advance=done.append)
    original, similarity = one_by_one(features, threshold)
    assert found.original.tolist() == original and 1 < len(set(original)) < 150
    assert found.similarity == pytest.approx(similarity, abs=1e-5)
    assert sum(done) == 150 * 151 // 2 and (len(done) > 1) == (memory < 1 << 29)


def test_features_on_the_disk_are_half_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = clusters(60, seed=1)
    exact = units_of(features, tmp_path)
    monkeypatch.setattr(module, "_IN_MEMORY", 0)
    stored = units_of(features, tmp_path)
    assert stored.dtype == np.float16 and np.abs(stored - exact).max() < 1e-3 and not list(tmp_path.iterdir())
    assert near_copies(stored, 0.9).original.tolist() == near_copies(exact, 0.9).original.tolist()


@pytest.fixture
def photos(tmp_path: Path, command_line: Run) -> Path:
    """Twelve different images in two splits, and copies: one with other pixels and a larger file, one of equal bytes,
    and one in the other split."""
    random = np.random.default_rng(0)
    for number in range(12):
        pixels = np.kron(random.integers(0, 255, (4, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        path = tmp_path / "photos" / ("train" if number < 9 else "val") / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    cats = tmp_path / "photos" / "train" / "cat"
    noisy = np.asarray(Image.open(cats / "2.png")).astype(int) + random.integers(-2, 3, (32, 32, 3))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(cats / "noisy.png")
    (cats / "same.png").write_bytes((cats / "4.png").read_bytes())
    (tmp_path / "photos" / "val" / "cat" / "same.png").write_bytes((cats / "6.png").read_bytes())
    return tmp_path / "photos"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.save(build_backbone("resnet18", "cifar", 8).state_dict(), tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_the_list_makes_a_data_set_without_the_copies(
    command_line: Run, photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = ("duplicates", weights, "--data", "photos", "--image-size", 16, "--device", "cpu", "--workers", 0)
    code, out, err = command_line(*call, "-o", "found/copies.txt")
    assert code == 0, err
    assert out.startswith("11 images, 2 groups of near copies: 2 copies, 1 of them with equal bytes\n")
    assert "next: leoclr shard photos shards/photos --without found/copies.txt" in err
    copies = set(Path("found/copies.txt").read_text().split())
    assert copies in ({"train/cat/2", "train/cat/4"}, {"train/cat/2", "train/cat/same"})
    with Image.open("found/copies.png") as picture:
        assert picture.format == "PNG"

    assert command_line("shard", "photos", "shards", "--without", "found/copies.txt")[0] == 0
    every = {f"train/{key}" for key in open_data(as_shards(["photos"])).keys()}
    assert {f"train/{key}" for key in open_data(["shards"]).keys()} == every - copies
    assert "cat/same" in open_data(["shards/val"]).keys()  # of the other split, and no copy within train

    monkeypatch.setattr("leoclr.cli.scoring.embedding.extract_features", None)  # features are there already
    record = json.loads(command_line(*call, "--threshold", 1, "--json")[1])
    assert (record["copies"], record["same_bytes"], record["list"]) == (1, 1, "duplicates.txt")
    (group,) = record["groups"]
    assert {group["kept"], group["copies"][0]["key"]} == {"cat/4", "cat/same"}
    assert group["copies"] == [{"key": group["copies"][0]["key"], "similarity": 1.0, "same_bytes": True}]


def test_no_copies(command_line: Run, photos: Path, weights: Path) -> None:
    call = ("duplicates", weights, "--data", "photos/val", "--image-size", 16, "--device", "cpu", "--workers", 0)
    code, out, err = command_line(*call)
    assert code == 0 and out.startswith("4 images, 0 groups of near copies: 0 copies, 0 of them with equal bytes")
    assert Path("duplicates.txt").read_text() == "" and not Path("duplicates.png").exists()
    assert command_line(*call, "--picture", "x.jpg")[0] == 2


def test_many_copies_are_doubted_and_no_list_of_them_recommended(
    command_line: Run, photos: Path, weights: Path
) -> None:
    """At a cosine of 0.3, untrained features make copies of different images, in several groups."""
    call = ("duplicates", weights, "--data", "photos", "--image-size", 16, "--device", "cpu", "--workers", 0)
    _, out, err = command_line(*call, "--threshold", 0.3)
    assert "of 11 images are near copies with other bytes, which is much" in err and "next:" not in err, (out, err)
    _, _, err = command_line(*call)
    assert "which is much" not in err and "next:" in err


@pytest.mark.parametrize("command", ["duplicates", "embed"])
def test_a_full_disk_is_one_line(
    command: str, command_line: Run, photos: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("leoclr.evals.features.stored.save_file", full)
    call = (weights, "--data", "photos/val", "--image-size", 16, "--device", "cpu", "--workers", 0)
    code, out, err = command_line(command, *call)
    last = err.splitlines()[-1]
    assert code == 2 and out == "" and "cannot be written" in last and "No space left on device" in last


@pytest.mark.parametrize("checksums", [True, False])
def test_equal_bytes_are_found_with_and_without_checksums(photos: Path, checksums: bool) -> None:
    index = open_data(as_shards([str(photos)]))
    if not checksums:
        index = replace(index, crc=np.zeros(len(index), np.uint32))
    done = list[int]()
    ((copy, first),) = exact_copies(index, done.append).items()
    assert {index.key(copy), index.key(first)} == {"cat/4", "cat/same"} and first < copy and sum(done) == len(index)
