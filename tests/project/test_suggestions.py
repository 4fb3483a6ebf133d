"""Every command that a command suggests works as it is printed."""

from __future__ import annotations

import html
import re
import shlex
import signal
from pathlib import Path

import pytest
from PIL import Image

from leoclr.cli.commands.app import main
from leoclr.cli.training.signals import GracefulStop

SMALL = {
    "LEOCLR_DATA__IMAGE_SIZE": "16",
    "LEOCLR_ENCODER__BACKBONE": "resnet18",
    "LEOCLR_ENCODER__WIDTH": "16",
    "LEOCLR_ENCODER__STEM": "cifar",
    "LEOCLR_MOCO__QUEUE": "16",
    "LEOCLR_RUN__DEVICE": "cpu",
    "LEOCLR_RUN__TRACKERS": "",
    "LEOCLR_RUN__WORKERS": "0",
    "LEOCLR_TRAIN__EPOCHS": "1",
}
_SUGGESTED = re.compile(r"(?:next: |`|<code>)(leoclr [^`<\n]+)")


def suggested(text: str) -> list[str]:
    """The commands that a text tells somebody to type."""
    return [html.unescape(line) for line in _SUGGESTED.findall(text)]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a folder").mkdir()
    monkeypatch.chdir(tmp_path / "a folder")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name, value in SMALL.items():
        if name != "LEOCLR_DATA__BATCH_SIZE":  # which is chosen for the images
            monkeypatch.setenv(name, value)


def run(line: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(line)[1:])
    return int(ended.value.code or 0)


def follow(line: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Run a command, then all that it suggests, then all that those suggest; returns what was run."""
    done, waiting = list[str](), [line]
    while waiting:
        command = waiting.pop(0)
        done.append(command)
        code = run(command)
        printed = capsys.readouterr()
        assert code == 0, f"{command}\n{printed.err}"
        waiting += [new for new in suggested(printed.out + printed.err) if new not in (*done, *waiting)]
    return done


def pictures(folder: str, classes: tuple[str, ...], each: int) -> str:
    for label, name in enumerate(classes):
        Path(folder, name).mkdir(parents=True)
        for number in range(each):
            colour = (60 * label, (40 * number) % 256, 7 * number)
            Image.new("RGB", (20, 16), colour).save(Path(folder, name, f"{number}.png"))
    return folder


def verbs(lines: list[str]) -> list[str]:
    return [" ".join(line.split()[1 : 3 if line.startswith("leoclr eval") else 2]) for line in lines]


def test_from_images_with_labels_to_a_score_and_an_export(capsys: pytest.CaptureFixture[str]) -> None:
    done = follow(f"leoclr shard {shlex.quote(pictures('my photos', ('cat', 'dog'), 12))} out", capsys)
    assert verbs(done) == ["shard", "train", "eval linear", "export"]
    assert done[-1].endswith("--format safetensors")  # of a width that no library has


@pytest.mark.parametrize("images", [3, 40])
def test_from_images_without_labels(images: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert verbs(follow(f"leoclr shard {pictures('photos', ('',), images)} out", capsys)) == [
        *("shard", "train", "report", "export"),
    ]


@pytest.mark.parametrize("split", ["test", "unlabeled"])
def test_images_of_another_split_alone(split: str, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(f"photos/{split}", ("cat", "dog"), 10)
    done = follow("leoclr shard photos out", capsys)
    assert done[1].startswith(f"leoclr train --preset auto --data out/{split}")


@pytest.mark.parametrize(
    ("backbone", "stem", "format"), [("resnet18", "cifar", "torchvision"), ("timm:resnet10t", "imagenet", "timm")]
)
def test_exports_of_standard_architectures_go_to_their_libraries(
    backbone: str, stem: str, format: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LEOCLR_ENCODER__BACKBONE", backbone)
    monkeypatch.setenv("LEOCLR_ENCODER__STEM", stem)
    monkeypatch.setenv("LEOCLR_ENCODER__WIDTH", "64")
    monkeypatch.setenv("LEOCLR_DATA__IMAGE_SIZE", "32")
    done = follow(f"leoclr shard {pictures('photos', ('cat', 'dog'), 10)} out", capsys)
    assert done[-1].endswith(f"--format {format}")


def test_a_run_that_was_stopped_or_is_there_already_can_be_resumed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(f"leoclr shard {pictures('photos', ('cat', 'dog'), 12)} out")
    train = "leoclr train --data out --batch-size 16 --output 'my run'"

    with monkeypatch.context() as stopping:
        stopping.setattr(GracefulStop, "requested", signal.SIGINT)
        assert run(train) == 128 + signal.SIGINT
    (resume,) = suggested(capsys.readouterr().err.partition("saved after")[2])
    assert resume == "leoclr train --resume 'my run'"
    assert run(train) == 2
    assert suggested(capsys.readouterr().err) == [resume]
    assert "eval linear" in verbs(follow(resume, capsys))


@pytest.mark.parametrize(("classes", "verb"), [(("cat", "dog"), "eval knn"), (("",), "embed")])
def test_a_report_without_scores_says_how_to_come_to_one(
    classes: tuple[str, ...], verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(f"leoclr shard {pictures('photos', classes, 24)} out")
    run("leoclr train --data out --batch-size 16 --output run")
    assert run("leoclr report run --samples 0") == 0
    capsys.readouterr()
    (line,) = suggested(Path("report.html").read_text())
    assert verbs(follow(line, capsys)) == [verb]


def test_without_a_run_the_way_to_one_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos").mkdir()
    assert run("leoclr train --data photos") == 2
    assert suggested(capsys.readouterr().err) == ["leoclr shard photos OUT"]
