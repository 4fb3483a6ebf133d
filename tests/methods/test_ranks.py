"""One process equals several: loss, gradients, queue and key encoder, for every backend under every view policy."""

from __future__ import annotations

import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from leoclr.backends import distributed

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests" / "programs" / "backend_ranks.py"


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


def test_images_travel_to_the_rank_that_needs_them_and_the_table_says_how_much(
    results: tuple[dict[str, Tensor], list[dict[str, Tensor]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    script = runpy.run_path(str(ROOT / "scripts" / "traffic_table.py"))
    steps, images, number = 2, 8, 8  # of float64
    gradients = sum(value.nbytes for name, value in results[0].items() if name.startswith("moco.leoclr.bn.gradient.0"))
    expected = script["traffic"](2, images, 3 * 6 * 6 * number, 2, 2, 4 * number, gradients)
    for rank, found in enumerate(results[1]):
        assert int(found["traffic.keys"]) == steps * expected.keys
        assert int(found["traffic.gradients"]) == steps * expected.gradients
        orders = [torch.randperm(16, generator=torch.Generator().manual_seed(step)) for step in range(steps)]
        foreign = sum(int((order[rank * images :][:images] // images != rank).sum()) for order in orders)
        assert int(found["traffic.images"]) == 2 * foreign * 3 * 6 * 6 * number
        assert foreign / (steps * images) == pytest.approx(expected.images / (2 * images * 3 * 6 * 6 * number), abs=0.2)
    assert "".join(script["section"]()) in script["PAGE"].read_text("utf-8")


def test_the_queue_is_the_same_on_every_rank_bit_for_bit(
    results: tuple[dict[str, Tensor], list[dict[str, Tensor]]],
) -> None:
    first, second = results[1]
    queues = [name for name in first if name.endswith("queue")]
    assert queues and all(torch.equal(first[name], second[name]) for name in queues)


def test_a_gradient_that_others_hold_too_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autograd may hand one tensor to several functions, as for the sum of two gathered tensors."""
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: tensor.mul_(2))
    monkeypatch.setattr(distributed, "gather", lambda tensor: tensor + 0)
    one, other = (torch.ones(3, 2, requires_grad=True) for _ in range(2))
    gather = distributed._Gather.apply
    (gather(one) + gather(other)).sum().backward()
    for each in (one, other):
        assert each.grad is not None and torch.equal(each.grad, torch.full((3, 2), 2.0))
