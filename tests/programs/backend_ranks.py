"""One process of a group: two steps of every backend under every view policy, in float64, on its part of a batch.

Run with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set; the argument is the file to write (by every rank, with its
number in place of RANK in the name). LEOCLR_TEST_DEVICE names a device other than the CPU, which all ranks share.
"""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, cast
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from leoclr.backends.method import Facts, Method, Progress
from leoclr.backends.methods import barlow_twins, byol, dino, hcsc, moco, obow, scfs, simclr, simsiam, swav, vicreg
from leoclr.backends.methods.moco import MoCo
from leoclr.backends.methods.simclr import SimCLR
from leoclr.backends.networks.backbones import Backbone
from leoclr.datasets.views import POLICIES

BATCH, SPLITS = 16, 4
DEVICE = torch.device(os.environ.get("LEOCLR_TEST_DEVICE", "cpu"))


def tiny_backbone(batch_norm: bool) -> Backbone:
    norm: nn.Module = nn.BatchNorm2d(6) if batch_norm else nn.Identity()
    stage = nn.Sequential(nn.Conv2d(3, 6, 3), norm, nn.ReLU())
    layers = {"layer4": stage, "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()}
    network = nn.Sequential(OrderedDict(layers))
    backbone = cast(Backbone, network)
    backbone.feature_dim = 6
    return backbone


def two_steps(kind: str, views: str, batch_norm: bool) -> dict[str, Tensor]:
    torch.manual_seed(0)
    facts = Facts(lambda: tiny_backbone(batch_norm), projector=(2, 0, 4))
    backend: Method
    if kind == "moco":
        splits = SPLITS if batch_norm else 1
        settings = moco.Settings(queue=40, momentum=0.9, temperature=0.2, enqueue="all", bn_splits=splits)
        backend = MoCo(settings, facts).double().to(DEVICE)
    else:
        backend = SimCLR(simclr.Settings(temperature=0.2), facts).double().to(DEVICE)
    return steps_of(backend, views)


STATE = (  # that methods end with, beside weights
    *("centre", "stage_centre", "vocabularies.0.keys", "vocabularies.0.distance", "bank.keys"),
    *("levels.0.centroids", "levels.0.concentration", "levels.0.parents"),
)
SMALL: dict[str, Any] = {"hidden": 7, "dim": 5}
OTHERS: dict[str, Callable[[Facts], Method]] = {  # without BatchNorm between processes, which CPUs have not
    "byol": lambda facts: byol.BYOL(byol.Settings(**SMALL, momentum=0.9), facts),
    "simsiam": lambda facts: simsiam.SimSiam(simsiam.Settings(**SMALL, predictor_hidden=3), facts),
    "barlow-twins": lambda facts: barlow_twins.BarlowTwins(barlow_twins.Settings(**SMALL), facts),
    "vicreg": lambda facts: vicreg.VICReg(vicreg.Settings(**SMALL), facts),
    "swav": lambda facts: swav.SwAV(swav.Settings(**SMALL, prototypes=6, queue=BATCH, queue_epochs=0.0), facts),
    "dino": lambda facts: dino.DINO(dino.Settings(**SMALL, outputs=6), facts),
    "hcsc": lambda facts: hcsc.HCSC(
        hcsc.Settings(queue=40, momentum=0.9, bn_splits=1, clusters=(4, 2), bank=16, enqueue="all"), facts
    ),
    "obow": lambda facts: obow.OBoW(obow.Settings(words=24, stages=(4,)), facts),
    "scfs": lambda facts: scfs.SCFS(
        scfs.Settings(**SMALL, outputs=6, stages=(4,), stage_bottleneck=3, stage_hidden=4, stage_dim=5), facts
    ),
}


def steps_of_another(kind: str, views: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    pairs = POLICIES[views].pairs
    facts = Facts(
        lambda: tiny_backbone(False), pairs=pairs, batch_size=BATCH, images=BATCH, ranks=dist.get_world_size()
    )
    method: Method = OTHERS[kind](facts).double().to(DEVICE)
    for part in method.modules():
        if isinstance(part, _BatchNorm):
            part.eval()
    return steps_of(method, views)


def steps_of(backend: Method, views: str) -> dict[str, Tensor]:
    model: nn.Module = backend
    if dist.get_world_size() > 1:
        model = DistributedDataParallel(backend, broadcast_buffers=False)  # as in training
    trained = {name: parameter for name, parameter in backend.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.5)
    policy = POLICIES[views]
    share = BATCH // dist.get_world_size()
    mine = slice(dist.get_rank() * share, (dist.get_rank() + 1) * share)
    results = {}
    for step in range(2):
        generator = torch.Generator().manual_seed(step)
        images = {name: torch.randn(BATCH, 3, 6, 6, generator=generator, dtype=torch.float64) for name in policy.views}
        output = model(
            {name: view[mine].to(DEVICE) for name, view in images.items()}, policy.pairs, Progress(step, 2, 1)
        )
        output.loss.backward()
        loss = output.loss.detach() / dist.get_world_size()
        dist.all_reduce(loss)
        results[f"loss.{step}"] = loss
        for name, parameter in trained.items():
            assert parameter.grad is not None
            results[f"gradient.{step}.{name}"] = parameter.grad.clone()
        optimizer.step()
        optimizer.zero_grad()
        backend.after_update(Progress(step, 2, 1))
    if isinstance(backend, MoCo):
        results["queue"] = backend.queue.keys.clone()
        results |= {f"key.{name}": value.detach().clone() for name, value in backend.key_encoder.named_parameters()}
    results |= {name: value.clone() for name, value in backend.named_buffers() if name in STATE}
    return results


def counted_steps(views: str) -> dict[str, Tensor]:
    """Bytes that `two_steps` of MoCo with shuffling BatchNorm receives from other ranks, by what they are."""
    received = {"images": 0, "keys": 0, "gradients": 0}
    gathered, exchanged = dist.all_gather, dist.all_to_all_single

    def all_gather(parts: list[Tensor], tensor: Tensor) -> None:
        gathered(parts, tensor)
        received["keys"] += sum(part.nbytes for part in parts) - tensor.nbytes

    def all_to_all_single(output: Tensor, tensor: Tensor, counts: list[int], others: list[int]) -> None:
        exchanged(output, tensor, counts, others)
        received["images"] += output.nbytes // len(output) * (len(output) - counts[dist.get_rank()])

    def all_reduce(bucket: Any) -> torch.futures.Future[Tensor]:
        parts = 2 * (dist.get_world_size() - 1)  # that a ring sends, one for each rank
        received["gradients"] += parts * bucket.buffer().nbytes // dist.get_world_size()
        return allreduce_hook(dist.group.WORLD, bucket)  # type: ignore[arg-type]

    class Counting(DistributedDataParallel):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.register_comm_hook(None, lambda state, bucket: all_reduce(bucket))

    counting = patch.dict(globals(), {"DistributedDataParallel": Counting})
    with counting, patch.multiple(dist, all_gather=all_gather, all_to_all_single=all_to_all_single):
        two_steps("moco", views, True)
    return {name: torch.tensor(number) for name, number in received.items()}


def main() -> None:
    dist.init_process_group("gloo")
    results: dict[str, Tensor] = {}
    for kind in ("moco", "simclr"):
        for views in POLICIES:
            for batch_norm in (False, True) if kind == "moco" else (False,):
                case = f"{kind}.{views}.{'bn' if batch_norm else 'plain'}"
                results |= {f"{case}.{name}": value for name, value in two_steps(kind, views, batch_norm).items()}
    results |= {f"traffic.{name}": value for name, value in counted_steps("leoclr").items()}
    for kind in OTHERS:
        for views in ("leoclr", "pairwise-symmetric"):
            results |= {f"{kind}.{views}.plain.{name}": value for name, value in steps_of_another(kind, views).items()}
    save_file(results, sys.argv[1].replace("RANK", str(dist.get_rank())))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
