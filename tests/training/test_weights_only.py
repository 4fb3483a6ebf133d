"""Checkpoints that are reduced to the encoder's weights once a run is finished (`run.keep_weights_only`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from leoclr.cli.commands.app import main
from leoclr.cli.config.settings import Settings
from leoclr.cli.run import weights_only
from leoclr.cli.run.checkpoint import newest_sound, save_checkpoint
from leoclr.cli.run.encoders import load_encoder
from leoclr.cli.run.weights_only import keep_weights_only
from leoclr.cli.training.result import TrainResult
from leoclr.cli.training.trainer import train
from leoclr.datasets.errors import CheckpointError

MakeShards = Callable[..., Path]
MakeSettings = Callable[..., Settings]


def files(checkpoints: Path) -> dict[str, set[str]]:
    return {step.name: {file.name for file in step.iterdir()} for step in checkpoints.iterdir()}


def test_a_finished_run_keeps_what_scores_and_exports_read(
    make_shards: MakeShards, tiny_settings: MakeSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    settings = partial(tiny_settings, make_shards((16,)), train__epochs="2", run__keep="9")

    def go(resume: bool = True, **changes: str) -> TrainResult:
        return train(settings(**changes), run, None, ["test"], resume)

    go(resume=False)  # with a checkpoint after each epoch, which stays
    digest, complete = load_encoder(run).digest, files(run / "checkpoints")
    assert complete["step-000000004"] >= {"model.safetensors", "optimizer.safetensors"}
    go(run__keep_weights_only="true")
    reduced = {"encoder.safetensors", "state.json", "manifest.json"}
    assert files(run / "checkpoints") == {"step-000000002": reduced, "step-000000004": reduced}
    assert load_encoder(run).digest == digest
    assert load_encoder(run / "checkpoints" / "step-000000002").digest != digest
    assert "kept only the weights of the encoder" in capsys.readouterr().err

    again = go(run__keep_weights_only="true")
    assert (again.step, again.loss) == (4, None) and load_encoder(run).digest == digest
    with pytest.raises(CheckpointError, match="no optimizer state to train on with; `leoclr train --init .*run`") as no:
        go(train__epochs="3")
    assert "\n" not in str(no.value) and load_encoder(run).digest == digest

    with pytest.raises(SystemExit) as ended:
        main(["runs", str(run), "--json"])
    listed = json.loads(capsys.readouterr().out)["runs"][0]
    assert ended.value.code in (0, None) and listed["state"] == "complete"


@pytest.mark.parametrize("at", ["save_file", "write_atomic", "prune"])
def test_a_process_that_is_killed_on_the_way_leaves_a_sound_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def kill(*arguments: object) -> None:
        raise KeyboardInterrupt

    tensors = {"model": {"encoder.backbone.weight": torch.ones(3), "queue": torch.ones(9)}, "optimizer": {}}
    for step in (1, 2):
        save_checkpoint(tmp_path, step, tensors, {"encoder": "encoder.backbone"})
    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file" if at == "save_file" else f"{weights_only.__name__}.{at}", kill)
        with pytest.raises(KeyboardInterrupt):
            keep_weights_only(tmp_path, 2, lambda step: False)
    newest, damaged = newest_sound(tmp_path)
    assert newest is not None and newest.step == 2 and not damaged
    assert newest.load().tensors.keys() == ({"encoder"} if at == "prune" else {"model", "optimizer"})

    keep_weights_only(tmp_path, 2, lambda step: False)
    assert files(tmp_path) == {"step-000000002": {"encoder.safetensors", "state.json", "manifest.json"}}
