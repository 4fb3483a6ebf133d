"""`leoclr replay`: the step that failed, made again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leoclr.cli.commands.app import main

MakeShards = Callable[..., Path]
TinyConfig = Callable[..., Path]


def leoclr(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return int(stopped.value.code or 0)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_step_that_fails_is_made_again_and_shows_where(
    make_shards: MakeShards, tiny_config: TinyConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = make_shards((24,)), tmp_path / "run"
    config = tiny_config(optimizer__lr=1e20, optimizer__warmup_epochs=1, train__epochs=3, run__checkpoint_epochs=1)
    assert leoclr("train", "--config", config, "--data", data, "--output", run) == 2
    errors = capsys.readouterr().err
    assert f"`leoclr replay {run}` shows where it begins" in errors
    noted = json.loads((run / "failed-step.json").read_text())
    before = contents(run)

    assert leoclr("replay", run, "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["step"] == noted["step"] and found["keys"] == noted["images"] and found["loss"] is None
    layers = {one["name"]: one for one in found["layers"]}
    assert found["first"].startswith("the output of ") and layers[found["first"].split()[-1]]["largest"] is None
    assert "key_encoder.backbone.layer4.1.bn2" in layers and "encoder.projector.0" in layers

    assert leoclr("replay", run) == 0
    text = capsys.readouterr().out
    assert f"first value that is not finite: {found['first']}" in text and "not finite" in text.splitlines()[5]
    assert contents(run) == before


def test_a_healthy_step_has_the_loss_that_the_run_logged(
    make_shards: MakeShards, tiny_config: TinyConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = make_shards((24,)), tmp_path / "run"
    config = tiny_config(train__epochs=2, run__checkpoint_epochs=1, run__keep=2)
    assert leoclr("train", "--config", config, "--data", data, "--output", run) == 0
    logged = {line["step"]: line["loss"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())}
    newest = max((run / "checkpoints").iterdir())
    newest.rename(tmp_path / "put-aside")  # so that there are steps to make
    capsys.readouterr()
    assert leoclr("replay", run, "--step", "4", "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["loss"] == logged[5] and found["first"] is None and found["after"] == 3
    assert all(one["gradient_norm"] is not None for one in found["parameters"]) and len(found["keys"]) == 8
    assert leoclr("replay", run) == 2
    assert "has noted no step that failed; name one with --step" in capsys.readouterr().err
    assert leoclr("replay", run, "--step", "99") == 2
    assert "step 99 cannot be made: the run goes on at step 3 and has 6" in capsys.readouterr().err
