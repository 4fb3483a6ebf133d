"""Real faults under `leoclr train` as a user meets them: what is killed, stopped, full, vanished or planted.

Faults of a single part are tested with that part: shards in test_scan.py, images in test_decode.py, checkpoints in
test_checkpoint.py, servers in test_http_storage.py.
"""

from __future__ import annotations

import io
import json
import os
import pty
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import Dataset

from leoclr.backends.method import Output, Progress
from leoclr.backends.methods.moco import MoCo
from leoclr.cli.commands.app import main
from leoclr.cli.run.checkpoint import newest_checkpoint, newest_sound
from leoclr.datasets.errors import DataError
from leoclr.datasets.loading import workers

MakeShards = Callable[..., Path]
TinyConfig = Callable[..., Path]


@pytest.fixture
def config(tiny_config: TinyConfig) -> Path:
    return tiny_config(run__workers=1)


def start(*arguments: str | Path, new_group: bool = False, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "leoclr.cli", *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        process_group=0 if new_group else None,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 150) -> tuple[int, str]:
    _, errors = process.communicate(timeout=timeout)
    return process.returncode, errors


def wait_for_steps(run: Path, steps: int, process: subprocess.Popen[str]) -> None:
    metrics = run / "metrics.jsonl"
    deadline = time.monotonic() + 150
    while not metrics.exists() or metrics.read_text().count("\n") < steps:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def errors_of(text: str) -> list[str]:
    assert "Traceback" not in text, text
    return [line for line in text.splitlines() if line.startswith("error: ")]


def children_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    children: list[psutil.Process] = psutil.Process(process.pid).children(recursive=True)
    return children


