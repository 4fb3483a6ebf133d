"""k-NN against slow references, and independent of how the work is cut up."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.nn import functional as F

from leoclr.evals.accuracy import predictions
from leoclr.evals.probes.knn import classify, knn_accuracy, nearest_neighbours, votes

CHUNKS = [40, 70, 999, 2**20]


def clustered(count: int, seed: int, classes: int = 7, dimension: int = 16) -> tuple[Tensor, Tensor]:
    """Overlapping classes, so that no classifier gets all or none."""
    centres = torch.randn(classes, dimension, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    noise = torch.randn(count, dimension, generator=generator)
    return centres[labels] + 1.5 * noise, labels


def signs(count: int, seed: int) -> Tensor:
    """Vectors of 16 signs: their norm is 4, so cosine similarities are exact in float32, and most of them tie."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (count, 16), generator=generator).float() * 2 - 1


def slow_scores(train: Tensor, labels: Tensor, test: Tensor, k: int, temperature: float | None) -> list[list[float]]:
    """Votes per class of each test sample, by Python's own float64 and a stable sort."""
    scores = []
    for query in test.double().tolist():
        similarities = []
        for row in train.double().tolist():
            dot = sum(a * b for a, b in zip(query, row, strict=True))
            similarities.append(dot / math.hypot(*query) / math.hypot(*row))
        order = sorted(range(len(similarities)), key=lambda number: -similarities[number])[:k]
        votes_by_class = [0.0] * 7
        for number in order:
            votes_by_class[int(labels[number])] += (
                1.0 if temperature is None else math.exp(similarities[number] / temperature)
            )
        scores.append(votes_by_class)
    return scores


@pytest.mark.parametrize("temperature", [0.1, None])
@pytest.mark.parametrize("k", [1, 20, 90])
def test_votes_and_accuracies_equal_a_slow_float64_loop(k: int, temperature: float | None) -> None:
    (train, labels), (test, test_labels) = clustered(90, seed=1), clustered(40, seed=2)
    expected = slow_scores(train, labels, test, k, temperature)
    similarity, neighbours = nearest_neighbours(train, test, k)
    found = votes(similarity, labels[neighbours], 7, temperature)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-4)

    ranked = []
    for row, near in zip(expected, labels[neighbours].tolist(), strict=True):
        places = {label: near.index(label) for label in near}
        ranked.append(sorted(places, key=lambda label, row=row, places=places: (-row[label], places[label])))  # type: ignore[misc]
    result = knn_accuracy(train, labels, test, test_labels, k, temperature)
    for name, depth in (("top1", 1), ("top5", 5)):
        hits = [int(label) in ranks[:depth] for label, ranks in zip(test_labels, ranked, strict=True)]
        assert result[name] == pytest.approx(sum(hits) / len(hits))
    assert result["top1"] < result["top5"] or k == 1


@pytest.mark.parametrize("chunk", CHUNKS)
def test_ties_go_to_the_lowest_sample_number_whatever_the_chunk(chunk: int) -> None:
    train, test = signs(300, seed=1), signs(50, seed=2)
    exact = (train.double() @ test.double().T / 16).T
    expected = torch.sort(exact, dim=1, descending=True, stable=True)
    similarity, neighbours = nearest_neighbours(train, test, 40, chunk)
    assert torch.equal(neighbours, expected.indices[:, :40])
    assert torch.equal(similarity.double(), expected.values[:, :40])


@pytest.mark.parametrize("samples", [1500, 1504, 1511])
@pytest.mark.parametrize("tied", [True, False])
def test_the_best_of_many_columns_are_those_of_a_whole_sort(tied: bool, samples: int) -> None:
    train = signs(samples, seed=1) if tied else clustered(samples, seed=1)[0]
    test = signs(50, seed=2) if tied else clustered(50, seed=2)[0]
    exact = F.normalize(test.double(), dim=1) @ F.normalize(train.double(), dim=1).T
    expected = torch.sort(exact, dim=1, descending=True, stable=True)
    for k in (1, 20, 45):
        similarity, neighbours = nearest_neighbours(train, test, k)
        assert torch.equal(neighbours, expected.indices[:, :k])
        torch.testing.assert_close(similarity.double(), expected.values[:, :k], rtol=0, atol=1e-6)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_accuracies_do_not_depend_on_the_chunk(chunk: int) -> None:
    (train, labels), (test, test_labels) = clustered(200, seed=1), clustered(60, seed=2)
    whole = knn_accuracy(train, labels, test, test_labels, 20, 0.1)
    assert knn_accuracy(train, labels, test, test_labels, 20, 0.1, chunk) == whole


