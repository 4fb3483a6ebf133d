"""Random numbers are pure functions, uniform, and permutations are good shuffles."""

from __future__ import annotations

import numpy as np
import pytest

from leoclr.datasets.randomness import Permutation, uniforms


def test_uniforms_of_a_sample_do_not_depend_on_its_company() -> None:
    together = uniforms(3, 5, np.arange(100), 1, 8)
    alone = uniforms(3, 5, np.array([42]), 1, 8)
    np.testing.assert_array_equal(together[42], alone[0])


@pytest.mark.parametrize("changed", [(4, 5, 1), (3, 6, 1), (3, 5, 2)])
def test_seed_epoch_and_view_each_give_unrelated_numbers(changed: tuple[int, int, int]) -> None:
    before = uniforms(3, 5, np.arange(2000), 1, 4).ravel()
    seed, epoch, view = changed
    after = uniforms(seed, epoch, np.arange(2000), view, 4).ravel()
    assert abs(np.corrcoef(before, after)[0, 1]) < 0.05


def test_uniforms_are_uniform_and_independent() -> None:
    numbers = uniforms(0, 0, np.arange(20_000), 0, 5)
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
    expected = numbers.size / 100
    assert ((counts - expected) ** 2 / expected).sum() < 170  # chi-squared, 99 degrees of freedom, p about 1e-5
    between = np.corrcoef(numbers.T) - np.eye(5)
    assert np.abs(between).max() < 0.04
    assert abs(np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]) < 0.04


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 1000, 65_537])
def test_a_permutation_is_one(size: int) -> None:
    elements = Permutation(size, 1, 2)(np.arange(size))
    assert sorted(elements.tolist()) == list(range(size))


def test_a_permutation_can_be_asked_anywhere() -> None:
    permutation = Permutation(10**12, 7)
    some = permutation(np.array([0, 10**11, 10**12 - 1]))
    assert some[1] == permutation(np.array([10**11]))[0]
    assert len(set(some.tolist())) == 3
    with pytest.raises(IndexError):
        permutation(np.array([10**12]))


def test_permutations_shuffle_well() -> None:
    size = 5000
    first, second = Permutation(size, 0, 0)(np.arange(size)), Permutation(size, 0, 1)(np.arange(size))
    for one, other in ((first, np.arange(size)), (second, first)):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.06
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.06
    fixed_points = (first == np.arange(size)).sum()
    assert fixed_points < 10  # one is expected
    # A data set sorted by class comes out mixed: every tenth of the order holds every tenth of the data evenly.
    table = np.histogram2d(np.arange(size), first, bins=10)[0]
    assert ((table - size / 100) ** 2 / (size / 100)).sum() < 150  # chi-squared, 81 degrees of freedom


def test_all_orders_of_four_are_about_equally_likely() -> None:
    seen = [tuple(Permutation(4, seed)(np.arange(4)).tolist()) for seed in range(4800)]
    counts = np.array([seen.count(order) for order in set(seen)])
    assert len(counts) == 24
    assert ((counts - 200) ** 2 / 200).sum() < 65  # chi-squared, 23 degrees of freedom, p about 1e-5
