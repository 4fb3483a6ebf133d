"""The order of samples: exactly once, the same for any number of ranks, seekable, and well mixed."""

from __future__ import annotations

import time

import numpy as np
import pytest
from numpy.typing import NDArray

from leoclr.datasets.errors import DataError
from leoclr.datasets.loading.plan import Plan

WINDOWS = [0, 16, 50, 10_000]


def uneven(shards: int, seed: int = 0) -> tuple[int, ...]:
    """Sizes of shards from 3 to 40; none of the sums is a multiple of the batches below."""
    sizes = [int(size) for size in np.random.default_rng(seed).integers(3, 41, shards)]
    sizes[0] += 37 - sum(sizes) % 12
    return tuple(sizes)


def ranks_of(sizes: tuple[int, ...], batch: int, ranks: int, window: int = 0, seed: int = 5) -> list[Plan]:
    return [Plan(sizes, batch, seed, rank, ranks, window) for rank in range(ranks)]


def epoch_of(plans: list[Plan], epoch: int) -> NDArray[np.int64]:
    """The samples of an epoch, all ranks of a step side by side."""
    steps = plans[0].steps_per_epoch
    parts = [[plan.step(step).samples for plan in plans] for step in range(epoch * steps, (epoch + 1) * steps)]
    return np.concatenate([samples for step in parts for samples in step])


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("shards", [1, 7, 32])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_sample_is_seen_once_but_for_a_changing_remainder(ranks: int, shards: int, window: int) -> None:
    sizes = uneven(shards)
    plans = ranks_of(sizes, 12, ranks, window)
    left_out = []
    for epoch in range(3):
        seen = epoch_of(plans, epoch)
        assert len(seen) == sum(sizes) // 12 * 12  # the remainder is less than a batch
        assert len(np.unique(seen)) == len(seen) and seen.min() >= 0 and seen.max() < sum(sizes)
        left_out.append(frozenset(range(sum(sizes))) - frozenset(seen.tolist()))
    assert len(left_out[0]) == sum(sizes) % 12 == 1
    assert len({plan.steps_per_epoch for plan in plans}) == 1
    assert len(set(left_out)) > 1


@pytest.mark.parametrize("window", [0, 8, 9, 64])
def test_no_sample_is_left_out_for_ever(window: int) -> None:
    """Also where the last window is just the remainder: 10 samples, windows of 8, batches of 8."""
    plan = Plan((10,), 8, 0, window=window)
    seen = np.concatenate([plan.step(step).samples for step in range(40)])
    counts = np.bincount(seen, minlength=10)
    assert counts.min() >= 20  # 32 expected


@pytest.mark.parametrize("window", WINDOWS)
def test_the_global_order_is_that_of_one_rank(window: int) -> None:
    sizes = uneven(7)
    alone = epoch_of(ranks_of(sizes, 12, 1, window), 1)
    for ranks in (2, 3, 4, 6):
        np.testing.assert_array_equal(epoch_of(ranks_of(sizes, 12, ranks, window), 1), alone)


@pytest.mark.parametrize("window", WINDOWS)
def test_a_run_that_goes_on_in_other_numbers_of_processes_keeps_the_order(window: int) -> None:
    sizes = uneven(7)
    alone = ranks_of(sizes, 12, 1, window)
    steps = alone[0].steps_per_epoch
    processes = [2, 1, *[3] * (steps - 2)]  # of each step of the second epoch
    seen = [
        plan.step(steps + step).samples
        for step, ranks in enumerate(processes)
        for plan in ranks_of(sizes, 12, ranks, window)
    ]
    np.testing.assert_array_equal(np.concatenate(seen), epoch_of(alone, 1))


@pytest.mark.parametrize("window", WINDOWS)
def test_the_order_is_a_function_of_seed_and_epoch_alone(window: int) -> None:
    sizes = uneven(7)
    orders = [epoch_of(ranks_of(sizes, 12, 1, window, seed), epoch) for seed in (1, 2) for epoch in (0, 1)]
    for number, order in enumerate(orders):
        for other in orders[:number]:
            assert (order == other).mean() < 0.1
    again = Plan(sizes, 12, 1, window=window)
    steps = again.steps_per_epoch
    backwards = [again.step(step).samples for step in reversed(range(steps, 2 * steps))]
    np.testing.assert_array_equal(np.concatenate(backwards[::-1]), orders[1])


