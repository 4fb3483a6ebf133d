"""Supervised training by epochs: the loop shared by the SGD probe and fine-tuning.

The state is saved after every epoch, so a resumed training ends with the weights of an uninterrupted one, on the CPU
bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from leoclr.datasets.errors import RunError
from leoclr.datasets.files import atomic_path, ignore
from leoclr.datasets.randomness import hash_key
from leoclr.datasets.wording import counted
from leoclr.evals.finetuning.labelled_crops import LabelledCrops

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
_MOMENTUM = "momentum."
_WEIGHTS = "model."
_DEVIATION = 0.01


@dataclass(frozen=True)
class Schedule:
    """How long, and how the learning rates fall.

    Attributes:
        kind: "steps" multiplies them by `decay` after 60 % and after 80 % of the epochs; "cosine" takes them to zero
            along half a cosine, step by step.
    """

    epochs: int
    kind: Literal["cosine", "steps"] = "steps"
    decay: float = 0.1

    def factor(self, epoch: float) -> float:
        """What the learning rates are multiplied with at a time, in epochs from the start."""
        if self.kind == "cosine":
            return 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
        return float(self.decay ** sum(10 * epoch >= tenths * self.epochs for tenths in (6, 8)))

    @property
    def protocol(self) -> str:
        """The schedule in words."""
        if self.kind == "cosine":
            return f"{counted(self.epochs, 'epoch')}, cosine"
        return f"{counted(self.epochs, 'epoch')}, x {self.decay:g} at {0.6 * self.epochs:g} and {0.8 * self.epochs:g}"


def train_classifier(
    model: nn.Module,
    optimizer: torch.optim.SGD,
    loss: Loss,
    crops: LabelledCrops,
    schedule: Schedule,
    *,
    device: torch.device,
    workers: int = -1,
    state: Path | None = None,
    advance: Callable[[int], None] = ignore,
) -> None:
    """Train `model` for all epochs of the schedule, from the last epoch that `state` holds.

    Args:
        model: What is trained, and what `state` holds. Nothing here changes its mode.
        optimizer: Of the model's parameters, with the learning rates of the start.
        loss: Of images, labels and sample numbers.
        state: File for weights and momentum; None keeps nothing.
        advance: Called with the number of images done, those of earlier sessions included.

    Raises:
        RunError: The state cannot be written.
    """
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    steps, images = crops.plan.steps_per_epoch, len(crops.index)
    done = load_state(state, model, optimizer) if state is not None else 0
    advance(done * images)
    step = done * steps
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for batch in crops.batches(step, schedule.epochs * steps, device, workers):
            if step % steps == 0:  # for dropout and the like; a state then needs no generator
                torch.manual_seed(int(hash_key(crops.seed, step // steps)[0]) % 2**63)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * schedule.factor(step / steps)
            optimizer.zero_grad()
            loss(*batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1
            advance(len(batch[1]))
            if step % steps == 0 and state is not None:
                save_state(state, model, optimizer, step // steps)


def linear_layer(feature_dim: int, class_count: int, seed: int) -> nn.Linear:
    """A classifier to start from, as MoCo's: weights from N(0, 0.01) by the seed, biases zero."""
    layer = nn.Linear(feature_dim, class_count, device="meta").to_empty(device="cpu")  # draws from no generator
    with torch.no_grad():
        layer.weight.normal_(0, _DEVIATION, generator=torch.Generator().manual_seed(seed))
        layer.bias.zero_()
    return layer


def save_state(path: Path, model: nn.Module, optimizer: torch.optim.SGD, epochs: int) -> None:
    """Write weights, buffers and momentum after so many epochs.

    Raises:
        RunError: That cannot be done; what lay there before is as it was.
    """
    tensors = {f"{_WEIGHTS}{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        if "momentum_buffer" in optimizer.state.get(parameter, {}):
            tensors[f"{_MOMENTUM}{name}"] = optimizer.state[parameter]["momentum_buffer"]
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            save_file(plain, temporary, {"epochs": str(epochs)})
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} cannot be written ({error}); --no-cache keeps no unfinished work") from error


def load_state(path: Path, model: nn.Module, optimizer: torch.optim.SGD) -> int:
    """Undo `save_state`; the number of epochs, 0 where there is no such file or it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            epochs = int((file.metadata() or {})["epochs"])
    except (FileNotFoundError, SafetensorError, KeyError, ValueError):
        return 0
    weights = {name: tensor for name, tensor in tensors.items() if name.startswith(_WEIGHTS)}
    parameters = {f"{_MOMENTUM}{name}": parameter for name, parameter in model.named_parameters()}
    expected = {f"{_WEIGHTS}{name}": tensor for name, tensor in model.state_dict().items()}
    shapes = {name: tensor.shape for name, tensor in (expected | parameters).items()}
    if weights.keys() != expected.keys() or any(tensor.shape != shapes.get(name) for name, tensor in tensors.items()):
        return 0
    model.load_state_dict({name.removeprefix(_WEIGHTS): tensor for name, tensor in weights.items()})
    for name, parameter in model.named_parameters():
        if f"{_MOMENTUM}{name}" in tensors:  # in the parameter's memory layout, which torch's kernels take for granted
            buffer = torch.empty_like(parameter).copy_(tensors[f"{_MOMENTUM}{name}"])
            optimizer.state[parameter]["momentum_buffer"] = buffer
    return epochs
