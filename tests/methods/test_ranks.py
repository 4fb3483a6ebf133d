"""One process equals several: loss, gradients, queue and key encoder, for every backend under every view policy."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

PROGRAM = Path(__file__).parents[1] / "programs" / "backend_ranks.py"


def run_ranks(folder: Path, world: int) -> list[dict[str, Tensor]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    output = folder / f"world{world}-RANK.safetensors"
    processes = [
        subprocess.Popen([sys.executable, str(PROGRAM), str(output)], env=os.environ | group | {"RANK": str(rank)})
        for rank in range(world)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0] * world
    return [load_file(str(output).replace("RANK", str(rank))) for rank in range(world)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    return run_ranks(folder, 1)[0], run_ranks(folder, 2)


@pytest.mark.parametrize("views", ["leoclr", "pairwise", "pairwise-symmetric"])
@pytest.mark.parametrize("kind", ["moco.{}.plain", "moco.{}.bn", "simclr.{}.plain"])
def test_two_processes_compute_what_one_does(
    results: tuple[dict[str, Tensor], list[dict[str, Tensor]]], kind: str, views: str
) -> None:
    """With BatchNorm in splits too: the groups of the global batch are the same, and so is the shuffle of keys."""
    alone, together = results
    names = [name for name in alone if name.startswith(kind.format(views) + ".")]
    assert any("gradient.1." in name for name in names)
    for rank in together:
        for name in names:
            torch.testing.assert_close(rank[name], alone[name], rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.parametrize("views", ["leoclr", "pairwise-symmetric"])
@pytest.mark.parametrize("kind", ["byol", "simsiam", "barlow-twins", "vicreg", "swav", "dino", "scfs", "obow", "hcsc"])
def test_terms_over_the_whole_batch_are_those_of_one_process(
    results: tuple[dict[str, Tensor], list[dict[str, Tensor]]], kind: str, views: str
) -> None:
    """Correlations, variances, codes (with a queue on each rank) and the centre are of all images."""
    alone, together = results
    names = [name for name in alone if name.startswith(f"{kind}.{views}.plain.")]
    assert any("gradient.1." in name for name in names) and any("loss.1" in name for name in names)
    for rank in together:
        for name in names:
            torch.testing.assert_close(rank[name], alone[name], rtol=1e-7, atol=1e-9, msg=name)


def test_the_queue_is_the_same_on_every_rank_bit_for_bit(
    results: tuple[dict[str, Tensor], list[dict[str, Tensor]]],
) -> None:
    first, second = results[1]
    queues = [name for name in first if name.endswith("queue")]
    assert queues and all(torch.equal(first[name], second[name]) for name in queues)
