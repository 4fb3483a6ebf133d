"""Batches in worker processes: the same whatever the number of workers, full in spite of bad images, honest errors."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from leoclr.datasets.errors import DataError
from leoclr.datasets.images.augmentation import AugmentationSpec
from leoclr.datasets.loading.loader import Batch, StepDataset, batches
from leoclr.datasets.loading.plan import Plan
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.locate import open_data
from leoclr.datasets.views import POLICIES

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than CPUs, on purpose
SPEC = AugmentationSpec(image_size=12)


def dataset(index: Index, batch: int = 6, rank: int = 0, ranks: int = 1, seed: int = 3, window: int = 0) -> StepDataset:
    return StepDataset(index, Plan.of(index, batch, seed, rank, ranks, window), POLICIES["leoclr"], SPEC)


def one_epoch(data: StepDataset, workers: int, epoch: int = 0) -> list[Batch]:
    steps = len(data)
    return list(batches(data, epoch * steps, (epoch + 1) * steps, workers))


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert [batch.step for batch in first] == [batch.step for batch in second]
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.samples, other.samples) and one.bad == other.bad
        assert all(torch.equal(one.views[name], other.views[name]) for name in one.views)


@pytest.mark.parametrize("shards", [1, 7, 32])
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 1, 4])
def test_every_key_comes_once_on_any_ranks_and_workers(
    shards: int, ranks: int, workers: int, make_shards: Callable[..., Path]
) -> None:
    sizes = {1: (20,), 7: (1, 4, 3, 2, 5, 1, 6), 32: (1, 4, 3, 2) * 8}[shards]
    index = open_data([str(make_shards(sizes))])
    keys = index.keys()
    left_out = []
    for epoch in range(2):
        loaded = [one_epoch(dataset(index, 6, rank, ranks), workers, epoch) for rank in range(ranks)]
        assert {len(steps) for steps in loaded} == {len(index) // 6}
        seen = [keys[int(sample)] for steps in loaded for batch in steps for sample in batch.samples]
        assert len(seen) == len(set(seen)) == len(keys) // 6 * 6
        left_out.append(set(keys) - set(seen))
    assert len(left_out[0]) == len(keys) % 6 > 0 and left_out[0] != left_out[1]


@pytest.mark.parametrize("window", [0, 8])
def test_workers_and_the_first_step_change_nothing(window: int, make_shards: Callable[..., Path]) -> None:
    index = open_data([str(make_shards((9, 4, 14), bad=(3, 11)))])
    alone = list(batches(dataset(index, window=window), 0, 8, 0))
    assert [batch.step for batch in alone] == list(range(8))
    assert_same(list(batches(dataset(index, window=window), 0, 8, 3)), alone)
    assert_same(list(batches(dataset(index, window=window), 5, 8, 0)), alone[5:])
    assert_same(list(batches(dataset(index, window=window), 5, 8, 2)), alone[5:])


def test_ranks_split_the_batch_of_one(make_shards: Callable[..., Path]) -> None:
    index = open_data([str(make_shards((9, 14)))])
    whole = one_epoch(dataset(index), 0)
    parts = [one_epoch(dataset(index, 6, rank, 2), 0) for rank in range(2)]
    for together, first, second in zip(whole, *parts, strict=True):
        assert torch.equal(together.samples, torch.cat([first.samples, second.samples]))
        for name, pixels in together.views.items():
            assert torch.equal(pixels, torch.cat([first.views[name], second.views[name]]))


def test_epochs_and_views_differ(make_shards: Callable[..., Path]) -> None:
    index = open_data([str(make_shards((12,)))])
    data = dataset(index, 12)
    first, second = data[0], data[1]
    assert not torch.equal(first.samples, second.samples)
    order = [batch.samples.argsort() for batch in (first, second)]
    assert torch.equal(first.samples[order[0]], second.samples[order[1]])  # the same images, augmented otherwise
    assert not torch.equal(first.views["x"][order[0]], second.views["x"][order[1]])
    assert not torch.equal(first.views["x1"], first.views["x2"])


def test_pixels_are_bytes_with_channels_last(make_shards: Callable[..., Path]) -> None:
    batch = dataset(open_data([str(make_shards((6,)))]))[0]
    assert list(batch.views) == ["x", "x1", "x2"]
    for pixels in batch.views.values():
        assert pixels.shape == (6, 3, 12, 12) and pixels.dtype == torch.uint8
        assert pixels.is_contiguous(memory_format=torch.channels_last)
    assert batch.samples.dtype == torch.int64


def test_bad_images_are_replaced_and_named(make_shards: Callable[..., Path]) -> None:
    bad = (0, 7, 8)
    index = open_data([str(make_shards((10, 8), bad=bad))])
    loaded = one_epoch(dataset(index), 2)
    planned = [Plan.of(index, 6, 3).step(step).samples for step in range(3)]
    named = [line for batch in loaded for line in batch.bad]
    assert {line.split(" in ")[0] for line in named} == {f"{number:05d}" for number in bad}
    assert all("data-000000.tar" in line and "cannot be decoded" in line for line in named)
    assert not {int(sample) for batch in loaded for sample in batch.samples} & set(bad)
    for batch, samples in zip(loaded, planned, strict=True):
        assert len(batch.samples) == 6 and all(len(pixels) == 6 for pixels in batch.views.values())
        good = [row for row, sample in enumerate(samples) if sample not in bad]
        assert batch.samples[good].tolist() == samples[good].tolist()  # the others keep their place
    assert_same(one_epoch(dataset(index), 0), loaded)


def test_nothing_but_bad_images_is_an_error(make_shards: Callable[..., Path]) -> None:
    index = open_data([str(make_shards((4,), bad=(0, 1, 2, 3)))])
    with pytest.raises(DataError, match="100 images in a row cannot be decoded; the last: 0000"):
        list(batches(dataset(index, 2), 0, 1, 1))


def cut(shard: Path) -> None:
    os.truncate(shard, shard.stat().st_size // 2)


def grow(shard: Path) -> None:
    with shard.open("ab") as file:
        file.write(bytes(512))


@pytest.mark.parametrize(
    ("harm", "message"),
    [(Path.unlink, "No such file"), (cut, "changed since it was indexed"), (grow, "changed since it was indexed")],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_goes_or_changes_is_named_once_and_plainly(
    workers: int, harm: Callable[[Path], object], message: str, make_shards: Callable[..., Path]
) -> None:
    folder = make_shards((8, 8))
    index = open_data([str(folder)])
    harm(folder / "data-000001.tar")
    before = set(multiprocessing.active_children())
    with pytest.raises(DataError) as caught:
        list(batches(dataset(index, 8), 0, 2, workers))
    text = str(caught.value)
    assert "data-000001.tar" in text and message in text
    assert "Traceback" not in text and "\n" not in text  # what torch makes of an exception in a worker
    assert set(multiprocessing.active_children()) <= before  # the workers have gone although the error is still held


def test_a_shard_cut_while_it_is_open_is_named(make_shards: Callable[..., Path]) -> None:
    folder = make_shards((8,))
    data = dataset(open_data([str(folder)]), 8)
    loading = batches(data, 0, 2, 0)
    next(loading)
    cut(folder / "data-000000.tar")
    with pytest.raises(DataError, match="data-000000.tar.*(changed|truncated)"):
        next(loading)


def test_workers_leave_ctrl_c_to_the_trainer(make_shards: Callable[..., Path]) -> None:
    before = set(multiprocessing.active_children())
    loading = batches(dataset(open_data([str(make_shards((36,)))])), 0, 6, 2)
    steps = [next(loading).step]
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    for worker in workers:
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGINT)
    assert steps + [batch.step for batch in loading] == list(range(6))


def test_the_runs_own_random_numbers_are_left_alone(make_shards: Callable[..., Path]) -> None:
    index = open_data([str(make_shards((6,)))])
    before = torch.get_rng_state()
    one_epoch(dataset(index), 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_dataset_travels_to_spawned_workers(make_shards: Callable[..., Path]) -> None:
    """Where processes are not forked (Python 3.14, macOS) it is pickled: to our own process, never from a file."""
    data = dataset(open_data([str(make_shards((6,)))]))
    data[0]  # shards are open now; descriptors do not travel
    assert_same([pickle.loads(pickle.dumps(data))[0]], [data[0]])
