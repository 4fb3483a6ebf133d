"""Two machines, each a network namespace with a torchrun of its own: one run, and what ends it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from leoclr.cli.run.checkpoint import newest_checkpoint, step_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

MakeShards = Callable[..., Path]
TinyConfig = Callable[..., Path]
PREFIX = f"lr{os.getpid() % 100_000}"
TIMEOUT_SECONDS = 12  # of an exchange between processes
BOUND_SECONDS = 120  # until both agents have ended, on a machine with other work


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Machines:
    """Two namespaces with a cable between them.

    torch asks the kernel how long an answer may take: 15 retries would be a quarter of an hour, 4 are seconds.
    """

    names = (f"{PREFIX}a", f"{PREFIX}b")

    def connect(self) -> None:
        for name in self.names:
            ip("netns", "add", name)
        first, second = self.names
        ip("link", "add", first, "netns", first, "type", "veth", "peer", "name", second, "netns", second)
        for number, name in enumerate(self.names, 1):
            ip("-n", name, "address", "add", f"10.99.7.{number}/24", "dev", name)
            ip("-n", name, "link", "set", "lo", "up")
            ip("netns", "exec", name, "sysctl", "-q", "-w", "net.ipv4.tcp_retries2=4")
        self.cable("up")

    def cable(self, state: str) -> None:
        for name in self.names:
            ip("-n", name, "link", "set", name, state)

    def remove(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)

    def start(self, log: Path, *arguments: str | Path) -> list[subprocess.Popen[bytes]]:
        """A torchrun with one process on each."""
        agents = []
        for number, name in enumerate(self.names, 1):
            launcher = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "leoclr"]
            launcher += ["--rdzv-endpoint", "10.99.7.1:29511", "--local-addr", f"10.99.7.{number}"]
            launcher += ["--rdzv-conf", f"is_host={int(number == 1)}"]
            command = [sys.executable, "-m", "torch.distributed.run", *launcher, "-m", "leoclr.cli", "train"]
            with log.with_suffix(f".{number}").open("wb") as output:
                agents.append(
                    subprocess.Popen(
                        ["ip", "netns", "exec", name, *command, *map(str, arguments)],
                        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": name},
                        stdout=output,
                        stderr=subprocess.STDOUT,
                    )
                )
        return agents


@pytest.fixture
def machines() -> Iterator[Machines]:
    found = Machines()
    if sys.platform != "linux" or shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces take Linux, iproute2 and root")
    try:
        found.connect()
    except subprocess.CalledProcessError as error:
        found.remove()
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    yield found
    found.remove()


def losses(run: Path) -> list[float]:
    path = run / "metrics.jsonl"
    return [json.loads(line)["loss"] for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_step(run: Path, step: int, agents: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + 300
    while len(losses(run)) < step:
        assert all(agent.poll() is None for agent in agents) and time.monotonic() < deadline
        time.sleep(0.05)


def ended(agents: list[subprocess.Popen[bytes]], within: float) -> list[int]:
    deadline = time.monotonic() + within
    try:
        return [agent.wait(timeout=max(0.1, deadline - time.monotonic())) for agent in agents]
    finally:
        for agent in agents:
            for process in [*psutil.Process(agent.pid).children(recursive=True)] if agent.poll() is None else []:
                process.kill()
            agent.kill()


def error_lines(log: Path, number: int) -> list[str]:
    text = log.with_suffix(f".{number}").read_text(errors="replace")
    return [line for line in text.splitlines() if line.startswith("error: ")]


def test_two_machines_are_one_run_and_a_cut_or_a_kill_ends_both_in_one_line(
    machines: Machines, make_shards: MakeShards, tmp_path: Path, tiny_config: TinyConfig
) -> None:
    minutes = TIMEOUT_SECONDS / 60
    config = tiny_config(optimizer__lr=1e-4, run__checkpoint_minutes=0, run__keep=50, run__timeout_minutes=minutes)
    run, log = tmp_path / "run", tmp_path / "log"
    fresh = ("--config", config, "--data", make_shards((20, 9)), "--epochs", "3000", "--output", run)
    again = ("--resume", run)

    agents = machines.start(log, *fresh)
    wait_for_step(run, 3, agents)
    machines.cable("down")
    assert all(ended(agents, BOUND_SECONDS))
    for number in (1, 2):
        (line,) = error_lines(log, number)
        assert "another process of this run" in line

    alone = tmp_path / "alone"
    process = subprocess.Popen([sys.executable, "-m", "leoclr.cli", "train", *map(str, (*fresh[:-1], alone))])
    wait_for_step(alone, 3, [process])
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=120)
    assert losses(run)[:3] == pytest.approx(losses(alone)[:3], rel=1e-5)
    one, other = (load_file(step_folder(path / "checkpoints", 2) / "model.safetensors") for path in (run, alone))
    for name in [name for name in one if ".running_" not in name]:  # which are of the first process's groups
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5)

    machines.cable("up")
    before = len(losses(run))
    agents = machines.start(log, *again)
    wait_for_step(run, before + 2, agents)
    (rank,) = [
        process
        for process in psutil.Process(agents[1].pid).children(recursive=True)
        if process.environ().get("RANK") is not None and "leoclr.cli" in process.cmdline()
    ]
    rank.kill()
    assert all(ended(agents, BOUND_SECONDS))
    (line,) = error_lines(log, 1)
    assert "another process of this run" in line

    before = len(losses(run))
    agents = machines.start(log, *again)
    wait_for_step(run, before + 2, agents)
    for agent in agents:
        agent.send_signal(signal.SIGTERM)
    ended(agents, BOUND_SECONDS)
    checkpoint, damaged = newest_checkpoint(run / "checkpoints")
    assert checkpoint is not None and not damaged
    tensors = load_file(checkpoint / "model.safetensors")
    assert all(bool(torch.isfinite(value).all()) for value in tensors.values())


def test_of_two_that_start_at_once_in_one_folder_one_trains(
    make_shards: MakeShards, tmp_path: Path, tiny_config: TinyConfig
) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "leoclr.cli", "train", "--config", str(tiny_config()), "--epochs", "2"]
    command += ["--data", str(make_shards((20, 9))), "--output", str(run)]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=300)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2]
    refused = next(text for text, process in zip(errors, both, strict=True) if process.returncode)
    assert "is in use by process" in refused or "holds a run already" in refused
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [*range(1, 7)]
