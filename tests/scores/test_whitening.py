"""Whitening, against the covariance that it must leave and against what a dominant direction does to k-NN."""

from __future__ import annotations

import numpy as np
import pytest

from leoclr.evals.features.extract import Features
from leoclr.evals.probes import whitening
from leoclr.evals.probes.whitening import Whitening
from leoclr.evals.scores import knn_score


def correlated(count: int, seed: int) -> np.ndarray:
    """Features of eight directions whose variances lie between 1 and 10,000, away from the origin."""
    numbers = np.random.default_rng(seed)
    mixing = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0] * np.logspace(0, 2, 8)
    return (numbers.normal(size=(count, 8)) @ mixing.T + 5).astype(np.float32)


def test_whitened_training_features_have_mean_zero_and_the_unit_covariance() -> None:
    train = correlated(5000, seed=1)
    whitened = Whitening.of(train)(train)
    assert whitened.dtype == np.float32
    np.testing.assert_allclose(whitened.mean(axis=0), 0, atol=1e-4)
    # What is added is about 0.17, so that the smallest variance, 1, becomes 0.85 and not 1.
    variances = np.linalg.eigvalsh(np.cov(train.T, bias=True).astype(np.float64))
    expected = variances / (variances + whitening.SHRINKAGE * variances.mean())
    np.testing.assert_allclose(np.sort(np.linalg.eigvalsh(np.cov(whitened.T, bias=True))), np.sort(expected), rtol=1e-3)


def test_other_features_are_whitened_by_the_training_features_and_a_row_does_not_depend_on_the_others() -> None:
    whiten = Whitening.of(correlated(500, seed=1))
    test = correlated(300, seed=2)
    np.testing.assert_allclose(whiten(test)[7], whiten(test[7:8])[0], rtol=1e-5)


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    train = correlated(500, seed=1)
    whole = Whitening.of(train)(train)
    monkeypatch.setattr(whitening, "_ROWS", 33)
    np.testing.assert_allclose(Whitening.of(train)(train), whole, rtol=1e-4, atol=1e-5)


def test_directions_without_variance_stay_zero_and_equal_features_are_no_error() -> None:
    train = correlated(500, seed=1)
    train[:, 3] = 2.0
    whitened = Whitening.of(train)(train)
    np.testing.assert_allclose(whitened[:, 3], 0, atol=1e-3)
    same = np.full((10, 4), 0.5, dtype=np.float32)
    assert Whitening.of(same).largest_share == 0.0
    np.testing.assert_array_equal(Whitening.of(same)(same), 0)


def test_knn_finds_classes_that_a_dominant_direction_hides() -> None:
    def sample(seed: int) -> Features:
        numbers = np.random.default_rng(seed)
        labels = numbers.integers(0, 4, 400)
        classes = np.eye(4, 6)[labels] + 0.2 * numbers.normal(size=(400, 6))
        nuisance = 30 * numbers.normal(size=(400, 1)) * np.array([[0.0, 0, 0, 0, 1, 0]])
        return Features((classes + nuisance).astype(np.float32), labels, np.arange(400), ())

    train, test = sample(1), sample(2)
    usual, whitened = knn_score(train, test), knn_score(train, test, whiten=True)
    assert usual.rows[0].values["top1"] + 0.4 < whitened.rows[0].values["top1"]
    assert usual.details["whitened"] is False and whitened.details["whitened"] is True
    share = whitened.details["largest_share_of_variance"]
    assert 0.8 < share < 1 and f"one direction of 6 held {share:.0%} of" in whitened.protocol[1]
    assert len(usual.protocol) == 1 and not whitened.notes
    few = Features(train.features[:59], train.labels[:59], train.numbers[:59])
    assert knn_score(few, test, whiten=True).notes[0].startswith("59 training images are few to whiten 6 dimensions")
