"""A training step of MoCo-v2 beside the MoCo authors' own code and lightly's, on the same backbone, in one run.

Run: python benchmarks/compare_steps.py [--moco FOLDER] [--backbone NAME] [--size N] [--batch N] [--rounds N] [--json]

FOLDER is a checkout of facebookresearch/moco at 7397dfe; without it, and without an installed lightly, that peer is
left out. Each has a process of its own, set up as its users have it, and steps in float32, in bf16 where the processor
has it, and in both memory formats. Only one works at a time and they take turns, because the speed of a machine drifts
by more than what is compared; ratios are of each one's better format, within a round.

- All have two crops in memory already (leoclr: as bytes), one set of BatchNorm statistics, SGD, the same queue. A step
  is forward, backward, optimizer, momentum encoder and queue.
- leoclr is `TrainStep`, what `leoclr train` calls.
- The floor is forward and backward of the backbone and a forward pass for the keys, and nothing else.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leoclr.backends.networks.backbones import Backbone, build_backbone
from leoclr.cli.config.resolve import resolve
from leoclr.cli.run.devices import make_accelerator
from leoclr.cli.training import build
from leoclr.cli.training.step import RunLength, TrainStep
from leoclr.datasets.views import POLICIES

FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
DIMENSION, TEMPERATURE, MOMENTUM = 128, 0.2, 0.999
LR, WEIGHT_DECAY = 0.03, 1e-4
WARM_UP = 2  # rounds that do not count
Step = Callable[[], object]


@dataclass(frozen=True)
class Task:
    """What all of them do."""

    backbone: str
    size: int
    batch: int
    queue: int
    precision: str
    moco: Path | None

    @property
    def stem(self) -> str:
        return "cifar" if self.size <= 64 else "imagenet"

    def network(self, memory_format: torch.memory_format) -> Backbone:
        """The backbone with random weights."""
        return build_backbone(self.backbone, self.stem).to(memory_format=memory_format)

    def pixels(self, memory_format: torch.memory_format) -> list[Tensor]:
        """Two crops of each image, as bytes."""
        generator = torch.Generator().manual_seed(0)
        shape = (2, self.batch, 3, self.size, self.size)
        crops = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        return [crop.contiguous(memory_format=memory_format) for crop in crops]

    def crops(self, memory_format: torch.memory_format) -> list[Tensor]:
        """The same, as a network takes them."""
        return [pixels.float() / 128 - 1 for pixels in self.pixels(memory_format)]

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16")


def leoclr(task: Task, memory_format: torch.memory_format) -> Step:
    """What `leoclr train` does with a batch."""
    given = {
        "views": "pairwise",
        "encoder.backbone": task.backbone,
        "encoder.stem": task.stem,
        "data.image_size": str(task.size),
        "data.batch_size": str(task.batch),
        "moco.queue": str(task.queue),
        "moco.bn_splits": "1",
        "train.precision": task.precision,
        "train.channels_last": str(memory_format is torch.channels_last).lower(),
        "run.device": "cpu",
        "run.trackers": "",
    }
    settings = resolve(None, None, {}, given).settings
    accelerator = make_accelerator(settings, Path(tempfile.gettempdir()))
    method = build.method(settings, accelerator.device, task.queue)
    length = RunLength(1_000_000, 1_000)
    take = TrainStep(settings, accelerator, method, POLICIES["pairwise"].pairs, task.batch, length)
    views = dict(zip(("x1", "x2"), task.pixels(memory_format), strict=True))
    numbers = iter(range(1_000_000))
    return lambda: float(take(views, next(numbers)).loss)


def lightly(task: Task, memory_format: torch.memory_format) -> Step:
    """The step of lightly's example of MoCo-v2, with lightly's parts."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import batch_shuffle, batch_unshuffle, deactivate_requires_grad, update_momentum

    backbone, key_backbone = task.network(memory_format), task.network(memory_format)
    head, key_head = (MoCoProjectionHead(backbone.feature_dim, backbone.feature_dim, DIMENSION) for _ in range(2))
    for online, momentum in ((backbone, key_backbone), (head, key_head)):
        momentum.load_state_dict(online.state_dict())
        deactivate_requires_grad(momentum)
    criterion = NTXentLoss(TEMPERATURE, memory_bank_size=(task.queue, DIMENSION))
    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, LR, momentum=0.9, weight_decay=WEIGHT_DECAY)
    query, key = task.crops(memory_format)

    def step() -> float:
        update_momentum(backbone, key_backbone, m=MOMENTUM)
        update_momentum(head, key_head, m=MOMENTUM)
        with task.autocast():
            queries = head(backbone(query))
            with torch.no_grad():
                shuffled, order = batch_shuffle(key)
                keys = batch_unshuffle(key_head(key_backbone(shuffled)), order)
            loss = criterion(queries, keys)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def moco(task: Task, memory_format: torch.memory_format) -> Step:
    """The step of main_moco.py, around the class in moco/builder.py, which is written for several GPUs."""
    sys.path.insert(0, str(task.moco))
    builder = importlib.import_module("moco.builder")
    Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    if not torch.distributed.is_initialized():
        file = Path(tempfile.mkdtemp()) / "store"
        torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)

    def network(num_classes: int) -> nn.Module:
        backbone: Any = task.network(memory_format)
        backbone.fc = nn.Linear(backbone.feature_dim, num_classes)
        return backbone  # type: ignore[no-any-return]

    model = builder.MoCo(network, DIMENSION, task.queue, MOMENTUM, TEMPERATURE, mlp=True)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9, weight_decay=WEIGHT_DECAY)
    query, key = task.crops(memory_format)

    def step() -> float:
        with task.autocast():
            loss = criterion(*model(query, key))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def floor(task: Task, memory_format: torch.memory_format) -> Step:
    """Forward and backward of one view, forward of the other."""
    online, momentum = task.network(memory_format), task.network(memory_format)
    query, key = task.crops(memory_format)

    def step() -> None:
        with task.autocast():
            features = online(query)
            with torch.no_grad():
                momentum(key)
        features.float().sum().backward()  # with gradients of an ordinary size: tiny ones take many times as long
        online.zero_grad(set_to_none=True)

    return step


