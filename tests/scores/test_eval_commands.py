"""`leoclr eval` from a run folder to a table and a record."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from leoclr.backends.networks.backbones import Backbone, build_backbone
from leoclr.cli.config.settings import Settings
from leoclr.cli.run.checkpoint import save_checkpoint
from leoclr.cli.run.folder import RunFolder
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.scan import build_index

SIZE = 16
CLASSES = ("blue", "green", "red")
SETTINGS = Settings.model_validate(
    {"data": {"image_size": SIZE}, "encoder": {"backbone": "resnet18", "stem": "cifar", "width": 8}}
).model_dump(mode="json")
Run = Callable[..., tuple[int, str, str]]


def pack(folder: Path, labels: Sequence[int | None], classes: Sequence[str] = CLASSES, seed: int = 0) -> Path:
    """Noise with a tint for each class, in one shard with its index."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    with tarfile.open(folder / "data-000000.tar", "w") as tar:
        for number, label in enumerate(labels):
            pixels = random.integers(0, 120, (SIZE, SIZE, 3))
            pixels[:, :, 2 - label if label is not None else 0] += 100
            buffer = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
            files = {"png": buffer.getvalue()} | ({} if label is None else {"cls": str(label).encode()})
            for suffix, content in files.items():
                member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    build_index([folder / "data-000000.tar"], classes).save(folder / "data.index.json")
    return folder


def make_run(path: Path, train: Path, val: Path | None = None, breakage: float | None = None) -> Path:
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", "cifar", 8)
    backbone(torch.randn(16, 3, SIZE, SIZE))
    if breakage is not None:
        torch.nn.init.zeros_(backbone.get_parameter("layer4.1.bn2.weight"))
        torch.nn.init.constant_(backbone.get_parameter("layer4.1.bn2.bias"), breakage)
    folder = RunFolder(path)
    data = {"train": [str(train)], "val": [str(val)] if val else []}
    folder.write({"settings": SETTINGS, "data": data, "started": "2026-01-01T00:00:00+00:00"})
    model = {f"encoder.backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}
    save_checkpoint(folder.checkpoints, 5, {"model": model}, {"settings": SETTINGS})
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    pack(tmp_path / "data" / "train", [number % 3 for number in range(60)], seed=1)
    pack(tmp_path / "data" / "val", [number % 3 for number in range(30)], seed=2)
    return tmp_path / "data"


@pytest.fixture
def run(tmp_path: Path, data: Path) -> Path:
    return make_run(tmp_path / "runs" / "first", data / "train")


@pytest.fixture
def leoclr(command_line: Run) -> Run:
    return partial(command_line, "eval")


def record(folder: Path, kind: str) -> dict[str, Any]:
    (path,) = (folder / "evals").glob(f"{kind}-*.json")
    return dict(json.loads(path.read_text()))


def test_the_five_best_of_three_classes_are_no_figure_whatever_their_numbers(leoclr: Run, tmp_path: Path) -> None:
    for name in ("train", "val"):
        folder = tmp_path / "gaps" / name
        pack(folder, [number % 3 for number in range(30)], seed=len(name))
        index = Index.load(folder / "data.index.json")
        replace(index, label=index.label * 4, classes=()).save(folder / "data.index.json")
    make_run(tmp_path / "runs" / "gaps", tmp_path / "gaps" / "train")
    for kind, row in (("knn", "weighted"), ("linear", "linear")):
        code, out, _ = leoclr(kind)
        assert code == 0 and "top-1" in out and "top-5" not in out
        assert record(tmp_path / "runs" / "gaps", kind)["results"][row].keys() == {"top1", "top1_image_half_width"}


@pytest.mark.parametrize(
    "arguments", [("linear", "--protocol", "sgd", "--lr", "nan"), ("semisup", "--labels", "50%", "--head-lr", "inf"),
                  ("transfer", "--data", "x", "--lr", "inf"), ("detection", "--data", "x", "--lr", "nan")]
)  # fmt: skip
def test_rates_are_numbers(leoclr: Run, run: Path, arguments: tuple[str, ...]) -> None:
    code, out, err = leoclr(*arguments)
    assert code == 2 and not out and "lr" in err and "Traceback" not in err


@pytest.mark.parametrize(("flags", "unbuffered"), [((), ""), (("--json",), "1")])
def test_a_score_that_cannot_be_printed_is_kept(
    leoclr: Run, run: Path, tmp_path: Path, flags: tuple[str, ...], unbuffered: str
) -> None:
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "leoclr.cli", "eval", "knn", str(run), *flags]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and errors == ["error: the output cannot be written: No space left on device"]
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr and record(run, "knn")["results"]


