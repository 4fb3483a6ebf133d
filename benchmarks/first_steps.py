"""What happens to MoCo's embeddings in the first steps of a run: do they spread, or run away from the queue together?

Run: python benchmarks/first_steps.py DATA --output FOLDER [--steps 100] [--every 6] [--preset cifar10] \
         [--set section.key=value ...]

Writes FOLDER/first_steps.jsonl and prints it as a table, one line for each measured step:

- `std`: `embedding_std` of the queries, 1 where they are spread over the sphere, 0 where they are all alike
- `rank`: effective rank of the queries, of at most min(batch, dimensions)
- `mean`, `queue mean`: length of the mean of all queries, and of all keys in the queue: 0 spread, 1 all alike
- `drift`: cosine between these two means; below 0, queries point away from the queue as a whole
- `positive`: mean cosine of a query and its key
- `negative`: mean cosine of a query and the keys in the queue
- `loss`: of a pair; `chance`: the loss where all cosines are equal
"""

from __future__ import annotations

import argparse
import json
import math
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from leoclr.api import train
from leoclr.backends.method import Output, Progress
from leoclr.backends.methods.moco import MoCo
from leoclr.backends.settings import Pairs
from leoclr.cli.training.monitoring.health import measures

COLUMNS = ("std", "rank", "mean", "queue mean", "drift", "positive", "negative", "loss")


class Watch:
    """Looks on while MoCo computes its loss.

    Args:
        every: One step of so many is measured; the first and the last always are.
        file: Where the lines go as they are measured.
    """

    def __init__(self, every: int, steps: int, file: Path) -> None:
        self.every, self.steps, self.file = every, steps, file
        self.lines: list[dict[str, float]] = []

    def install(self) -> None:
        """Measure what every `MoCo` of this process does."""
        watch = self

        def forward(method: MoCo, views: Mapping[str, Tensor], pairs: Pairs, now: Progress) -> Output:
            output = unwatched(method, views, pairs, now)
            step = now.step + 1
            if step % watch.every == 0 or step in (1, watch.steps):
                watch.measure(method, output, len(pairs), step)
            return output

        unwatched = MoCo.forward
        setattr(MoCo, "forward", forward)  # noqa: B010

    @torch.no_grad()
    def measure(self, method: MoCo, output: Output, pairs: int, step: int) -> None:
        """Write the line of one step."""
        queries = next(iter(output.predictions.values())).float()
        keys, queue = next(iter(output.targets.values())).float(), method.queue.keys
        if len(queries) < 8:  # the estimate of memory, before the first step
            return
        mean, queue_mean = queries.mean(0), queue.mean(0)
        spread = measures(queries)
        terms = pairs if method.settings.reduction == "sum" else 1
        line = {
            "step": step,
            "std": float(spread["embedding_std"]),
            "rank": float(spread["effective_rank"]),
            "mean": float(mean.norm()),
            "queue mean": float(queue_mean.norm()),
            "drift": float(F.cosine_similarity(mean, queue_mean, dim=0)),
            "positive": float((queries * keys).sum(1).mean()),
            "negative": float(mean @ queue_mean),
            "loss": float(output.loss.float().mean()) / terms,
            "chance": math.log(1 + len(queue)),
        }
        self.lines.append(line)
        with self.file.open("a", encoding="utf-8") as file:
            print(json.dumps(line), file=file)


def table(lines: list[dict[str, float]]) -> str:
    """The lines as Markdown."""
    head = ["| step | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    rows = [f"| {line['step']:.0f} | " + " | ".join(f"{line[name]:.3g}" for name in COLUMNS) + " |" for line in lines]
    return "\n".join((*head, *rows))


def main() -> None:
    """Train for some steps and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=6)
    parser.add_argument("--preset", default="cifar10")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    given.output.mkdir(parents=True)
    watch = Watch(given.every, given.steps, given.output / "first_steps.jsonl")
    watch.install()
    settings: dict[str, Any] = dict(assignment.partition("=")[::2] for assignment in given.set)
    stop = threading.Event()

    def until_enough(step: int, measures: Mapping[str, float]) -> None:
        if step >= given.steps:
            stop.set()

    always = {"data.train": given.data, "run.log_steps": 1, "run.knn_epochs": 0, "run.on_collapse": "warn"}
    train(always | settings, given.output / "run", preset=given.preset, on_metrics=until_enough, stop=stop)
    print(table(watch.lines))


if __name__ == "__main__":
    main()
