"""The linear probe: it finds what is there, and the test set has no say in it."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from leoclr.datasets.errors import EvaluationError
from leoclr.evals.accuracy import FloatArray, IntArray
from leoclr.evals.classes import stratified_holdout
from leoclr.evals.features.extract import Features
from leoclr.evals.probes.linear import GRID, LinearProbe, Normalisation, fit_probe
from leoclr.evals.scores import linear_score


def clustered(count: int, seed: int, spread: float, classes: int = 4) -> tuple[FloatArray, IntArray]:
    centres = np.random.default_rng(0).normal(size=(classes, 12))
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    features = 30 + 5 * (centres[labels] + spread * random.normal(size=(count, 12)))
    return features.astype(np.float32), labels


def features(values: FloatArray, labels: IntArray) -> Features:
    return Features(values, labels, np.arange(len(labels)))


def accuracy(probe: LinearProbe, values: FloatArray, labels: IntArray) -> float:
    return float(np.mean(probe.scores(values).argmax(axis=1) == labels))


@pytest.mark.parametrize("normalise", ["standard", "l2"])
def test_separable_classes_are_separated(normalise: Normalisation) -> None:
    train, test = clustered(400, 1, spread=0.1), clustered(200, 2, spread=0.1)
    probe = fit_probe(*train, normalise=normalise)
    assert accuracy(probe, *test) == 1.0
    assert probe.scores(test[0]).shape == (200, 4)


def test_noise_calls_for_strong_regularisation_and_redundancy_for_none() -> None:
    grid = (1e-4, 1e-3, 1e-1, 10.0, 1e3)
    random = np.random.default_rng(0)
    labels = np.arange(1000) % 2
    faint = random.normal(size=(1000, 600)) + 0.06 * (2 * labels - 1)[:, None]
    chosen = fit_probe(faint.astype(np.float32), labels, grid=grid, seed=1)
    assert chosen.c <= 1e-3
    assert chosen.holdout[chosen.c] > chosen.holdout[1e3] + 0.03

    steep = np.stack([labels + 0.4 * random.normal(size=1000), 40 * random.normal(size=1000)], axis=1)
    steep[:, 1] += 60 * steep[:, 0]  # only the small difference between two large numbers tells the class
    assert fit_probe(steep.astype(np.float32), labels, grid=grid).c >= 1e-1


def test_c_is_the_best_on_the_holdout_and_every_value_is_reported() -> None:
    probe = fit_probe(*clustered(300, 1, spread=1.5))
    assert tuple(probe.holdout) == GRID
    assert len(probe.holdout) >= 5
    assert probe.holdout[probe.c] == max(probe.holdout.values())
    assert len(set(probe.holdout.values())) > 1


def test_the_test_set_has_no_influence_on_the_probe() -> None:
    train, (values, labels) = clustered(300, 1, spread=1.5), clustered(200, 2, spread=1.5)
    wrong = np.random.default_rng(5).permutation(labels)
    honest = linear_score(features(*train), features(values, labels))
    permuted = linear_score(features(*train), features(values, wrong))
    assert honest.details == permuted.details
    assert honest.rows[1].values == permuted.rows[1].values
    assert honest.rows[0].values["top1"] > permuted.rows[0].values["top1"] + 0.2
    assert permuted.rows[0].values["top1"] == pytest.approx(accuracy(fit_probe(*train), values, wrong))


def test_the_final_fit_uses_the_held_out_samples_too() -> None:
    values, labels = clustered(200, 1, spread=1.0)
    kept, held = stratified_holdout(labels, 0.2, seed=0)
    mirrored = values.copy()
    mirrored[held] = values[held][:, ::-1]
    assert not np.array_equal(fit_probe(values, labels).coefficients, fit_probe(mirrored, labels).coefficients)


def test_the_seed_decides_the_holdout_and_nothing_else_is_random() -> None:
    train = clustered(300, 1, spread=1.5)
    first, again, other = (fit_probe(*train, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first.coefficients, again.coefficients)
    assert first.holdout == again.holdout != other.holdout


def test_a_probe_agrees_with_scikit_learns_own_pipeline() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, test = clustered(300, 1, spread=1.0), clustered(200, 2, spread=1.0)
    probe = fit_probe(*train, grid=(0.01,))
    values = train[0].astype(np.float64)
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, tol=1e-8)).fit(values, train[1])
    difference = probe.scores(test[0]) - reference.decision_function(test[0].astype(np.float64))
    difference -= difference.mean(axis=1, keepdims=True)  # scores are determined up to a constant per sample
    assert np.abs(difference).max() < 0.02


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("c", [1e-4, 1e-2, 1.0])
def test_the_solver_on_the_device_finds_scikit_learn_s_probe(c: float, classes: int) -> None:
    train, test = clustered(400, 1, spread=1.5, classes=classes), clustered(200, 2, spread=1.5, classes=classes)
    expected, found = (fit_probe(*train, grid=(c,), solver=name) for name in ("scikit-learn", "device"))
    difference = found.scores(test[0]) - expected.scores(test[0])
    difference -= difference.mean(axis=1, keepdims=True)  # scores are determined up to a constant per sample
    assert np.abs(difference).max() < 0.02
    assert found.holdout[c] == pytest.approx(expected.holdout[c], abs=0.02)


def test_the_solver_on_the_device_chooses_as_scikit_learn_and_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    train = clustered(300, 1, spread=1.5)
    expected, whole = (fit_probe(*train, solver=name) for name in ("scikit-learn", "device"))
    assert whole.c == expected.c
    assert whole.holdout == pytest.approx(expected.holdout, abs=0.02)
    at_once = fit_probe(*train, grid=(0.01,), solver="device")
    monkeypatch.setattr("leoclr.evals.probes.logistic._SCORES_AT_A_TIME", 4 * 70)  # 70 samples of four classes
    chunked = fit_probe(*train, grid=(0.01,), solver="device")
    np.testing.assert_allclose(chunked.coefficients, at_once.coefficients, atol=2e-3)


def test_constant_dimensions_do_no_harm() -> None:
    values, labels = clustered(200, 1, spread=0.1)
    values[:, 3] = 7.0
    probe = fit_probe(values, labels)
    assert np.isfinite(probe.coefficients).all()
    assert accuracy(probe, values, labels) == 1.0


def test_two_classes_and_class_numbers_with_gaps() -> None:
    values, labels = clustered(200, 1, spread=0.1, classes=2)
    probe = fit_probe(values, labels * 3 + 1)
    assert probe.scores(values).shape == (200, 5)
    assert accuracy(probe, values, labels * 3 + 1) == 1.0
    assert np.isneginf(probe.scores(values)[:, [0, 2, 3]]).all()


def test_an_edge_of_the_grid_is_noted_and_no_warning_escapes() -> None:
    train = clustered(300, 1, spread=1.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        edge = fit_probe(*train, grid=(1e-6, 1e-5, 1e-4, 1e-2))
        inside = fit_probe(*train, grid=(1e-9, 1e-2, 1e-1, 1.0, 1e9))
    assert not caught
    assert len(edge.notes) == 1 and "edge" in edge.notes[0] and "0.01" in edge.notes[0]
    assert not any("edge" in note for note in inside.notes)


def test_a_search_that_does_not_converge_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leoclr.evals.probes.logistic.MAX_ITERATIONS", 2)
    probe = fit_probe(*clustered(200, 1, spread=1.0), grid=(1e-2, 1.0))
    assert any("in the search for C the fit at 0.01, 1 did not converge" in note for note in probe.notes)


def test_the_metric_that_is_asked_for_chooses() -> None:
    """Nine of ten samples are of one class, whose share strong regularisation gets right and the others wrong."""
    random = np.random.default_rng(3)
    labels = np.where(random.random(600) < 0.9, 0, random.integers(1, 4, 600))
    values = (random.normal(size=(600, 12)) + 1.5 * np.eye(4, 12)[labels]).astype(np.float32)
    top1, mean = (fit_probe(values, labels, metric=metric) for metric in ("top1", "mean_per_class"))
    assert top1.holdout != mean.holdout and mean.metric == "mean_per_class"
    for probe in (top1, mean):
        assert probe.holdout[probe.c] == max(probe.holdout.values())
    assert mean.c > top1.c


def test_one_class_and_unknown_normalisation_are_refused() -> None:
    values, labels = clustered(20, 1, spread=1.0)
    with pytest.raises(EvaluationError, match="two classes"):
        fit_probe(values, np.zeros_like(labels))
    with pytest.raises(EvaluationError, match="standard, l2"):
        fit_probe(values, labels, normalise="minmax")  # type: ignore[arg-type]


def test_progress_is_one_step_for_each_fit() -> None:
    steps: list[int] = []
    fit_probe(*clustered(100, 1, spread=1.0), grid=(0.1, 1.0, 10.0), advance=steps.append)
    assert steps == [1, 1, 1, 1]


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_a_holdout_divides_every_class_alike(share: float) -> None:
    labels = np.repeat([0, 1, 2, 5], [100, 40, 2, 1])
    kept, held = stratified_holdout(labels, share, seed=3)
    assert sorted([*kept, *held]) == list(range(143))
    assert [int((labels[held] == label).sum()) for label in (0, 1, 2, 5)] == [
        round(100 * share),
        round(40 * share),
        1,
        0,
    ]
    assert not np.array_equal(held, stratified_holdout(labels, share, seed=4)[1])


def test_nothing_can_be_held_out_of_single_samples() -> None:
    with pytest.raises(EvaluationError, match="single sample"):
        stratified_holdout(np.arange(5), 0.2, seed=0)
