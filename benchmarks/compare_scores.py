"""k-NN and the linear probe on features of CIFAR-10's size, beside a bare matrix product and scikit-learn, in one run.

Run: python benchmarks/compare_scores.py [--rounds N] [--json]

50,000 training and 10,000 test features of 512 dimensions in ten classes: easy ones, whose classes lie apart, and hard
ones, whose classes overlap. k-NN takes k = 200 in float32; the product alone is the floor of every exact method. The
probe is fitted seven times for as many strengths of regularisation and once more for the chosen one. The rounds
alternate.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch.nn import functional as F

from leoclr.evals.probes.knn import WEIGHTED_K, nearest_neighbours
from leoclr.evals.probes.linear import GRID, fit_probe

BANK, QUERIES, DIMENSION, CLASSES = 50_000, 10_000, 512, 10
ROWS = 1024  # of a chunk of the product: 200 MB of similarities


def features(spread: float) -> tuple[Tensor, Tensor]:
    """Features and labels of bank and queries; a class is a centre, and noise `spread` times as wide."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (BANK + QUERIES,), generator=generator)
    centres = torch.randn(CLASSES, DIMENSION, generator=generator)
    return centres[labels] + spread * torch.randn(BANK + QUERIES, DIMENSION, generator=generator), labels


def product(bank: Tensor, queries: Tensor) -> None:
    """All similarities, a chunk at a time, and nothing done with them."""
    bank, queries = F.normalize(bank, dim=1), F.normalize(queries, dim=1)
    chunk = torch.empty(ROWS, len(bank))
    for rows in torch.split(queries, ROWS):
        torch.mm(rows, bank.T, out=chunk[: len(rows)])


def brute(bank: Tensor, queries: Tensor) -> None:
    """scikit-learn's exact search; on features of unit length its order is that of the cosine."""
    search = NearestNeighbors(n_neighbors=WEIGHTED_K, algorithm="brute").fit(F.normalize(bank, dim=1).numpy())
    search.kneighbors(F.normalize(queries, dim=1).numpy())


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def summary(what: str, values: list[float]) -> dict[str, Any]:
    return {"what": what, "median": statistics.median(values), "low": min(values), "high": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    hard, labels = features(8.0)
    easy, _ = features(2.0)
    bank, queries = hard[:BANK], hard[BANK:]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    nearest_neighbours(bank, queries[:ROWS], WEIGHTED_K)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    works: dict[str, Callable[[], object]] = {
        "k-NN": lambda: nearest_neighbours(bank, queries, WEIGHTED_K),
        "product alone": lambda: product(bank, queries),
        "k-NN, scikit-learn": lambda: brute(bank, queries),
        "probe, easy features": lambda: fit_probe(easy[:BANK].numpy(), labels[:BANK].numpy()),
        "probe, hard features": lambda: fit_probe(hard[:BANK].numpy(), labels[:BANK].numpy()),
        "probe on the device, hard features": lambda: fit_probe(
            hard[:BANK].numpy(), labels[:BANK].numpy(), solver="device"
        ),
    }
    product(bank, queries)
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(arguments.rounds):
        for name, work in works.items():
            taken[name].append(seconds(work))
    rows = [summary(f"{name}, s", values) for name, values in taken.items()]
    ratios = [ours / bare for ours, bare in zip(taken["k-NN"], taken["product alone"], strict=True)]
    rows += [summary("k-NN / product alone", ratios), summary("memory that k-NN adds, MiB", [grown])]
    if arguments.json:
        print(json.dumps({"threads": torch.get_num_threads(), "strengths": len(GRID), "rows": rows}, indent=1))
        return
    for row in rows:
        print("{what:40} {median:8.2f} ({low:.2f} to {high:.2f})".format(**row))


if __name__ == "__main__":
    main()