@pytest.mark.parametrize("output", [".", "/", "folder"])
def test_a_folder_is_no_file_to_write(leoclr: Run, run: Path, tmp_path: Path, output: str) -> None:
    (tmp_path / "folder").mkdir()
    code, out, err = leoclr("knn", "-o", output)
    assert code == 2 and not out and "is a directory" in err and not (run / "features").exists()


def test_other_images_of_the_same_lengths_are_scored_anew(leoclr: Run, run: Path, data: Path) -> None:
    """Formats without compression have one length whatever they show."""
    digests = []
    for seed in (1, 2):
        random, folder = np.random.default_rng(seed), data / "val"
        with tarfile.open(folder / "data-000000.tar", "w") as tar:
            for number in range(30):
                buffer = io.BytesIO()
                Image.fromarray(random.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)).save(buffer, "BMP")
                for suffix, content in (("bmp", buffer.getvalue()), ("cls", str(number % 3).encode())):
                    member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        index = build_index([folder / "data-000000.tar"], CLASSES)
        index.save(folder / "data.index.json")
        digests.append(index.digest)
        assert leoclr("knn")[0] == 0
    assert digests[0] == digests[1]
    assert len(list((run / "features").iterdir())) == 3  # of the training data, and of either


def test_knn_needs_no_arguments_after_a_run(leoclr: Run, run: Path, data: Path) -> None:
    code, out, err = leoclr("knn")
    assert code == 0
    assert "k = 60, tau = 0.1" in out and "k = 20, majority" in out and "top-1 %" in out
    assert "whole image" in out and "cosine" in out and "beside the training data" in out
    found = record(run, "knn")
    assert found["results"]["weighted"].keys() == {"top1", "top1_image_half_width"}
    assert found["results"]["majority"]["top1"] > 0.4
    assert f"{100 * found['results']['majority']['top1']:.2f}" in out
    assert found["data"]["train"]["samples"] == 60 and found["data"]["test"]["samples"] == 30
    assert found["data"]["train"]["digest"] == Index.load(data / "train" / "data.index.json").digest
    assert found["data"]["classes"] == 3 and found["seed"] == 0
    assert len(found["checkpoint"]["digest"]) == 64 and "step-000000005" in found["checkpoint"]["path"]
    assert {"torch", "scikit-learn", "python"} <= found["versions"].keys()
    assert str(run / "evals") in err or "evals" in err


def test_knn_of_whitened_features_says_so_and_is_kept_beside_the_usual_score(leoclr: Run, run: Path) -> None:
    assert leoclr("knn", run)[0] == 0
    code, out, err = leoclr("knn", run, "--whiten")
    assert code == 0 and "whitened by the training features" in out and "are few to whiten" in out + err
    records = [json.loads(file.read_text()) for file in (run / "evals").glob("knn-*.json")]
    assert sorted(found["details"]["whitened"] for found in records) == [False, True]


def test_linear_reports_the_chosen_c_and_its_holdout(leoclr: Run, run: Path) -> None:
    code, out, _ = leoclr("linear", run, "--normalise", "l2", "--seed", 3)
    assert code == 0
    found = record(run, "linear")
    assert f"C = {found['details']['c']:g}" in out and "hold-out of the training data" in out
    assert len(found["details"]["holdout"]) >= 5 and found["details"]["normalise"] == "l2"
    assert "L2-normalised" in " ".join(found["protocol"]) and "seed 3" in " ".join(found["protocol"])
    assert found["results"]["linear"]["top1"] > 0.5


