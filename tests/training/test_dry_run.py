"""`leoclr train --dry-run` tells the plan and leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from leoclr.cli.commands.app import main
from leoclr.cli.config.settings import Settings
from leoclr.cli.preflight import step_time
from leoclr.cli.training import build
from leoclr.datasets.loading.plan import Plan
from leoclr.datasets.shards.locate import open_data

MakeShards = Callable[..., Path]
MakeSettings = Callable[..., Settings]


def test_the_plan_is_the_one_that_training_follows(
    make_shards: MakeShards, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_shards((9, 14))
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "--data", str(data), "--batch-size", "8", "--epochs", "3", "--seed", "5", "--dry-run"]
    arguments += ["--set", "moco.bn_splits=2", "--backbone", "resnet18", "--set", "data.image_size=32"]
    main_ok([*arguments, "--num-processes", "2", "--json"])
    plan = json.loads(capsys.readouterr().out)
    assert (plan["samples"], plan["steps_per_epoch"], plan["steps"], plan["left_out_each_epoch"]) == (23, 2, 6, 7)
    assert plan["images_per_process"] == [4, 4]
    index = open_data([str(data)])
    order = Plan.of(index, 8, 5).step(0).samples
    assert plan["first_keys"] == [index.key(int(number)) for number in order]
    assert np.array_equal(np.sort(Plan.of(index, 23, 5).step(0).samples), np.arange(23))
    main_ok(arguments)
    text = capsys.readouterr().out
    assert "23 samples in 2 shards" in text and plan["first_keys"][0] in text
    assert not (tmp_path / "runs").exists()


def test_the_time_is_that_of_a_few_images_times_all(
    make_shards: MakeShards, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passes of 8 images that take 2 s make 0.25 s an image: 3 epochs of 2 steps of 8 images are 12 s."""
    monkeypatch.setattr(step_time, "_seconds", lambda method, settings, images, device: {1: 9.0, 8: 2.0}[images])
    data = make_shards((9, 14))
    main_ok(
        ["train", "--data", str(data), "--batch-size", "8", "--epochs", "3", "--dry-run", "--set", "moco.bn_splits=2"]
    )
    assert "time      roughly 12 s" in capsys.readouterr().out


def test_measuring_the_time_leaves_the_method_as_it_is(make_shards: MakeShards, tiny_settings: MakeSettings) -> None:
    settings = tiny_settings(make_shards((24,)))
    method = build.method(settings, torch.device("cpu"), 24)
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    assert step_time.seconds_of_steps(method, settings, 8, 80) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())
    assert all(parameter.grad is None for parameter in method.parameters())


def main_ok(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert not stopped.value.code
