"""What can be told of a method on a GPU without one: whether its tensors are on one device, and whether its steps can
be replayed as a CUDA graph."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from leoclr.backends.extras import examples
from leoclr.backends.method import Method, Progress
from leoclr.backends.networks.batchnorm_groups import without_kernels
from leoclr.cli.config.plugin_errors import innermost, place_of
from leoclr.cli.config.settings import Settings
from leoclr.cli.methods.outcome import Failure, Note
from leoclr.cli.preflight.checks import facts_of
from leoclr.cli.run.devices import accelerated
from leoclr.cli.training import build, step
from leoclr.cli.training.extra_inputs import as_inputs
from leoclr.cli.training.graph import StepGraph, why_not
from leoclr.cli.training.step import RunLength, StepResult, TrainStep

_CPU, _GPU = torch.device("cpu"), torch.device("cuda")
_STEPS, _STEPS_PER_EPOCH = 6, 2
_SEVERAL_DEVICES = ("device", "cuda", "cpu")  # words of torch's message, whose others differ between its versions

# A value for the host, a result whose shape depends on values, a value from the host (torch.tensor() within a step).
_HOST_WAITS = frozenset(
    "_local_scalar_dense _unique2 bincount equal histc is_nonzero lift_fresh lift_fresh_copy masked_select multinomial "
    "nonzero repeat_interleave unique_consecutive unique_dim".split()
)
_INDEXING = frozenset(("index", "index_put", "index_put_", "_index_put_impl_"))


class HostWaits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operations in its block for which the host would wait for a GPU.

    Attributes:
        found: Each with the function that asks for it.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        name = function.overloadpacket.__name__
        masks = name in _INDEXING and any(index is not None and index.dtype == torch.bool for index in arguments[1])
        if (name in _HOST_WAITS or masks) and (place := _place()) is not None:
            self.found.append(f"{name} ({place})")
        return function(*arguments, **(keywords or {}))


def _place() -> str | None:
    """The innermost line outside torch; None in the step's check for a finite loss, which a GPU does not have."""
    frame = sys._getframe(2)
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] != "torch":
            own = module == step.__name__ and frame.f_code.co_name == "_phase"
            return None if own else place_of(frame, frame.f_lineno)
        frame = frame.f_back  # type: ignore[assignment]
    return "torch"


def one_device(settings: Settings, folder: Path) -> str:
    """Whether a method that is on a GPU mixes its tensors with others; Failure where it does.

    Its tensors have shapes and a device, but no memory: torch looks at the devices of each operation, and computes
    nothing.
    """
    method = build.method(settings, _CPU, images=2 * settings.data.batch_size)
    policy = settings.view_policy
    step_number = 0
    with _no_log(), without_kernels(), FakeTensorMode(allow_non_fake_inputs=True):
        _move(method)
        views = {
            name: torch.empty(settings.data.batch_size, 3, side, side, device=_GPU)
            for name, side in policy.sides(settings.data.image_size).items()
        }
        extras = examples(method, policy.views, settings.data.batch_size, _GPU)
        try:
            for step_number in range(_STEPS):
                for phase in range(method.phases):
                    now = Progress(step_number, _STEPS, _STEPS_PER_EPOCH, phase)
                    method(views, policy.pairs, now, **extras)
                    for parameter in method.parameters():
                        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
                    method.before_update(now)
                    method.after_update(now)
        except Exception as error:  # such as for shapes that depend on values, of which there are none
            if all(word in str(error) for word in _SEVERAL_DEVICES):
                raise Failure(
                    f"tensors on the GPU and on the CPU meet in {_line(error)}: make them with device=..., or keep "
                    "them as buffers"
                ) from None
            return Note(
                f"no fault in {step_number} steps; what follows, in {_line(error)}, cannot be told without a GPU"
            )
    return f"{_STEPS} steps with tensors on the GPU alone"


def replay(settings: Settings, folder: Path) -> str:
    """Whether the steps of a method can be replayed as one CUDA graph, and if not, why."""
    found = host_waits(settings, folder)
    return Note(f"steps run without a graph: {'; '.join(found)}") if found else "one graph a step"


def host_waits(settings: Settings, folder: Path) -> list[str]:
    """For what the captured step of a method would wait, or why its steps are not replayed; nothing where they are."""
    watch, said = HostWaits(), list[str]()

    def capture(body: Callable[[], StepResult]) -> Callable[[], StepResult]:
        def again() -> StepResult:
            with watch:
                return body()

        return again

    policy, facts = settings.view_policy, facts_of(settings, images=2 * settings.data.batch_size, ranks=1)
    with accelerated(settings, folder) as accelerator:
        method = build.method(settings, accelerator.device, images=facts.images)
        if reason := why_not(settings, method, _GPU, ranks=1):
            return [reason]
        length = RunLength(_STEPS, _STEPS_PER_EPOCH)
        take = TrainStep(settings, accelerator, method, policy.pairs, facts.micro, length)
        device = accelerator.device
        take.replay = StepGraph(take.body, take.seed, method, take.optimizer, device, True, said.append, capture)
        extras = as_inputs(examples(method, policy.views, facts.micro, device))
        for number in range(_STEPS):
            take(_noise(settings, number) | extras, number)
    return [line.rpartition("CUDA graph: ")[2] for line in said] or list(dict.fromkeys(watch.found))


def _noise(settings: Settings, number: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(number)
    sides = settings.view_policy.sides(settings.data.image_size)
    return {
        name: torch.randint(256, (settings.data.batch_size, 3, side, side), generator=generator, dtype=torch.uint8)
        for name, side in sides.items()
    }


def _move(method: Method) -> None:
    """Replace each parameter and buffer by one without memory, on the GPU; what is shared stays shared."""
    moved: dict[int, Tensor] = {}

    def on_gpu(tensor: Tensor) -> Tensor:
        if id(tensor) not in moved:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=_GPU)
            trained = isinstance(tensor, nn.Parameter)
            moved[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if trained else empty
        return moved[id(tensor)]

    for part in method.modules():
        for tensors in (part._parameters, part._buffers):
            tensors |= {name: on_gpu(tensor) for name, tensor in tensors.items() if tensor is not None}


def _line(error: Exception) -> str:
    """Where an error was raised: the innermost line outside torch."""
    found = innermost(error, lambda frame: str(frame.f_globals.get("__name__", "")).partition(".")[0] != "torch")
    return "torch" if found is None else f"{Path(found[0].f_code.co_filename).name}:{found[1]}"


@contextmanager
def _no_log() -> Iterator[None]:
    """Without torch's own lines about operations that fail."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
