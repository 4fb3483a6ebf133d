"""Errors of every command: one line on stderr, JSON on stdout where that was asked for, exit code 2."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from leoclr.cli.commands.app import main
from leoclr.cli.commands.base import errors
from leoclr.datasets.errors import DataError, NotKept

MISTAKES = {
    "trian": "error: no such command 'trian'; did you mean 'train'?",
    "eval lin": "error: no such command 'lin'; did you mean 'linear'?",
    "frobnicate": "error: no such command 'frobnicate'; see `leoclr --help`",
    "--verson": "error: --verson: no such flag; did you mean --version?",
    "shard": "error: missing argument 'SOURCE'; see `leoclr shard --help`",
    "shard a b --val abc": "error: invalid value for '--val': must be a valid number; see `leoclr shard --help`",
    "eval knn --batch-size 0": "error: invalid value for '--batch-size': must be greater than or equal to 1; see",
    "report --map x": "error: invalid value for '--map': 'x' is not one of 'tsne', 'pca', 'none'; see",
    "eval linear --lr": "error: option '--lr' requires an argument",
    "train --data": "error: option '--data' requires an argument",
    "train -x": "error: no such option: -x; see `leoclr train --help`",
    "train --bakend moco": "error: --bakend: no such flag; did you mean --backend?",
    "train --learning-rate 1": "error: --learning-rate: no such flag; did you mean --lr?",
    "train --arch resnet18": "error: --arch: no such flag; did you mean --backbone?",
    "train --wd 0": "error: --wd: no such flag; did you mean --set optimizer.weight_decay=VALUE?",
    "train --val a.tar": "error: --val: no such flag; did you mean --val-data?",
    "eval knn --arch resnet18": "error: --arch: no such flag",
    "train ..": "error: got unexpected extra argument(s) (..); did you mean --data ..?",
    "train nowhere": "error: got unexpected extra argument(s) (nowhere); see `leoclr train --help`",
    "train --resume nowhere": "error: nowhere: no such run",
    "train --set run.keep 4": "error: --set run.keep: must be KEY=VALUE, such as --set run.keep=4",
    "train --set 4": "error: --set 4: must be KEY=VALUE, such as --set moco.queue=4096",
    "report --map tsme": "error: invalid value for '--map': 'tsme' is not one of 'tsne', 'pca', 'none'; did you mean",
    "eval knn --data nowhere": "error: nowhere: no such file or folder",
    "check nowhere": "error: nowhere: there is no such shard",
    "export nowhere": "error: nowhere: no such run, checkpoint or file",
    "reproduce table66": "error: no recipe 'table66'; there are ",
}


def ended(line: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(shlex.split(line))
    return int(stopped.value.code or 0)


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line_on_stderr_and_code_2(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ended(line) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(MISTAKES[line]) and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("line", MISTAKES)
def test_json_of_a_mistake_is_alone_on_stdout(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = line.split()
    assert ended(shlex.join([*words[:1], "--json", *words[1:]])) == 2
    out, err = capsys.readouterr()
    said = json.loads(out)["error"]
    assert err == f"error: {said}\n"


@pytest.mark.parametrize(
    "line",
    ["train --data phots/cats", "eval knn phots", "eval knn --data phots", "train --resume phots", "views phots/cats",
     "export phots", "runs phots"],
)  # fmt: skip
def test_the_folder_that_was_meant_is_named_before_torch_is_imported(line: str, tmp_path: Path) -> None:
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    program = (
        "import sys\nfrom leoclr.cli.commands.app import main\n"
        "try:\n    main(sys.argv[1:])\nfinally:\n    assert 'torch' not in sys.modules\n"
    )
    command = [sys.executable, "-c", program, *line.split()]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    meant = line.split()[-1].replace("phots", "photos")
    assert found.returncode == 2 and found.stderr.endswith(f"; did you mean {meant}?\n"), found.stderr


def test_a_result_that_cannot_be_kept_stays_the_one_json_value(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        print("{}")
        raise NotKept("x.json cannot be written: no space left")

    assert errors.exit_code(command, as_json=True) == 2
    out, err = capsys.readouterr()
    assert out == "{}\n" and err == "error: x.json cannot be written: no space left\n"


@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_says_nothing_to_a_person(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise KeyboardInterrupt

    assert errors.exit_code(command, as_json) == 130
    out, err = capsys.readouterr()
    assert err == "" and (json.loads(out) == {"error": "interrupted"} if as_json else out == "")


def test_a_full_disk_is_an_error_and_other_faults_keep_their_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.bin")

    def ours() -> None:
        raise ZeroDivisionError

    assert errors.exit_code(full, as_json=False) == 2
    assert capsys.readouterr().err == "error: a.bin: No space left on device\n"
    with pytest.raises(ZeroDivisionError):
        errors.exit_code(ours, as_json=False)


def test_an_error_hides_credentials(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise DataError("https://me:secret@host/x.tar: nothing there")

    assert errors.exit_code(command, as_json=True) == 2
    out, err = capsys.readouterr()
    assert "secret" not in out + err and "host/x.tar" in out


@pytest.mark.parametrize("line", ["", "eval"])
def test_without_a_command_the_help_is_printed(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(line) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Commands:" in err


def test_ctrl_c_in_the_first_second_prints_nothing(tmp_path: Path) -> None:
    """At several instants, most of them while modules are imported. Before Python has read the first line of leoclr
    nothing can be caught; the file tells that this is over."""
    program = (
        "import pathlib, leoclr.cli.__main__ as entry, signal\n"
        "signal.signal(signal.SIGINT, entry._interrupted)\n"
        "pathlib.Path('begun').touch()\n"
        "entry.main()\n"
    )
    (tmp_path / "weights.pth").touch()  # nothing that is there is refused before torch has been imported
    for wait in (0.0, 0.05, 0.1, 0.2, 0.4):
        (tmp_path / "begun").unlink(missing_ok=True)
        command = [sys.executable, "-c", program, "eval", "knn", "weights.pth"]
        child = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        while not (tmp_path / "begun").exists():
            time.sleep(0.005)
        time.sleep(wait)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate()
        assert child.returncode == 130 and err == "", (wait, err)


@pytest.mark.parametrize("line", ["--json", "--verbose", "--json train"])
def test_flags_of_the_version_alone_are_refused(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(line) == 2
    assert capsys.readouterr().err == "error: --verbose and --json go with --version, or behind a command\n"


def test_the_version_with_all_that_a_bug_report_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert ended("--version --verbose --json") == 0
    about = json.loads(capsys.readouterr().out)
    assert about["packages"]["torch"][0].isdigit() and about["packages"]["timm"]
    assert about["environment"]["OMP_NUM_THREADS"] == "1" and "secret" not in str(about)
    assert {"system", "python", "processor", "memory"} <= about["machine"].keys()
    assert ended("--version --verbose") == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"leoclr {about['version']}\n") and all(name in printed for name in about["packages"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm:resnet18x", "timm has no model 'resnet18x'; did you mean timm:resnet18"),
        ("timm:vit_tinny_patch16_224", "did you mean timm:vit_tiny_patch16_224"),
        ("resnet19", "torchvision has no classifier 'resnet19'; did you mean resnet1"),
        ("vit_tiny_patch16_224", "; timm has it: timm:vit_tiny_patch16_224"),
    ],
)
def test_names_of_models_are_corrected(name: str, said: str) -> None:
    from leoclr.backends.networks.backbones import build_backbone

    with pytest.raises(ValueError, match="has no") as error:
        build_backbone(name)
    assert said in str(error.value)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["--version", "method list --json", "runs --json"])
def test_a_reader_that_has_gone_is_no_error(words: str, unbuffered: str, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "leoclr.cli", *words.split()]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with os.fdopen(writing, "w") as output:
        done = subprocess.run(
            command, stdout=output, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment, check=False
        )
    assert (done.returncode, done.stderr) == (1, "")


def test_results_and_messages_keep_their_order_in_one_log(tmp_path: Path) -> None:
    program = "from leoclr.cli.terminal import say; print('first'); say('second'); print('third')"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-c", program]
        subprocess.run(command, stdout=log, stderr=log, env=environment, check=True, timeout=100)
    assert (tmp_path / "log").read_text() == "first\nsecond\nthird\n"
