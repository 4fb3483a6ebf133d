"""What a run saves when a step fails."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from leoclr.backends.methods.moco import MoCo
from leoclr.cli.config.settings import Settings
from leoclr.cli.preflight import launch
from leoclr.cli.run.checkpoint import newest_sound, step_folders
from leoclr.cli.training.monitoring.meter import Meter
from leoclr.cli.training.state import RunState
from leoclr.cli.training.trainer import train as run_training
from leoclr.datasets.errors import CheckpointError

MakeShards = Callable[..., Path]
MakeSettings = Callable[..., Settings]


@pytest.fixture
def train(make_shards: MakeShards, tiny_settings: MakeSettings, tmp_path: Path) -> Callable[..., Path]:
    """`train(name, resume=False, **changes)`: a run of three steps an epoch in the folder `name`."""
    data = make_shards((24,))
    settings = partial(tiny_settings, data, run__checkpoint_epochs="0", train__epochs="2")

    def run(name: str, resume: bool = False, **changes: str) -> Path:
        run_training(settings(**changes), tmp_path / name, None, ["test"], resume)
        return tmp_path / name

    return run


def in_step(number: int, function: Callable[..., Any], fail: str) -> Callable[..., Any]:
    """The function, which is called once a step, failing before or after its work in one of the steps."""
    calls = iter(range(1 << 30))

    def failing(*arguments: Any, **named: Any) -> Any:
        turn = next(calls)
        if turn == number and fail == "before":
            raise RuntimeError("broken")
        result = function(*arguments, **named)
        if turn == number and fail == "after":
            raise RuntimeError("broken")
        return result

    return failing


def test_a_step_that_fails_in_its_forward_pass_is_taken_back(
    train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(MoCo, "forward", in_step(4, MoCo.forward, "after"))
        with pytest.raises(RuntimeError, match="broken"):
            train("broken")
    broken = newest_sound(train("broken", resume=True) / "checkpoints")[0]
    whole = newest_sound(train("whole") / "checkpoints")[0]
    assert broken is not None and whole is not None
    for name in ("model", "optimizer"):
        one, other = broken.load().tensors[name], whole.load().tensors[name]
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_gpu_that_answers_nothing_more_hides_neither_error_nor_advice(
    train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def dead(self: Meter) -> bool:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(MoCo, "forward", in_step(6, MoCo.forward, "after"))  # two calls estimate the memory
    monkeypatch.setattr(Meter, "sound", dead)
    with pytest.raises(RuntimeError, match="broken"):
        train("broken", run__checkpoint_epochs="1")
    printed = capsys.readouterr().err
    assert "the newest step cannot be saved: CUDA error" in printed
    assert "the newest checkpoint is that of step 3" in printed


def test_the_first_process_has_time_to_save_and_the_others_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_GRACE_SECONDS", 0.2)
    sleep = [sys.executable, "-c", "import sys, time; time.sleep(float(sys.argv[1]))"]
    children = [subprocess.Popen([*sleep, seconds]) for seconds in ("1.5", "600")]
    launch._end(children)
    assert [child.poll() for child in children] == [0, -signal.SIGKILL]


def test_old_checkpoints_make_room_for_the_newest_step(
    train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save = RunState.save

    def on_a_small_disk(self: RunState, folder: Path, step: int, tensors: Any, **more: Any) -> Path:
        if len(step_folders(folder)) == 2:
            raise CheckpointError(f"cannot write: {os.strerror(errno.ENOSPC)}")
        return save(self, folder, step, tensors, **more)

    monkeypatch.setattr(RunState, "save", on_a_small_disk)
    run = train("run", run__checkpoint_minutes="0", run__keep="2")
    assert [step for step, _ in step_folders(run / "checkpoints")] == [5, 6]
    assert "removed 1 old checkpoint to save step 6" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["optimizer", "momentum encoder"])
def test_a_step_that_fails_in_its_update_is_not_saved(
    train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, part: str
) -> None:
    owner, name = (torch.optim.SGD, "step") if part == "optimizer" else (MoCo, "after_update")
    monkeypatch.setattr(owner, name, in_step(4, getattr(owner, name), "after"))
    with pytest.raises(RuntimeError, match="broken"):
        train("run")
    newest, _ = newest_sound(tmp_path / "run" / "checkpoints")
    assert newest is not None and newest.step == 3  # of the end of the first epoch, not the half of the fifth step