MAKERS: Mapping[str, Callable[[Task, torch.memory_format], Step]] = {
    "leoclr": leoclr,
    "lightly": lightly,
    "moco": moco,
    "floor": floor,
}


def serve(name: str, task: Task, orders: Connection) -> None:
    """A process of one peer: makes a step in the memory format it is told, and answers with its seconds."""
    warnings.simplefilter("ignore")
    steps = {key: MAKERS[name](task, memory_format) for key, memory_format in FORMATS.items()}
    while (key := orders.recv()) is not None:
        began = time.perf_counter()
        steps[key]()
        orders.send(time.perf_counter() - began)


def compare(names: list[str], task: Task, rounds: int) -> list[dict[str, object]]:
    """Images per second of all, then the ratio of leoclr's better format to each peer's, within each round."""
    context = multiprocessing.get_context("spawn")
    lines = {}
    for name in names:
        ours, theirs = context.Pipe()
        context.Process(target=serve, args=(name, task, theirs), daemon=True).start()
        theirs.close()  # so that the end of a peer that fails is seen here
        lines[name] = ours
    seconds: dict[tuple[str, str], list[float]] = {(name, key): [] for key in FORMATS for name in names}
    for number in range(rounds + WARM_UP):
        for (name, key), times in seconds.items():
            try:
                lines[name].send(key)
                taken = lines[name].recv()
            except (EOFError, BrokenPipeError):
                sys.exit(f"Error: {name} has ended; its own error is above")
            if number >= WARM_UP:
                times.append(taken)
    for line in lines.values():
        line.send(None)
    rows: list[dict[str, object]] = [
        {"what": f"{name}, {task.precision}, {key}", **quartiles([task.batch / time for time in times])}
        for (name, key), times in seconds.items()
    ]
    best = {name: min((seconds[name, key] for key in FORMATS), key=statistics.median) for name in names}
    for name in names:
        ratios = [theirs / ours for theirs, ours in zip(best[name], best["leoclr"], strict=True)]
        if name != "leoclr":
            rows.append({"what": f"leoclr / {name}, {task.precision}", "ratio": True, **quartiles(ratios)})
    return rows


def quartiles(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": median, "low": low, "high": high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--moco", type=Path, help="a checkout of facebookresearch/moco at 7397dfe")
    parser.add_argument("--backbone", default="resnet18", help="a ResNet")
    parser.add_argument(
        "--size", type=int, default=32, help="side of the images; up to 64 with the stem for small ones"
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--queue", type=int, default=4096, help="a multiple of the batch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    names = ["floor", "leoclr"]
    names += ["lightly"] if importlib.util.find_spec("lightly") else []
    names += ["moco"] if arguments.moco else []
    rows = []
    for precision in ("float32", "bf16") if torch.ops.mkldnn._is_mkldnn_bf16_supported() else ("float32",):
        given = (arguments.backbone, arguments.size, arguments.batch, arguments.queue, precision, arguments.moco)
        rows += compare(names, Task(*given), arguments.rounds)
    if arguments.json:
        print(json.dumps({"threads": torch.get_num_threads(), "settings": vars(arguments), "rows": rows}, default=str))
        return
    for row in rows:
        digits = 2 if "ratio" in row else 1
        print("{what:44} {median:9,.{0}f} ({low:,.{0}f} to {high:,.{0}f})".format(digits, **row))


if __name__ == "__main__":
    main()
