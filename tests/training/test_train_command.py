"""`leoclr train` as a user meets it: processes, signals, exit codes, one line for every mistake."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from leoclr.cli.commands.app import main
from leoclr.cli.config.resolve import differences, resolve
from leoclr.cli.run.checkpoint import newest_checkpoint

MakeShards = Callable[..., Path]
TinyConfig = Callable[..., Path]


@pytest.fixture
def config(tiny_config: TinyConfig) -> Path:
    return tiny_config(optimizer__lr=0.05)


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "leoclr.cli", *map(str, arguments)]


def start(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments),
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: str | Path) -> None:
    process = start(*arguments)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors


def wait_for_steps(run_folder: Path, steps: int, process: subprocess.Popen[str]) -> None:
    metrics = run_folder / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() or metrics.read_text().count("\n") < steps:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def last_checkpoint(run_folder: Path) -> bytes:
    newest = max((run_folder / "checkpoints").glob("step-*"))
    return (newest / "model.safetensors").read_bytes() + (newest / "optimizer.safetensors").read_bytes()


def one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


SECOND_PROCESS_SLEEPS = """
import os, time
if os.environ.get("RANK") == "1":
    import torch
    step = torch.optim.SGD.step
    torch.optim.SGD.step = lambda *arguments: (time.sleep(0.5), step(*arguments))[1]