def test_robustness_gives_centre_random_and_drop(leoclr: Run, run: Path) -> None:
    code, out, _ = leoclr("robustness", "--crop", "random", "--crop-seeds", 3, "--probe", "knn")
    assert code == 0
    found = record(run, "robustness")
    assert len(found["details"]["random"]["top1"]) == 3
    results = found["results"]
    assert results["drop"]["top1"] == pytest.approx(results["centre"]["top1"] - results["random"]["top1"])
    assert results["drop"].keys() >= {"top1_half_width", "top1_image_half_width"} and "(images)" in out
    assert "short side to 18 px" in out and "seed 0, draw 0 to 2" in out and "0.08-1" in out


def test_json_is_the_record_and_nothing_else_on_stdout(leoclr: Run, run: Path, tmp_path: Path) -> None:
    code, out, _ = leoclr("knn", run, "--json", "-o", tmp_path / "out" / "knn.json")
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "out" / "knn.json").read_text())
    assert not (run / "evals").exists()


def test_repeating_an_evaluation_repeats_its_numbers_and_its_file(leoclr: Run, run: Path) -> None:
    first = [leoclr("linear", run), record(run, "linear")][1]
    second = [leoclr("linear", run, "--no-cache", "--workers", 2), record(run, "linear")][1]
    assert isinstance(first, dict) and isinstance(second, dict)
    assert first["results"] == second["results"] and first["protocol"] == second["protocol"]


def test_cached_features_are_used(leoclr: Run, run: Path, data: Path) -> None:
    assert leoclr("knn", run)[0] == 0
    assert len(list((run / "features").iterdir())) == 2
    before = record(run, "knn")["results"]
    shard = data / "val" / "data-000000.tar"
    written = shard.stat()
    shard.write_bytes(bytes(written.st_size))  # the images are gone, their features are not
    os.utime(shard, ns=(written.st_atime_ns, written.st_mtime_ns))  # else the index is not believed
    assert leoclr("knn", run)[0] == 0
    assert record(run, "knn")["results"] == before
    code, _, err = leoclr("knn", run, "--no-cache")
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1


def test_no_cache_leaves_no_features(leoclr: Run, run: Path) -> None:
    assert leoclr("knn", run, "--no-cache")[0] == 0
    assert not (run / "features").exists()


def test_without_a_split_a_fifth_is_held_out(leoclr: Run, tmp_path: Path) -> None:
    train = pack(tmp_path / "alone", [number % 3 for number in range(60)])
    folder = make_run(tmp_path / "runs" / "alone", train)
    code, out, _ = leoclr("knn", folder)
    assert code == 0 and "48 training and 12 test images" in out and "stratified 20%" in out


def test_the_runs_own_validation_data_is_taken(leoclr: Run, tmp_path: Path, data: Path) -> None:
    val = pack(tmp_path / "elsewhere", [0, 1, 2, 2], seed=5)
    code, out, _ = leoclr("knn", make_run(tmp_path / "runs" / "second", data / "train", val))
    assert code == 0 and "4 test images" in out and "the run's validation data" in out


def test_other_weights_need_data_and_are_cached_for_the_user(leoclr: Run, tmp_path: Path, data: Path) -> None:
    torch.manual_seed(0)
    backbone: Backbone = build_backbone("resnet18", "cifar", 8)
    torch.save(backbone.state_dict(), tmp_path / "weights.pth")
    code, _, err = leoclr("knn", tmp_path / "weights.pth")
    assert code == 2 and "--train-data" in err
    code, out, err = leoclr("knn", tmp_path / "weights.pth", "--train-data", data / "train", "--image-size", SIZE)
    assert code == 0 and "16 x 16" in out and "written" not in err
    assert len(list((tmp_path / "cache" / "leoclr" / "features").iterdir())) == 2


