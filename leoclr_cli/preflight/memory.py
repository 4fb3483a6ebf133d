"""Estimate of the memory of a step, compared with the free memory before the first step.

Parameters, gradients, the optimizer's memory, what the forward pass keeps for the backward pass (measured on one and
two images, then extrapolated), the views, and the loader processes. `benchmarks/step_memory.py` compares the estimate
with the peak of real runs.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leoclr.backends.extras import examples
from leoclr.backends.method import Method, Progress
from leoclr.cli.config.plugin_errors import told_with_place
from leoclr.cli.config.settings import Settings
from leoclr.cli.run.devices import autocast, without_algorithm_search
from leoclr.datasets.errors import RunError
from leoclr.datasets.images.normalise import normalise
from leoclr.datasets.wording import counted

# Fitted to peaks of real steps on a CPU: ResNet-18 at 32 and 128 px, ResNet-50 at 224 px. For ResNet-18, ResNet-50 and
# ViT-tiny at 32, 96 and 224 px the estimate was 0.89 to 1.08 of the peak (benchmarks/step_memory.py). The factors
# stand for the gradients of activations and for convolutions' work space. Those of a GPU are estimates, not measured.
_PROCESS_BYTES = {"cpu": 1100 << 20, "cuda": 600 << 20}  # Python with torch and its libraries; the CUDA context
_BACKWARD = {"cpu": 1.43, "cuda": 1.2}
_WORKER_BYTES = 300 << 20  # of a loader process, without its batches
_BATCHES_AHEAD = 3  # that a loader process holds: one in the making, two prefetched
OPTIMIZER_COPIES = {"sgd": 1, "lars": 1, "adamw": 2}  # of what is trained, in memory and in a checkpoint
_TRUSTED = 1.2  # the estimate may be this far off


@dataclass(frozen=True)
class StepMemory:
    """Bytes that the processes of a run on this machine need, all together on the host or each on its GPU.

    Attributes:
        state: Parameters, buffers, gradients and the optimizer's memory.
        activations: What the forward pass keeps for the backward pass, and the views.
        loaders: Loader processes and the batches that they hold; on the host.
        processes: The processes themselves.
    """

    state: int
    activations: int
    loaders: int
    processes: int

    def needed(self, device_type: str) -> int:
        """On the device: a CPU's memory holds all, a GPU's all but the loaders."""
        here = self.state + self.activations + self.processes
        return here + self.loaders if device_type == "cpu" else here


def estimate(method: Method, settings: Settings, micro: int, workers: int, ranks_here: int = 1) -> StepMemory:
    """The memory of a step.

    Args:
        method: As built for training; it stays as it is.
        micro: Images that a process encodes at a time.
        workers: Loader processes of each process.
        ranks_here: Processes on this machine that share its memory; 1 for GPUs of their own.
    """
    trained = sum(p.nbytes for p in method.parameters() if p.requires_grad)
    fixed = sum(p.nbytes for p in method.parameters()) + sum(b.nbytes for b in method.buffers())
    copies = 1 + OPTIMIZER_COPIES[settings.optimizer.name]
    pixels = 3 * sum(side * side for side in settings.view_policy.sides(settings.data.image_size).values())
    share = micro * settings.train.accumulation
    one, two = (max(_kept(method, settings, count, phase) for phase in range(method.phases)) for count in (1, 2))
    kept = one + (two - one) * (micro - 1)
    device = next(method.parameters()).device.type
    return StepMemory(
        state=ranks_here * (fixed + copies * trained),
        activations=int(ranks_here * (_BACKWARD[device] * kept + 4 * pixels * micro + pixels * share)),
        loaders=ranks_here * workers * (_WORKER_BYTES + _BATCHES_AHEAD * share * pixels),
        processes=ranks_here * _PROCESS_BYTES[device],
    )


def check_memory(method: Method, settings: Settings, micro: int, workers: int, device: torch.device) -> list[str]:
    """Compare the estimate for a run with what is free on its device. Processes on one CPU share its memory.

    Returns:
        A warning where it may be too little, or where there is no estimate; else nothing.

    Raises:
        RunError: It is too little by more than the estimate may be off, with what fits.
    """
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device.type == "cpu" else 1
    try:
        memory = estimate(method, settings, micro, workers, sharing)
    except torch.OutOfMemoryError:  # of one process; the others would wait for it within a step
        raise
    except Exception as error:  # a method may need more than two images, and divide by what it lacks
        return [f"no estimate of the memory, for which one and two images are encoded: {told_with_place(error)}"]
    return refuse_too_much(memory, device, settings)


def refuse_too_much(memory: StepMemory, device: torch.device, settings: Settings) -> list[str]:
    """As `check_memory`, for an estimate that is there."""
    needed, free = memory.needed(device.type), free_bytes(device)
    if free is None or needed <= free:
        return []
    words = f"a step needs about {_gib(needed)}, and {_gib(free)} are free on {_place(device)}"
    advice = f"take {_advice(memory, free, device, settings)}"
    if needed > _TRUSTED * free:
        raise RunError(f"{words}; {advice}")
    return [f"{words}; if it ends for lack of memory, {advice}"]


def memory_record(memory: StepMemory, device: torch.device, micro: int) -> dict[str, int | None]:
    """An estimate for `micro` images at a time as JSON values: its parts, what is needed and free on the device, in
    bytes, and how many images would fit at a time."""
    needed, free = memory.needed(device.type), free_bytes(device)
    fits = None if free is None else max(0, int(micro * _room(memory, free, device)))
    return {**asdict(memory), "needed": needed, "free": free, "images_that_fit": fits}


def memory_line(record: Mapping[str, int | None]) -> str:
    """The same for people."""
    gib = {name: f"{count / (1 << 30):.1f}" for name, count in record.items() if count is not None}
    fits = record["images_that_fit"]
    free = "" if fits is None else f"; {gib['free']} GiB are free, enough for {counted(fits, 'image')} at a time"
    return (
        f"about {gib['needed']} GiB: {gib['state']} weights and optimizer, {gib['activations']} activations and views, "
        f"{gib['loaders']} loader processes, {gib['processes']} the program itself{free}"
    )


def free_bytes(device: torch.device) -> int | None:
    """Memory that can be had on a device, in this process's limits; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    available = _number(Path("/proc/meminfo"), lambda text: int(text.split("MemAvailable:")[1].split()[0]) * 1024)
    limit = _number(Path("/sys/fs/cgroup/memory.max"), int)
    used = _number(Path("/sys/fs/cgroup/memory.current"), int)
    cached = _number(Path("/sys/fs/cgroup/memory.stat"), lambda text: int(text.split("inactive_file ")[1].split()[0]))
    within = limit - used + (cached or 0) if limit is not None and used is not None else None  # files give way
    found = [number for number in (available, within) if number is not None]
    return min(found) if found else None