"""


@pytest.mark.slow
def test_a_slow_process_is_named_and_a_signal_to_it_saves_and_one_process_goes_on(
    make_shards: MakeShards, tmp_path: Path, config: Path
) -> None:
    data, folder = make_shards((20, 9)), tmp_path / "run"
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(SECOND_PROCESS_SLEEPS)
    process = start(
        "train", "--config", config, "--data", data, "--epochs", "200", "--output", folder, "--num-processes", "2",
        PYTHONPATH=str(tmp_path / "slow"),
    )  # fmt: skip
    wait_for_steps(folder, 3, process)
    third = json.loads((folder / "metrics.jsonl").read_text().splitlines()[2])
    assert third["slowest_rank"] == 1 and third["slowest_rank_seconds"] > 0.5
    assert third["other_ranks_seconds"] < third["slowest_rank_seconds"] - 0.3
    (second,) = [rank for rank in psutil.Process(process.pid).children() if rank.environ()["RANK"] == "1"]
    second.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGUSR1, errors
    assert f"leoclr train --resume {folder}" in errors
    description = json.loads((folder / "run.json").read_text())
    assert description["environment"]["processes"] == 2
    resumed = start("train", "--resume", folder)
    before = (folder / "metrics.jsonl").read_text().count("\n")
    wait_for_steps(folder, before + 2, resumed)
    resumed.send_signal(signal.SIGINT)
    _, errors = resumed.communicate(timeout=120)
    assert resumed.returncode == 128 + signal.SIGINT and "going on after step" in errors
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_at_once_and_the_checkpoints_are_whole(
    make_shards: MakeShards, tmp_path: Path, config: Path
) -> None:
    folder = tmp_path / "run"
    arguments = ("train", "--config", config, "--data", make_shards((20, 9)), "--epochs", "2000", "--output", folder)
    process = start(*arguments, "--set", "run.checkpoint_minutes=0")
    wait_for_steps(folder, 3, process)
    process.send_signal(signal.SIGSTOP)  # so that both signals arrive within one step
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    newest, damaged = newest_checkpoint(folder / "checkpoints")
    assert newest is not None and not damaged


def kill_and_resume(data: Path, config: Path, tmp_path: Path, kills: int) -> None:
    arguments = ("--config", config, "--data", data, "--epochs", "12", "--set", "run.checkpoint_minutes=0")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run("train", *arguments, "--output", whole)
    moments = random.Random(0)
    for _ in range(kills):
        resume = ("train", "--resume", killed) if (killed / "checkpoints").exists() else None
        process = start(*(resume or ("train", *arguments, "--output", killed)))
        before = (killed / "metrics.jsonl").read_text().count("\n") if resume else 0
        wait_for_steps(killed, min(before, 20) + 1, process)
        time.sleep(moments.uniform(0, 0.15))  # a step takes about 40 ms, most of it inside the save
        process.kill()
        process.communicate()
    run("train", "--resume", killed, "--workers", "1")
    assert last_checkpoint(killed) == last_checkpoint(whole)


@pytest.mark.slow(ci=True)
def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(
    make_shards: MakeShards, tmp_path: Path, config: Path
) -> None:
    kill_and_resume(make_shards((20, 9)), config, tmp_path, kills=1)


@pytest.mark.slow
def test_twenty_kills_leave_the_same_bits(make_shards: MakeShards, tmp_path: Path, config: Path) -> None:
    kill_and_resume(make_shards((20, 9)), config, tmp_path, kills=20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "moco.quue=5"], "did you mean moco.queue"),
        (["--lr", "nan"], "--lr"),
        (["--epohcs", "3"], "did you mean --epochs"),
        (["--data", "pipe:touch owned"], "'pipe:'"),
        (["--config", "no-such.toml"], "no-such.toml"),
        (["--preset", "cifar11"], "cifar10"),
        (["--device", "cuda:77"], "cuda:77|CUDA"),
        (["--batch-size", "4096"], "larger than the data set of 29 images; use --batch-size 29 or less"),
    ],
)
def test_a_mistake_is_one_line(
    make_shards: MakeShards, config: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    data = make_shards((20, 9))
    given = ["train", "--data", str(data), *arguments]
    assert re.search(message, one_line(given if "--config" in arguments else [*given, "--config", str(config)], capsys))


def test_all_missing_shards_are_named_at_once(
    make_shards: MakeShards, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_shards((5, 5, 5, 5))
    for number in (1, 3):
        (data / f"data-{number:06d}.tar").unlink()
    line = one_line(["train", "--config", str(config), "--data", f"{data}/data-{{000000..000003}}.tar"], capsys)
    assert "2 of 4 shards are missing" in line and "data-000001.tar" in line and "data-000003.tar" in line
    expanded = [f"{data}/data-{number:06d}.tar" for number in range(4)]  # as a shell hands them over
    assert "2 of 4" in one_line(["train", "--data", *expanded, "--config", str(config)], capsys)


def test_resuming_with_another_setting_is_refused_with_the_difference(
    make_shards: MakeShards, tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, folder = make_shards((8,)), tmp_path / "run"
    with pytest.raises(SystemExit, match="0"):
        main(
            ["train", "--config", str(config), "--data", str(data), "--epochs", "1", "--output", str(folder), "--json"]
        )
    assert json.loads(capsys.readouterr().out)["step"] == 1
    line = one_line(["train", "--resume", str(folder), "--lr", "0.1"], capsys)
    assert "optimizer.lr: 0.05 -> 0.1" in line


def test_a_presets_epochs_do_not_extend_a_run() -> None:
    """Somebody who repeats the command and leaves out --epochs would otherwise train for 200."""
    begun = resolve("cifar10", None, {}, {"train.epochs": "3", "data.train": "shards"}).settings
    again = resolve("cifar10", None, {}, {"data.train": "shards"}, begun)
    assert differences(begun, again.settings) == [] and again.origins["train.epochs"] == "run"
    longer = resolve("cifar10", None, {}, {"data.train": "shards", "train.epochs": "4"}, begun).settings
    assert differences(begun, longer, may_extend=True) == [] and longer.train.epochs == 4


def test_a_shard_that_its_index_lists_is_missed_in_a_folder(
    make_shards: MakeShards, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_shards((5, 5, 5))
    with pytest.raises(SystemExit, match="0"):
        main(["index", str(data)])
    capsys.readouterr()
    (data / "data-000001.tar").unlink()
    line = one_line(["train", "--config", str(config), "--data", str(data)], capsys)
    assert "1 of 3 shards are missing" in line and "data-000001.tar" in line
