"""k-NN of 10,000 queries against 50,000 features of 512 dimensions: CIFAR-10's test and training set.

Run: pytest benchmarks/bench_knn.py --benchmark-only. On a GPU where there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from leoclr.cli.run.devices import choose_device
from leoclr.evals.probes.knn import WEIGHTED_K, knn_accuracy

_BANK, _QUERIES, _DIMENSION, _CLASSES = 50_000, 10_000, 512, 10


@pytest.mark.parametrize("k", [20, WEIGHTED_K])
def test_knn(benchmark: Any, rate: Callable[[str, float], None], k: int) -> None:
    device = choose_device("auto")
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, _CLASSES, (_BANK + _QUERIES,), generator=generator)
    centres = torch.randn(_CLASSES, _DIMENSION, generator=generator)
    features = centres[labels] + 4 * torch.randn(_BANK + _QUERIES, _DIMENSION, generator=generator)
    features, labels = features.to(device), labels.to(device)

    found = benchmark.pedantic(
        lambda: knn_accuracy(features[:_BANK], labels[:_BANK], features[_BANK:], labels[_BANK:], k), rounds=2
    )
    assert found["top1"] > 0.9
    rate("queries/s", _QUERIES)
    benchmark.extra_info["device"] = device.type