def test_majority_equals_scikit_learn() -> None:
    (train, labels), (test, test_labels) = clustered(2000, seed=1), clustered(300, seed=2)
    reference = KNeighborsClassifier(20, algorithm="brute", metric="cosine").fit(train.numpy(), labels.numpy())
    similarity, neighbours = nearest_neighbours(train, test, 20)
    found = votes(similarity, labels[neighbours], 7, None).numpy()
    np.testing.assert_allclose(found / 20, reference.predict_proba(test.numpy()))
    shares = np.sort(found, axis=1)
    clear = shares[:, -1] > shares[:, -2]  # scikit-learn gives ties to the first class
    predicted = classify(similarity, labels[neighbours], test_labels, 7, None).predicted
    np.testing.assert_array_equal(predicted[clear], reference.predict(test.numpy())[clear])
    assert 0.02 < 1 - clear.mean() < 0.5


@pytest.mark.parametrize("temperature", [0.1, None])
def test_no_figure_depends_on_how_classes_are_numbered(temperature: float | None) -> None:
    (train, labels), (test, test_labels) = clustered(300, seed=1, classes=8), clustered(200, seed=2, classes=8)
    found = {
        tuple(knn_accuracy(train, order[labels], test, order[test_labels], 6, temperature).values())
        for order in (torch.randperm(8, generator=torch.Generator().manual_seed(seed)) for seed in range(12))
    }
    assert len(found) == 1


def test_equal_votes_go_to_the_nearer_neighbour_and_no_votes_are_no_place() -> None:
    similarity, neighbours = torch.tensor([[0.9, 0.8, 0.7, 0.6]]), torch.tensor([[3, 1, 1, 3]])
    found = classify(similarity, neighbours, torch.tensor([0]), 7, None)
    assert found.predicted.tolist() == [3] and found.confidence.tolist() == [0.5] and found.ranks.tolist() == [6]
    assert classify(similarity, neighbours, torch.tensor([1]), 7, None).ranks.tolist() == [1]
    assert classify(similarity, neighbours, torch.tensor([3]), 7, None).ranks.tolist() == [0]


def test_more_neighbours_than_samples_means_all_samples() -> None:
    train, test = signs(30, seed=1), signs(9, seed=2)
    similarity, neighbours = nearest_neighbours(train, test, 200, chunk=70)
    assert similarity.shape == (9, 30)
    assert torch.equal(neighbours.sort(dim=1).values, torch.arange(30).expand(9, -1))
    assert (similarity.diff(dim=1) <= 0).all()


def test_equal_features_give_the_first_samples() -> None:
    _, neighbours = nearest_neighbours(torch.ones(500, 4), torch.ones(3, 4), 10, chunk=120)
    assert torch.equal(neighbours, torch.arange(10).expand(3, -1))


def test_the_scale_of_features_does_not_matter() -> None:
    (train, labels), (test, test_labels) = clustered(100, seed=1), clustered(50, seed=2)
    scale = torch.rand(100, 1) * 9 + 0.1
    expected = nearest_neighbours(train, test, 5)[1]
    assert torch.equal(nearest_neighbours(train * scale, test, 5)[1], expected)
    assert knn_accuracy(train * scale, labels, test, test_labels, 5, 0.1) == knn_accuracy(
        train, labels, test, test_labels, 5, 0.1
    )


def test_equal_scores_rank_by_class_number_where_no_order_is_given() -> None:
    found = predictions(torch.zeros(3, 6), torch.tensor([0, 4, 5]))
    assert found.accuracies() == {"top1": pytest.approx(1 / 3), "top5": pytest.approx(2 / 3)}
    assert found.predicted.tolist() == [0, 0, 0] and found.confidence == pytest.approx([1 / 6] * 3)


def test_there_is_no_top5_of_four_classes() -> None:
    assert predictions(torch.eye(4), torch.arange(4)).accuracies() == {"top1": 1.0}
