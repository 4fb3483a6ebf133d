"""`leoclr eval forgetting`: two encoders on new and on old data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from leoclr.backends.networks.backbones import build_backbone
from leoclr.cli.commands.app import main

MakeShards = Callable[..., Path]


@pytest.fixture
def arguments(tmp_path: Path, make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two untrained encoders, new data with and old data without a test split."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for seed, name in enumerate(("before", "after")):
        torch.manual_seed(seed)
        torch.save(build_backbone("resnet18", "cifar", 16).state_dict(), tmp_path / f"{name}.pth")
    make_shards((60,), name="new")
    make_shards((40,), name="new-test")
    make_shards((50,), name="old", classes=5)
    data = ["--new", "new", "--new-test", "new-test", "--old", "old"]
    return ["eval", "forgetting", "before.pth", "after.pth", *data, "--image-size", "16", "--workers", "0"]


@pytest.mark.parametrize("probe", ["knn", "linear"])
def test_change_on_new_and_old_data(probe: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([*arguments, "--probe", probe])
    printed = capsys.readouterr().out
    record = json.loads(Path("forgetting.json").read_text())
    figures = {name: next(iter(each["results"].values()))["top1"] for name, each in record["scores"].items()}
    assert list(figures) == ["new, before", "new, after", "old, before", "old, after"]
    for name, images in (("new", 40), ("old", 10)):
        change = record["changes"][name]
        assert change["images"] == images
        assert change["difference"] == pytest.approx(figures[f"{name}, after"] - figures[f"{name}, before"])
        assert change["only_first"] - change["only_second"] == round(images * change["difference"])
        assert f"{100 * figures[f'{name}, after']:.2f}" in line_of(printed, f"{name} data")
    digests = [record["scores"][name]["checkpoint"]["digest"] for name in ("new, before", "old, before", "new, after")]
    assert digests[0] == digests[1] != digests[2]


def line_of(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(start))


def test_an_encoder_has_not_changed_from_itself(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments[3] = "before.pth"
    with pytest.raises(SystemExit, match="0"):
        main([*arguments, "--json"])
    changes = json.loads(capsys.readouterr().out)["changes"]
    assert all((change["difference"], change["p_value"]) == (0, 1) for change in changes.values())


def test_what_is_missing_is_said_before_the_first_score(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments[3] = "gone.pth"
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    captured = capsys.readouterr()
    assert captured.err == "error: gone.pth: no such run, checkpoint or file; did you mean before.pth?\n"
