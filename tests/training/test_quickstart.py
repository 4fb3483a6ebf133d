"""`leoclr quickstart` from an empty folder to scores, pictures and an exported encoder."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from leoclr.cli.commands.app import app
from leoclr.cli.run.checkpoint import newest_checkpoint
from leoclr.cli.run.encoders import load_encoder
from leoclr.datasets.errors import DataError, RunError
from leoclr.datasets.shards.locate import open_data

KINDS = ["trained", "pixels", "untrained"]


def quickstart(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["quickstart", "--output", str(folder), *arguments])


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """One run of a single epoch, and what it printed."""
    folder = tmp_path_factory.mktemp("work") / "quick start"
    result = quickstart(folder, "--epochs", "1")
    assert result.exit_code == 0, result.output
    return folder, result


def test_everything_is_where_it_says(first: tuple[Path, Result]) -> None:
    folder, result = first
    names = {path.name for path in folder.iterdir()}
    assert names == {"digits", "shards", "run", "views.png", "neighbours.png", "scores.json", "encoder.safetensors"}
    for name in names:
        assert str(folder / name) in result.stdout
    for picture in ("views.png", "neighbours.png"):
        with Image.open(folder / picture) as image:
            assert image.format == "PNG"
            assert min(image.size) > 500
    assert f"leoclr eval robustness '{folder}/run'" in result.stdout
    assert "leoclr train --preset auto --data shards" in result.stdout
    phases = re.findall(r"^\[(\d)/5\]", result.stderr, re.MULTILINE)
    assert phases == ["1", "2", "3", "4", "5"]
    assert "has no checkpoint yet" not in result.stderr


def test_table_has_three_lines_of_three_scores(first: tuple[Path, Result]) -> None:
    header, *lines = first[1].stdout.strip().splitlines()[:4]

    assert re.split(r"\s{2,}", header) == [
        "right of 500 test images, %",
        "k-NN, k = 200",
        "k-NN, k = 20",
        "linear probe",
    ]
    labels, *columns = zip(*(re.split(r"\s{2,}", line) for line in lines), strict=True)
    assert labels == ("LeOCLR, 1 epoch", "raw pixels", "the same encoder, untrained")
    written = json.loads((first[0] / "scores.json").read_text())["accuracy"]
    for key, column in zip(("knn_200", "knn_20", "linear"), columns, strict=True):
        assert column == tuple(f"{100 * written[kind][key]:.1f}" for kind in KINDS)


def test_data_is_split_as_promised(first: tuple[Path, Result]) -> None:
    train, test = (open_data([str(first[0] / "shards" / split)]) for split in ("train", "test"))

    assert (len(train), len(test)) == (1297, 500)
    assert train.classes == test.classes == tuple("0123456789")
    assert not {train.key(i).split("/")[1] for i in range(1297)} & {test.key(i).split("/")[1] for i in range(500)}


@pytest.mark.slow
def test_typed_again_it_takes_up_what_is_there(first: tuple[Path, Result]) -> None:
    folder = first[0]
    kept = [*folder.glob("digits/*/*/*.png"), *folder.glob("shards/*/*")]
    before = {path: path.stat().st_mtime_ns for path in kept}
    checkpoint = newest_checkpoint(folder / "run" / "checkpoints")[0]
    written = json.loads((folder / "scores.json").read_text())

    result = quickstart(folder, "--epochs", "1", "--json")

    assert result.exit_code == 0, result.output
    again = json.loads(result.stdout)
    assert again["accuracy"] == written["accuracy"]
    assert again["largest_difference"] <= 1e-5
    assert {path: path.stat().st_mtime_ns for path in kept} == before
    assert newest_checkpoint(folder / "run" / "checkpoints")[0] == checkpoint


def test_eval_finds_the_same_scores_and_export_holds_the_same_weights(first: tuple[Path, Result]) -> None:
    folder = first[0]
    expected = json.loads((folder / "scores.json").read_text())["accuracy"]["trained"]
    found = dict[str, float]()
    for kind in ("knn", "linear"):
        result = CliRunner().invoke(app, ["eval", kind, str(folder / "run"), "--json", "--no-cache"])
        assert result.exit_code == 0, result.output
        found |= {name: row["top1"] for name, row in json.loads(result.stdout)["results"].items()}

    assert found["weighted"] == pytest.approx(expected["knn_200"])
    assert found["majority"] == pytest.approx(expected["knn_20"])
    assert found["linear"] == pytest.approx(expected["linear"])
    assert load_encoder(folder / "encoder.safetensors").digest == load_encoder(folder / "run").digest


def refusal(folder: Path, arguments: Sequence[str], kind: type[Exception]) -> str:
    result = quickstart(folder, *arguments)
    assert isinstance(result.exception, kind), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


@pytest.mark.slow
def test_other_settings_are_refused_in_the_same_folder(first: tuple[Path, Result]) -> None:
    message = refusal(first[0], ["--epochs", "2"], RunError)

    assert "train.epochs: 1 -> 2" in message
    assert "--output" in message


def test_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("everything")

    assert "--output" in refusal(tmp_path, [], DataError)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_interrupted_training_is_saved_and_gone_on_with(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "leoclr.cli", "quickstart", "--output", str(tmp_path / "out"), "--epochs", "10000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        wait_for(tmp_path / "out" / "run" / "metrics.jsonl")
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]

    assert process.returncode == 128 + signal.SIGINT
    assert "the same command goes on from there" in errors
    newest = newest_checkpoint(tmp_path / "out" / "run" / "checkpoints")[0]
    assert newest is not None
    assert f"saved after step {int(newest.name.removeprefix('step-')):,} of 100,000" in errors


def wait_for(path: Path) -> None:
    """Until there is something in the file."""
    deadline = time.monotonic() + 120
    while not path.exists() or not path.stat().st_size:
        assert time.monotonic() < deadline, path
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_trained_encoder_beats_pixels_and_untrained_encoder(tmp_path: Path) -> None:
    result = quickstart(tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output

    accuracy = json.loads(result.stdout)["accuracy"]
    for score, trained in accuracy["trained"].items():
        assert trained > accuracy["pixels"][score]
        assert trained > accuracy["untrained"][score] + 0.05
