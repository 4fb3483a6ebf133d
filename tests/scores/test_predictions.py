"""Predictions for each image, and encoders compared by them."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from leoclr.backends.networks.backbones import build_backbone
from leoclr.cli.commands.app import main
from leoclr.evals.accuracy import Predictions
from leoclr.evals.mcnemar import compare

Run = Callable[..., tuple[int, str, str]]
COLUMNS = ["classifier", "key", "label", "prediction", "right", "score"]


@pytest.fixture
def leoclr(command_line: Run, make_tinted: Callable[..., Path]) -> Run:
    """`leoclr eval COMMAND SEED ...` for an encoder of random weights by the seed, on 60 and 40 images."""
    make_tinted("train", [number % 3 for number in range(60)], seed=1)
    make_tinted("test", [number % 3 for number in range(40)], seed=2)

    def call(command: str, seed: int, *arguments: object) -> tuple[int, str, str]:
        torch.manual_seed(seed)
        torch.save(build_backbone("resnet18", "cifar", 16).state_dict(), "weights.pth")
        data = ("--train-data", "train", "--data", "test", "--image-size", 16, "--workers", 0)
        return command_line("eval", command, "weights.pth", *data, *arguments)

    return call


@pytest.mark.parametrize(
    ("command", "classifiers"),
    [(("knn",), {"weighted": "weighted", "majority": "majority"}), (("linear",), {"linear": "linear"}),
     (("linear", "--protocol", "sgd", "--epochs", 1), {"linear": "linear"}),
     (("semisup", "--labels", "50%", "--epochs", 1), {"finetuned": "finetuned"}),
     (("robustness", "--crop-seeds", 1), {"centre": "centre", "random, draw 0": "random"})],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_the_figures_follow_from_the_predictions(
    leoclr: Run, command: tuple[str, ...], classifiers: dict[str, str]
) -> None:
    name, *options = command
    code, out, err = leoclr(name, 0, *options, "--predictions", "p.csv", "--json")
    assert code == 0 and "written to p.csv" in err, err
    rows = list(csv.DictReader(Path("p.csv").read_text().splitlines()))
    assert list(rows[0]) == COLUMNS and {row["classifier"] for row in rows} == classifiers.keys()
    for classifier, result in classifiers.items():
        mine = [row for row in rows if row["classifier"] == classifier]
        assert [row["key"] for row in mine] == [f"{number:05d}" for number in range(40)]
        assert [row["label"] for row in mine] == [("blue", "green", "red")[number % 3] for number in range(40)]
        assert all((row["label"] == row["prediction"]) == (row["right"] == "1") for row in mine)
        assert all(1 / 3 <= float(row["score"]) <= 1 for row in mine)
        right = sum(row["right"] == "1" for row in mine) / 40
        figures = json.loads(out)["results"][result]
        assert right == pytest.approx(figures["top1"])
        half = 1.96 * math.sqrt(right * (1 - right) / 39)
        assert figures["top1_image_half_width"] == pytest.approx(half, rel=1e-4)


def test_the_interval_of_the_mean_over_classes() -> None:
    labels = np.array([0] * 10 + [1] * 40)
    ranks = np.array([1] * 5 + [0] * 5 + [1] * 10 + [0] * 30)
    found = Predictions(labels, labels, np.ones(50, np.float32), ranks, 2)
    variance = (0.5 * 0.5 / 9 + 0.25 * 0.75 / 39) / 4
    assert found.mean_per_class() == (0.5 + 0.75) / 2
    assert found.half_widths()["mean_per_class"] == pytest.approx(1.96 * math.sqrt(variance), rel=1e-4)
    single = Predictions(labels[9:], labels[9:], np.ones(41, np.float32), ranks[9:], 2)
    assert "mean_per_class" not in single.half_widths() and "top1" in single.half_widths()
    alone = Predictions(labels[:1], labels[:1], np.ones(1, np.float32), ranks[:1], 2)
    assert alone.half_widths() == {}  # a variance of one value is not 0


def test_two_files_are_compared_by_mcnemars_test(leoclr: Run, capsys: pytest.CaptureFixture[str]) -> None:
    right = []
    for seed, path in ((0, "first.csv"), (1, "second.jsonl")):
        assert leoclr("knn", seed, "--predictions", path)[0] == 0
        lines = Path(path).read_text().splitlines()
        rows = map(json.loads, lines) if path.endswith("jsonl") else csv.DictReader(lines)
        right.append([str(row["right"]) == "1" for row in rows if row["classifier"] == "majority"])
    with pytest.raises(SystemExit) as exit:
        main(["eval", "compare", "first.csv", "second.jsonl", "--json"])
    assert exit.value.code == 0
    found = json.loads(capsys.readouterr().out)["tests"]["majority"]
    pairs = list(zip(*right, strict=True))
    first, second = pairs.count((True, False)), pairs.count((False, True))
    assert (found["only_first"], found["only_second"], found["images"]) == (first, second, 40) and first + second > 0
    tail = sum(math.comb(first + second, wins) for wins in range(min(first, second) + 1)) / 2 ** (first + second)
    assert found["p_value"] == pytest.approx(min(1.0, 2 * tail))
    assert found["difference"] == pytest.approx((first - second) / 40)


def test_mcnemars_test_equals_tables_and_the_normal_one_where_there_are_many() -> None:
    first, second = np.repeat([True, False, True], [1, 9, 30]), np.repeat([False, True, True], [1, 9, 30])
    few = compare(first, second)
    assert few.p_value == pytest.approx(2 * (1 + 10) / 2**10) and few.difference == pytest.approx(-8 / 40)
    assert few.half_width == pytest.approx(1.96 * math.sqrt((10 / 40 - (8 / 40) ** 2) / 40), rel=1e-4)
    many = compare(np.repeat([True, False], [5300, 4700]), np.repeat([False, True], [5300, 4700]))
    z = (600 - 1) / math.sqrt(10_000)
    assert many.p_value == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.02)
    assert compare(first, first).p_value == 1.0 and compare(first, first).half_width == 0.0


FILES = {
    "nothing": ("", "there are no predictions in it"),
    "other columns": ("a,b\n1,2\n", "this one lacks classifier, key, label, right and has a, b"),
    "semicolons": (
        "classifier;key;label;prediction;right;score\nlinear;0;a;a;1;1\n",
        "has the columns classifier, key, label, prediction, right, score, apart by commas",
    ),
    "a number": ("classifier,key,label,prediction,right,score\nknn,0,a,a,x,1\n", "no file of predictions"),
    "other classifiers": ("classifier,key,label,prediction,right,score\nknn,0,a,a,1,1\n", "none to compare"),
    "other images": ("classifier,key,label,prediction,right,score\nlinear,1,a,a,1,1\n", "differ in 2 of their test"),
    "other labels": ("classifier,key,label,prediction,right,score\nlinear,0,b,a,1,1\n", "different labels for '0'"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_cannot_be_compared_are_one_line(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, expected = FILES[case]
    (tmp_path / "good.csv").write_text("classifier,key,label,prediction,right,score\nlinear,0,a,a,1,1\n")
    (tmp_path / "other.csv").write_text(content)
    with pytest.raises(SystemExit) as exit:
        main(["eval", "compare", str(tmp_path / "good.csv"), str(tmp_path / "other.csv")])
    err = capsys.readouterr().err
    assert exit.value.code == 2 and expected in err and err.count("\n") == 1


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("plain.csv", "marked.csv")]
    for path, encoding in zip(paths, ("utf-8", "utf-8-sig"), strict=True):
        Path(path).write_text("classifier,key,label,prediction,right,score\nlinear,0,a,a,1,1\n", encoding)
    with pytest.raises(SystemExit, match="0"):
        main(["eval", "compare", *paths])


def test_a_file_of_predictions_has_a_suffix_that_says_its_form(leoclr: Run) -> None:
    code, out, err = leoclr("knn", 0, "--predictions", "p.txt")
    assert code == 2 and not out and ".csv or .jsonl" in err