def test_networks_of_equal_weights_have_features_of_their_own(leoclr: Run, tmp_path: Path, data: Path) -> None:
    """The same tensors, padded otherwise: a state dict that is scored first as one of them and then as the other."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    torch.save(timm.create_model("efficientnet_b0", num_classes=0).state_dict(), tmp_path / "weights.pth")
    flags = ("--train-data", data / "train", "--image-size", SIZE, "--workers", 0)
    for name in ("efficientnet_b0", "tf_efficientnet_b0"):
        assert leoclr("knn", tmp_path / "weights.pth", "--backbone", f"timm:{name}", *flags)[0] == 0
    assert len(list((tmp_path / "cache" / "leoclr" / "features").iterdir())) == 4


def test_a_network_of_one_size_takes_no_other(leoclr: Run, tmp_path: Path, data: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict(), tmp_path / "weights.pth")
    flags = ("--train-data", data / "train", "--image-size", "96", "--backbone", "timm:vit_tiny_patch16_224")
    code, _, err = leoclr("knn", tmp_path / "weights.pth", *flags)
    assert code == 2 and "takes images of 224 px alone" in err


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("vit_b_32", 96, "--image-size 96: vit_b_32 takes images of 224 px alone"),
        ("alexnet", 8, "--image-size 8: alexnet is trained on images of 224 px; it does not take images of 8 px ("),
        ("alexnet", 10**9, "invalid value for '--image-size'"),
    ],
)
def test_a_size_that_a_network_does_not_take_is_one_line(
    leoclr: Run, tmp_path: Path, data: Path, name: str, size: int, said: str
) -> None:
    torch.save(build_backbone(name).state_dict(), tmp_path / "weights.pth")
    flags = ("--train-data", data / "train", "--image-size", size, "--backbone", name)
    code, _, err = leoclr("knn", tmp_path / "weights.pth", *flags)
    assert code == 2 and said in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (("linear", "--lr", "3"), "--lr has no effect without --protocol sgd"),
        (("linear", "--protocol", "sgd", "--normalise", "l2"), "--normalise has no effect with --protocol sgd"),
        (("transfer", "--data", "cifar10", "--mode", "linear", "--epochs", "3"), "--epochs has no effect with --mode"),
        (("robustness", "--crop", "random", "--memory", "9"), "--memory has no effect without --probe knn"),
    ],
)
def test_a_flag_that_nothing_reads_is_refused(command: tuple[str, ...], line: str, leoclr: Run, run: Path) -> None:
    code, _, err = leoclr(command[0], run, *command[1:])
    assert code == 2 and err.splitlines()[-1].startswith(f"error: {line}")


def test_classes_are_matched_by_name(leoclr: Run, run: Path, tmp_path: Path) -> None:
    expected = [leoclr("knn", run), record(run, "knn")][1]
    assert isinstance(expected, dict)
    renumbered = tmp_path / "renumbered"
    pack(renumbered, [number % 3 for number in range(30)], seed=2)
    index = Index.load(renumbered / "data.index.json")
    swap = np.array([2, 0, 1])
    (renumbered / "data-000000.tar").rename(tmp_path / "old.tar")
    with tarfile.open(tmp_path / "old.tar") as old, tarfile.open(renumbered / "data-000000.tar", "w") as new:
        for member in old:
            content = old.extractfile(member)
            assert content is not None
            data = content.read()
            if member.name.endswith(".cls"):
                data = str(swap[int(data)]).encode()
            new.addfile(member, io.BytesIO(data))
    names = ("green", "red", "blue")
    assert [names[swap[label]] for label in range(3)] == list(index.classes)
    build_index([renumbered / "data-000000.tar"], names).save(renumbered / "data.index.json")
    code, out, _ = leoclr("knn", run, "--data", renumbered, "--json")
    assert code == 0 and json.loads(out)["results"] == expected["results"]


BAD_DATA: dict[str, tuple[Sequence[int | None], Sequence[int | None], Sequence[str], str]] = {
    "no labels": ([None] * 9, [0, 1], CLASSES, "has no labels; give labelled images with --train-data"),
    "no test labels": ([0, 1] * 4, [None] * 3, CLASSES, "test data: the samples have no labels"),
    "some labels": (
        [0, 1] * 4,
        [0, 1, None, 1],
        CLASSES,
        "test data: 1 of 4 samples have no label, '0002' among them; `leoclr",
    ),
    "one class": ([1] * 9, [1, 1], CLASSES, "all 9 samples are of class 'green'"),
    "untrained class": ([0, 1] * 4, [0, 1, 2], CLASSES, "'red' of 3 classes have no training sample"),
    "other names": ([0, 1] * 4, [0, 1], ("cat", "dog"), "'cat', 'dog' of 2 classes"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_labels_are_one_line(leoclr: Run, tmp_path: Path, case: str) -> None:
    train, test, test_classes, expected = BAD_DATA[case]
    train_data, test_data = pack(tmp_path / "train", train), pack(tmp_path / "test", test, test_classes)
    folder = make_run(tmp_path / "runs" / "first", train_data)
    for command in ("knn", "linear"):
        code, out, err = leoclr(command, folder, "--data", test_data)
        assert code == 2 and not out
        assert err.startswith("error: ") and err.count("\n") == 1 and expected in err


@pytest.mark.parametrize(
    ("command", "flag"), [("eval knn", "--train-data"), ("eval linear", "--train-data"), ("embed", "--data"),
                          ("duplicates", "--data")]
)  # fmt: skip
def test_data_of_a_run_that_have_moved_can_be_named(
    command_line: Run, run: Path, data: Path, tmp_path: Path, command: str, flag: str
) -> None:
    data.rename(tmp_path / "elsewhere")
    code, out, err = command_line(*command.split(), run)
    gone = f"error: {data / 'train'}: no such file or folder; {flag} says where they have moved to\n"
    assert (code, out, err) == (2, "", gone)
    code, _, err = command_line(*command.split(), run, flag, tmp_path / "elsewhere" / "train")
    assert code == 0, err


def test_validation_data_of_a_run_that_have_moved_can_be_named(leoclr: Run, data: Path, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "runs" / "first", data / "train", data / "val")
    (data / "val").rename(tmp_path / "elsewhere")
    code, _, err = leoclr("knn", folder)
    assert code == 2 and err.endswith("no such file or folder; --data says where they have moved to\n")
    assert leoclr("knn", folder, "--data", tmp_path / "elsewhere")[0] == 0


@pytest.mark.parametrize(("breakage", "expected"), [(float("nan"), "NaN or infinite"), (-1e6, "collapsed")])
def test_a_broken_encoder_is_one_line(leoclr: Run, tmp_path: Path, data: Path, breakage: float, expected: str) -> None:
    folder = make_run(tmp_path / "runs" / "broken", data / "train", breakage=breakage)
    code, out, err = leoclr("linear", folder)
    assert code == 2 and not out and err.count("\n") == 1 and expected in err


def test_a_device_that_is_not_there_and_a_wrong_crop_scale(leoclr: Run, run: Path) -> None:
    code, _, err = leoclr("knn", run, "--device", "cuda:99")
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1
    code, _, err = leoclr("robustness", run, "--crop-scale", 0.9, 0.1)
    assert code == 2 and "--crop-scale 0.9 0.1" in err


def test_the_same_data_twice_is_pointed_out(leoclr: Run, run: Path, data: Path) -> None:
    code, _, err = leoclr("knn", run, "--data", data / "train")
    assert code == 0 and "same samples" in err


def test_test_images_that_are_training_images_are_counted_and_pointed_out(
    leoclr: Run, run: Path, data: Path, tmp_path: Path
) -> None:
    more = pack(tmp_path / "more", [number % 3 for number in range(90)], seed=1)  # the first 60 are those of train
    code, out, err = leoclr("knn", run, "--data", more, "--json")
    assert code == 0 and "60 of 90 test images are training images too" in err
    assert json.loads(out)["data"]["test"]["also_in_training"] == 60
    code, out, err = leoclr("knn", run, "--data", data / "val", "--json")
    assert code == 0 and not err.count("training images too")
    assert json.loads(out)["data"]["test"]["also_in_training"] == 0