def test_steps_count_on_over_epochs() -> None:
    plan = Plan((10, 11), 4, 0)
    assert plan.steps_per_epoch == 5
    assert [plan.step(step).epoch for step in (0, 4, 5, 14)] == [0, 0, 1, 2]


@pytest.mark.parametrize("window", [0, 10_000])
def test_any_step_of_a_large_data_set_comes_at_once(window: int) -> None:
    plan = Plan((10_000,) * 1_000, 256, 0, window=window)
    plan.step(0)
    start = time.process_time()
    samples = plan.step(100_000).samples
    taken = time.process_time() - start
    assert taken < 0.1  # about 2 ms on an idle machine
    assert len(np.unique(samples)) == 256


def test_many_ranks_and_many_shards() -> None:
    """64 ranks over 1,000 uneven shards: exactly once, the same number of steps each, and how many shards each opens.

    Workers take whole steps in turn, so 8 of them differ by a step at most.
    """
    sizes = tuple(int(size) for size in np.random.default_rng(1).integers(30, 90, 1_000))
    window, batch, ranks = 1_500, 2_048, 64
    plans = ranks_of(sizes, batch, ranks, window)
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    steps = plans[0].steps_per_epoch
    counts = np.zeros(sum(sizes), np.int64)
    for step in range(steps):
        parts = [plan.step(step).samples for plan in plans]
        assert all(len(part) == batch // ranks for part in parts)
        together = np.concatenate(parts)
        counts[together] += 1
        # A step lies in up to three windows, each of which is about 25 shards long.
        assert len(np.unique(shard_of[together])) <= 3 * (window // 30 + 2)
    assert counts.max() == 1
    assert (counts == 0).sum() == sum(sizes) - steps * batch < batch
    taken_by_worker = [len(range(worker, steps, 8)) for worker in range(8)]
    assert max(taken_by_worker) - min(taken_by_worker) <= 1


def rank_correlation(order: NDArray[np.int64]) -> float:
    return abs(float(np.asarray(np.corrcoef(np.arange(len(order)), order))[0, 1]))


def test_the_global_shuffle_mixes_all() -> None:
    sizes = (1_000,) * 32
    order = Plan(sizes, 64, 0).order(0, np.arange(32_000))
    assert rank_correlation(order) < 0.02
    # A data set sorted into 32 classes: a batch of 64 holds as many classes as drawing at random does (27.8).
    classes = [len(np.unique(batch // 1_000)) for batch in order.reshape(-1, 64)]
    assert 27.3 < np.mean(classes) < 28.3
    assert (np.abs(np.diff(order)) == 1).mean() < 0.001  # neighbours do not stay neighbours


def test_a_window_mixes_a_few_shards_at_a_time() -> None:
    """32 shards sorted by class and windows of 8,000: batches hold the classes of a window, not of one shard."""
    plan = Plan((1_000,) * 32, 64, 0, window=8_000)
    orders = [plan.order(epoch, np.arange(32_000)) for epoch in range(8)]
    assert np.mean([rank_correlation(order) for order in orders]) < 0.3  # by chance of 32 shards: 0.14
    for order in orders:
        batches = order.reshape(-1, 64) // 1_000
        assert 7.9 < np.mean([len(np.unique(batch)) for batch in batches]) < 10
        for window in order.reshape(-1, 8_000):
            assert len(np.unique(window // 1_000)) <= 10  # locality: few shards are open at a time
    # Which shards come together changes from epoch to epoch.
    first, second = (frozenset((order[:8_000] // 1_000).tolist()) for order in orders[:2])
    assert first != second


@pytest.mark.parametrize(
    ("sizes", "batch", "ranks", "message"),
    [
        ((10, 10), 6, 4, "batch size 6 cannot be split over 4 processes"),
        ((10, 3), 16, 2, r"larger than the data set of 13 images; use --batch-size 12 or less"),
        ((2,), 12, 3, r"the data set of 2 images is smaller than the number of processes, 3"),
    ],
)
def test_what_cannot_be_planned_is_refused(sizes: tuple[int, ...], batch: int, ranks: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Plan(sizes, batch, 0, ranks=ranks)


def test_empty_shards_do_not_matter() -> None:
    for window in WINDOWS:
        seen = epoch_of(ranks_of((0, 5, 0, 7, 0), 4, 2, window), 0)
        assert sorted(seen.tolist()) == list(range(12))
