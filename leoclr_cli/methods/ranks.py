"""One process of `leoclr method check`: two steps of a method on its part of a batch, in float64.

Run as `python -m leoclr.cli.methods.ranks FILE` with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set; the settings
come as JSON on standard input. BatchNorm uses its running statistics: those of a batch are each process's own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from leoclr.backends.distributed import rank, ranks
from leoclr.backends.extras import examples, rows
from leoclr.backends.method import Method, Progress
from leoclr.cli.config.settings import Settings
from leoclr.cli.training import build
from leoclr.cli.training.optimizers import build_optimizer, drop_frozen_gradients, learning_rate, schedule
from leoclr.cli.training.step import step_seed

STEPS = 2
_CPU = torch.device("cpu")


def two_steps(settings: Settings, stream: int = 0) -> dict[str, Tensor]:
    """Losses, the first gradients and the state after each step, of all processes together.

    Args:
        stream: Another number draws other numbers by torch's generator, which has its own in each process, as in
            training.
    """
    method = build.method(settings, _CPU, images=settings.data.batch_size, ranks=ranks()).double()
    for part in method.modules():
        if isinstance(part, _BatchNorm):
            part.eval()
    model: nn.Module = DistributedDataParallel(method, broadcast_buffers=False) if ranks() > 1 else method
    optimizer = build_optimizer(method, settings.optimizer)
    found: dict[str, Tensor] = {}
    for step in range(STEPS):
        now = Progress(step, STEPS, 1)
        rate = learning_rate(step, STEPS, 0, settings.optimizer.lr)
        schedule(optimizer, method, now, rate, settings.optimizer.lr)
        torch.manual_seed(step_seed(stream, rank(), step))
        for phase in range(method.phases):
            found |= _phase(settings, method, model, optimizer, now._replace(phase=phase))
        state = {name: value for name, value in method.state_dict().items() if name not in method.per_rank}
        found |= {f"state after step {step}: {name}": value.contiguous().clone() for name, value in state.items()}
    return found


def _phase(
    settings: Settings, method: Method, model: nn.Module, optimizer: torch.optim.Optimizer, now: Progress
) -> dict[str, Tensor]:
    batch, policy = settings.data.batch_size, settings.view_policy
    extras = examples(method, policy.views, batch, _CPU, torch.float64)
    output = model(_views(settings, now.step), policy.pairs, now, **rows(extras, _mine(batch)))
    output.loss.backward()
    loss = output.loss.detach() / ranks()
    if ranks() > 1:
        dist.all_reduce(loss)
    place = f"step {now.step}, phase {now.phase}"
    gradients = {
        f"gradient in {place}: {name}": parameter.grad.contiguous().clone()
        for name, parameter in method.named_parameters()
        if parameter.grad is not None
    }
    with torch.no_grad():
        method.before_update(now)
    drop_frozen_gradients(optimizer, method, now)
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        method.after_update(now)
    return {f"loss in {place}": loss, **(gradients if now.step == 0 else {})}


def _views(settings: Settings, step: int) -> dict[str, Tensor]:
    """This process's part of a batch of noise, smooth enough to be told apart."""
    generator = torch.Generator().manual_seed(step)
    views = {}
    for name, side in settings.view_policy.sides(settings.data.image_size).items():
        batch = torch.randn(settings.data.batch_size, 3, side, side, generator=generator, dtype=torch.float64)
        views[name] = batch[_mine(len(batch))]
    return views


def _mine(batch: int) -> slice:
    """Which of a batch's images are this process's."""
    share = batch // ranks()
    return slice(rank() * share, (rank() + 1) * share)


def main() -> None:
    """Write what this process found, under the name that was given with its number."""
    settings = Settings.model_validate(json.load(sys.stdin))
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = two_steps(settings)
    save_file(found, Path(f"{sys.argv[1]}.{rank()}"))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