def _number(file: Path, read: Callable[[str], int]) -> int | None:
    try:
        return read(file.read_text())
    except (OSError, ValueError, IndexError):
        return None


def _kept(method: Method, settings: Settings, images: int, phase: int) -> int:
    """Bytes that a forward pass of some images in a phase keeps for its backward pass, parameters apart."""
    trial = copy.deepcopy(method).eval()  # BatchNorm of one image has no statistics
    own = {parameter.untyped_storage().data_ptr() for parameter in (*trial.parameters(), *trial.buffers())}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    device = next(trial.parameters()).device
    policy = settings.view_policy
    views, extras = blank_views(settings, images, device), examples(trial, policy.views, images, device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            with autocast(settings.train.precision, device.type), without_algorithm_search():
                output: Any = trial(views, policy.pairs, Progress(0, 1, 1, phase), **extras)
    del output
    return sum(found.values())


def blank_views(settings: Settings, images: int, device: torch.device) -> dict[str, Tensor]:
    """Black images as the views of a step, normalised, by the names of the policy."""
    sides = settings.view_policy.sides(settings.data.image_size)
    return {name: _blank(settings, side, images, device) for name, side in sides.items()}


def _blank(settings: Settings, side: int, images: int, device: torch.device) -> Tensor:
    pixels = torch.zeros(images, 3, side, side, dtype=torch.uint8, device=device)
    return normalise(
        pixels.contiguous(memory_format=torch.channels_last), settings.augmentation.mean, settings.augmentation.std
    )


def _advice(memory: StepMemory, free: int, device: torch.device, settings: Settings) -> str:
    room = _room(memory, free, device)
    if room <= 0:
        return "a smaller backbone or fewer --workers"
    batch = settings.data.batch_size
    fits = 1 << max(0, int(batch * room).bit_length() - 1)
    parts = next((n for n in range(2, batch + 1) if batch % n == 0 and batch // n <= batch * room), batch)
    return f"--batch-size {min(fits, batch)}, or --set train.accumulation={parts} for the same batch in {parts} parts"


def _room(memory: StepMemory, free: int, device: torch.device) -> float:
    """How many times the activations fit into what is free beside all else."""
    rest = memory.needed(device.type) - memory.activations
    return (free - rest) / memory.activations if memory.activations else 0.0


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB"


def _place(device: torch.device) -> str:
    return "this machine" if device.type == "cpu" else f"GPU {device.index or 0}"