def assert_gone(processes: list[psutil.Process], within: float = 20) -> None:
    _, alive = psutil.wait_procs(processes, timeout=within)
    assert not [process for process in alive if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def shared_memory() -> Iterator[None]:
    """Nothing of this test is left in shared memory."""
    before = set(os.listdir("/dev/shm"))
    yield
    mine = [name for name in set(os.listdir("/dev/shm")) - before if (Path("/dev/shm") / name).owner() == _me()]
    assert not [name for name in mine if name.startswith(("torch_", "sem."))]


def _me() -> str:
    return str(psutil.Process().username())


# One rank is killed, stops, or fails


def train_on_two(
    config: Path, data: Path, run: Path, *more: str, rank: str = "1", save_minutes: int = 0
) -> tuple[subprocess.Popen[str], psutil.Process]:
    """A run on two ranks after its first steps, and one of them."""
    process = start(
        "train", "--config", config, "--data", data, "--epochs", "3000", "--output", run, "--num-processes", "2",
        "--set", f"run.checkpoint_minutes={save_minutes}", *more,
    )  # fmt: skip
    wait_for_steps(run, 2, process)
    ranks = psutil.Process(process.pid).children()
    return process, next(process for process in ranks if process.environ()["RANK"] == rank)


def assert_goes_on(run: Path) -> None:
    """One process goes on with the run: a step more, then Ctrl-C."""
    process = start("train", "--resume", run)
    before = (run / "metrics.jsonl").read_text().count("\n")
    wait_for_steps(run, before + 1, process)
    process.send_signal(signal.SIGINT)
    code, errors = finish(process)
    assert code == 130 and "going on after step" in errors


@pytest.mark.usefixtures("shared_memory")
@pytest.mark.parametrize(
    ("number", "processes"),
    [
        pytest.param(signal.SIGUSR1, (), id="one"),
        pytest.param(signal.SIGTERM, ("--num-processes", "2"), id="two", marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_the_whole_job_saves_and_stops(
    make_shards: MakeShards, tmp_path: Path, config: Path, number: signal.Signals, processes: tuple[str, ...]
) -> None:
    """As `timeout`, systemd and Slurm end one: every process is told, the loaders too."""
    run = tmp_path / "run"
    arguments = ("--data", make_shards((20, 9)), "--epochs", "3000", "--output", run, "--workers", "2")
    process = start("train", "--config", config, *arguments, *processes, new_group=True)
    wait_for_steps(run, 3, process)
    everyone = children_of(process)
    os.killpg(process.pid, number)
    code, errors = finish(process)
    assert code == 128 + number and not errors_of(errors)
    assert newest_checkpoint(run / "checkpoints")[0] is not None
    assert_gone(everyone)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_memory")
def test_a_terminal_that_closes_saves_and_stops(make_shards: MakeShards, tmp_path: Path, config: Path) -> None:
    """Its end is told to every process, and what they print goes nowhere."""
    run, (master, terminal) = tmp_path / "run", pty.openpty()
    arguments = ["train", "--config", config, "--data", make_shards((20, 9)), "--epochs", "3000", "--output", run]
    process = subprocess.Popen(
        [sys.executable, "-m", "leoclr.cli", *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=terminal, stdout=terminal, stdin=terminal, process_group=0,
    )  # fmt: skip
    os.close(terminal)
    deadline = time.monotonic() + 150
    while not (run / "metrics.jsonl").exists() or len((run / "metrics.jsonl").read_bytes()) < 300:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    os.close(master)
    os.killpg(process.pid, signal.SIGHUP)
    assert process.wait(timeout=60) == 128 + signal.SIGHUP
    assert newest_checkpoint(run / "checkpoints")[0] is not None


@pytest.mark.slow
def test_a_log_without_a_reader_ends_no_run(make_shards: MakeShards, tmp_path: Path, config: Path) -> None:
    process = start("train", "--config", config, "--data", make_shards((20, 9)), "--epochs", "30", "--output",
                    tmp_path / "run", "--set", "run.knn_epochs=1")  # fmt: skip
    assert process.stderr is not None
    process.stderr.close()
    process.stderr = None
    process.communicate(timeout=150)
    assert process.returncode == 0 and newest_checkpoint(tmp_path / "run" / "checkpoints")[0] is not None


@pytest.mark.slow
def test_a_first_process_that_saves_slowly_is_waited_for(make_shards: MakeShards, tmp_path: Path, config: Path) -> None:
    """Longer than the launcher waits for what is left when a process has failed."""
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(
        "import os, time\n"
        "sync = os.fsync\n"
        "os.fsync = lambda file: (time.sleep(4 if os.environ.get('RANK') == '0' else 0), sync(file))[1]\n"
    )
    run = tmp_path / "run"
    process = start(
        "train", "--config", config, "--data", make_shards((20, 9)), "--epochs", "3000", "--output", run,
        "--num-processes", "2", PYTHONPATH=str(tmp_path / "slow"),
    )  # fmt: skip
    wait_for_steps(run, 3, process)
    process.send_signal(signal.SIGTERM)
    code, errors = finish(process)
    assert code == 128 + signal.SIGTERM and not errors_of(errors)
    assert newest_checkpoint(run / "checkpoints")[0] is not None


@pytest.mark.slow(ci=True)
@pytest.mark.usefixtures("shared_memory")
def test_a_killed_rank_ends_all_and_the_run_goes_on(make_shards: MakeShards, tmp_path: Path, config: Path) -> None:
    process, rank = train_on_two(config, make_shards((20, 9)), tmp_path / "run")
    everyone = children_of(process)
    began = time.monotonic()
    rank.kill()
    code, errors = finish(process)
    assert code == 128 + signal.SIGKILL and time.monotonic() - began < 60
    assert "process 1 of 2 was ended by SIGKILL" in errors
    assert all("another process of this run has ended" in line for line in errors_of(errors))
    assert_gone(everyone)
    assert_goes_on(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_the_rank_that_is_left_saves_the_newest_step(
    make_shards: MakeShards, tmp_path: Path, config: Path, rank: str
) -> None:
    run = tmp_path / "run"
    process, killed = train_on_two(config, make_shards((2000,)), run, rank=rank, save_minutes=60)
    killed.kill()
    code, errors = finish(process)
    assert code == 128 + signal.SIGKILL
    newest, _ = newest_sound(run / "checkpoints")
    assert newest is not None and f"saved after step {newest.step}," in errors and errors.count("saved after") == 1
    assert_goes_on(run)


@pytest.mark.slow
def test_a_stopped_rank_is_given_up_after_the_timeout(make_shards: MakeShards, tmp_path: Path, config: Path) -> None:
    process, rank = train_on_two(
        config, make_shards((20, 9)), tmp_path / "run", "--set", "run.timeout_minutes=0.1"
    )  # fmt: skip
    everyone = children_of(process)
    rank.suspend()
    code, errors = finish(process)
    assert code == 2
    assert "has not answered within run.timeout_minutes" in errors_of(errors)[0]
    assert_gone(everyone)
    assert_goes_on(tmp_path / "run")


@pytest.mark.slow
def test_a_killed_launcher_leaves_no_ranks(make_shards: MakeShards, tmp_path: Path, config: Path) -> None:
    process, _ = train_on_two(config, make_shards((20, 9)), tmp_path / "run")
    everyone = children_of(process)
    process.kill()
    finish(process)
    assert_gone(everyone, within=60)
    assert_goes_on(tmp_path / "run")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MB: three checkpoints of this model."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up_ends_both_ranks_and_the_run_goes_on_with_more_space(
    make_shards: MakeShards, small_disk: Path, config: Path
) -> None:
    """Only the first rank writes, so that this is also the rank that fails while the other waits for it."""
    run, ballast = small_disk / "run", small_disk / "ballast"
    process, _ = train_on_two(config, make_shards((20, 9)), run, "--set", "run.trackers=tensorboard")
    everyone = children_of(process)
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    code, errors = finish(process)
    lines = errors_of(errors)
    assert code == 2 and len(lines) <= 2
    assert any(re.search(r"cannot (write|go on).*No space left on device", line) for line in lines), errors
    assert_gone(everyone)
    newest, damaged = newest_checkpoint(run / "checkpoints")
    assert newest is not None and not damaged
    assert f"once it can:  leoclr train --resume {run}" in errors
    ballast.unlink()
    assert_goes_on(run)


# A loader process is killed, or hangs


@pytest.mark.usefixtures("shared_memory")
def test_a_killed_loader_process_ends_the_run_in_one_line(
    make_shards: MakeShards, tmp_path: Path, config: Path
) -> None:
    run = tmp_path / "run"
    process = start("train", "--config", config, "--data", make_shards((20, 9)), "--epochs", "3000", "--output", run)
    wait_for_steps(run, 2, process)
    (worker,) = children_of(process)
    worker.kill()
    code, errors = finish(process, timeout=60)
    (line,) = errors_of(errors)
    assert code == 2 and "a loader process ended or hung" in line and str(worker.pid) in line
    assert_gone([worker])


@pytest.mark.slow
def test_a_loader_process_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_TIMEOUT_SECONDS", 1)
    began = time.monotonic()
    with pytest.raises(DataError, match="a loader process ended or hung"):
        list(workers.load_batches(Hanging(), range(4), 2))
    assert time.monotonic() - began < 30


@dataclass
class Item:
    error: str | None = None


class Hanging(Dataset[Item]):
    """The process that makes item 2 stops as by Ctrl-Z."""

    def __getitem__(self, number: int) -> Item:
        if number == 2:
            os.kill(os.getpid(), signal.SIGSTOP)
        return Item()


# Folders that are taken, cannot be written, or go away


def one_line(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The single line on stderr that a command ends with."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


@pytest.mark.slow
def test_a_folder_with_a_run_in_it_is_refused_and_one_that_vanishes_is_named(
    make_shards: MakeShards, tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = make_shards((20, 9)), tmp_path / "run"
    arguments: list[str | Path] = ["train", "--config", config, "--data", data, "--output", run]
    process = start(*arguments, "--epochs", "3000", "--set", "run.checkpoint_minutes=0")
    wait_for_steps(run, 2, process)
    for second in (arguments, ["train", "--resume", run]):
        line = one_line(capsys, *second)
        assert f"{run} is in use by process {process.pid} on " in line
    run.rename(tmp_path / "elsewhere")
    code, errors = finish(process, timeout=60)
    assert code == 2
    assert f"{run} has vanished" in errors_of(errors)[0] and not run.exists()
    assert_goes_on(tmp_path / "elsewhere")


def test_a_folder_that_cannot_be_written_is_refused_before_the_first_step(
    make_shards: MakeShards, tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    data = make_shards((20, 9))
    for output in (tmp_path / "file" / "run", Path("/proc/leoclr/run")):
        assert "cannot write to the run folder" in one_line(
            capsys, "train", "--config", config, "--data", data, "--output", output
        )


# Images, numbers and precision


def bomb_png(side: int) -> bytes:
    """One bit a pixel, all nought: 200 KB that would take gigabytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((1 + side // 8) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def noise_png(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def bombs(tmp_path: Path) -> Path:
    """20 images and 2 bombs in a shard."""
    folder = tmp_path / "bombs"
    folder.mkdir()
    with tarfile.open(folder / "bombs-000000.tar", "w") as shard:
        for number in range(22):
            content = bomb_png(40_000) if number in (4, 15) else noise_png(number)
            member = tarfile.TarInfo(f"{number:05d}.png")
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
    return folder


def test_image_bombs_are_skipped_counted_and_limited_without_memory(
    bombs: Path, tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    arguments: list[str | Path] = ["train", "--config", config, "--data", bombs, "--workers", "0", "--epochs", "2"]
    with pytest.raises(SystemExit, match="0"):
        main([str(a) for a in (*arguments, "--output", tmp_path / "a", "--set", "data.max_bad_samples=0.1", "--json")])
    assert json.loads(capsys.readouterr().out)["bad_images"] == 2
    named = (tmp_path / "a" / "bad-images.txt").read_text()
    assert "00004 in" in named and "00015 in" in named and "pixels" in named
    with pytest.raises(SystemExit, match="2"):
        main([str(argument) for argument in (*arguments, "--output", tmp_path / "b")])
    assert "data.max_bad_samples allows (1 of 22)" in capsys.readouterr().err
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 400 << 10  # KiB; one bomb decoded takes 4.8 GB


def assert_stopped_as_not_finite(run: Path, errors: str) -> None:
    (line,) = errors_of(errors)
    assert re.search(r"the loss or its gradient is not finite at step \d+; .* The batch began with 000", line)
    newest, damaged = newest_checkpoint(run / "checkpoints")
    assert newest is not None and not damaged
    assert all(torch.isfinite(tensor).all() for tensor in load_file(newest / "model.safetensors").values())


def train_until_refused(config: Path, data: Path, run: Path, *more: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--config", str(config), "--data", str(data), "--output", str(run), "--workers", "0"]
             + ["--set", "run.checkpoint_minutes=0", *more])  # fmt: skip


def test_a_loss_that_explodes_stops_the_run_before_it_is_saved(
    make_shards: MakeShards, tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_until_refused(config, make_shards((20, 9)), tmp_path / "run", "--lr", "1e30")
    assert_stopped_as_not_finite(tmp_path / "run", capsys.readouterr().err)


def test_an_infinite_gradient_of_a_finite_loss_stops_the_run_before_the_optimizer(
    make_shards: MakeShards,
    tmp_path: Path,
    config: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = MoCo.forward

    def forward(self: MoCo, views: Any, pairs: Any, now: Progress) -> Output:
        output = original(self, views, pairs, now)
        root_of_nought = (output.loss - output.loss.detach()).sqrt() if now.step == 2 else 0
        return Output(output.loss + root_of_nought, output.embeddings)

    monkeypatch.setattr(MoCo, "forward", forward)
    train_until_refused(config, make_shards((20, 9)), tmp_path / "run")
    assert_stopped_as_not_finite(tmp_path / "run", capsys.readouterr().err)
    newest, _ = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert newest is not None and newest.name == "step-000000002"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "fp16"], "fp16 needs a GPU"),
        (["--precision", "float64"], "float32"),
        (["--batch-size", "28", "--set", "train.accumulation=3"], "must be a multiple of train.accumulation"),
    ],
)
def test_what_a_processor_cannot_do_is_refused(
    make_shards: MakeShards, config: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    line = one_line(capsys, "train", "--config", config, "--data", make_shards((20, 9)), *arguments)
    assert message in line


def test_another_precision_another_method_and_half_a_checkpoint_are_refused(
    make_shards: MakeShards, tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = make_shards((16,)), tmp_path / "run"
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--config", str(config), "--data", str(data), "--output", str(run), "--epochs", "1"]
             + ["--workers", "0"])  # fmt: skip
    capsys.readouterr()
    resume: list[str | Path] = ["train", "--resume", run, "--workers", "0"]
    assert "train.precision: float32 -> bf16" in one_line(capsys, *resume, "--precision", "bf16")
    assert "backend: moco -> simclr" in one_line(capsys, *resume, "--backend", "simclr")
    (run / "checkpoints" / "step-000000002" / "model.safetensors").unlink()
    for damaged in (run, run / "checkpoints" / "step-000000002"):
        line = one_line(capsys, "export", damaged, "--format", "torchvision", "-o", tmp_path / "out.pth")
        assert "model.safetensors is missing" in line
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.slow
def test_one_shard_serves_many_readers_and_bad_images_are_counted_over_all_ranks(
    make_shards: MakeShards, tmp_path: Path, config: Path
) -> None:
    """1 shard for 2 ranks with 3 workers each: equal steps, no hang, and the count and list of one process."""
    arguments = (
        "train", "--config", config, "--data", make_shards((21,), bad=(3, 7, 11, 19)), "--epochs", "2", "--json",
        "--set", "data.max_bad_samples=0.5",
    )  # fmt: skip
    together = start(*arguments, "--output", tmp_path / "two", "--num-processes", "2", "--workers", "3")
    alone = start(*arguments, "--output", tmp_path / "one", "--workers", "0")
    lists = []
    for process, name in ((together, "two"), (alone, "one")):
        out, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
        result = json.loads(out)
        lists.append(sorted((tmp_path / name / "bad-images.txt").read_text().splitlines()))
        assert result["step"] == 4 and result["bad_images"] == len(lists[-1]) > 1
    assert lists[0] == lists[1]
