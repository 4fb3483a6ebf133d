"""Training step as one CUDA graph: captured once, then replayed with a single launch.

Shapes are static. Values that change from step to step are in device buffers that are filled before each replay:
sample numbers, boxes and parameters of the views (or pixels, where loader processes make them), learning rates, and the
step inputs of the method (`leoclr.backends.step_inputs`). The graph captures the body of `TrainStep`: from these to the
update, with the crops and photometric operations of the views.

The first steps run without the graph. The next two are computed twice from the same state, with and without the graph,
and must update the weights alike. If they do not, if the host waits for the GPU within a step, or if the capture fails,
one line gives the reason and all steps run without the graph.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from leoclr.backends.method import Method, Progress
from leoclr.backends.step_inputs import StepInputs, WatchedProgress
from leoclr.cli.config.settings import Settings
from leoclr.cli.run.devices import out_of_memory
from leoclr.cli.training.cuda_capture import Capture, cuda_capture, device_waits, give_back
from leoclr.cli.training.step import StepResult, TrainStep
from leoclr.datasets.errors import LeoclrError
from leoclr.datasets.wording import in_a_line

_STEPS_BEFORE = 3  # in which algorithms are chosen and the optimizer's state comes to be
_CHECKED = 2  # the second has other inputs than the capture
STEPS_BEFORE_REPLAY = _STEPS_BEFORE + _CHECKED  # how many steps are not replayed alone
_SAME = 0.1  # distance between the two results, over the length of the step: twice the same step is 0.01 in bf16


Body = Callable[[Mapping[str, Tensor], Progress], StepResult]


def use_graph(take: TrainStep, say: Callable[[str], None]) -> None:
    """Let steps be replayed as `train.graph` says, where they can be.

    Args:
        say: Called with one line where they cannot, though a GPU would.
    """
    chosen, device = take.settings.train.graph, take.accelerator.device
    if chosen == "no" or (chosen == "auto" and device.type != "cuda"):
        return
    reason = why_not(take.settings, take.method, device, take.accelerator.num_processes)
    if reason is not None:
        say(f"steps are not replayed as a CUDA graph: {reason}")
        return
    take.replay = StepGraph(take.body, take.seed, take.method, take.optimizer, device, chosen == "auto", say)


def why_not(settings: Settings, method: Method, device: torch.device, ranks: int) -> str | None:
    """Why the steps of a run cannot be one graph; None where they may."""
    if device.type != "cuda":
        return "there is no GPU"
    if ranks > 1:
        return "several processes talk to each other within a step"
    if settings.train.accumulation > 1:
        return "train.accumulation is above 1"
    if settings.train.precision == "fp16":
        return "fp16 leaves out steps that overflow"
    if settings.run.deterministic:
        return "its learning rates are float32, so the first steps after a resume would round otherwise"
    if method.phases > 1 or any(group.frozen or group.weight_decay for group in method.groups):
        return f"{settings.backend} has phases, frozen groups or a schedule of weight decay"
    return None


class StepGraph:
    """Takes steps by replay where that gives what `body` gives.

    Args:
        body: A step, from inputs on the device to the update.
        seed: Seeds torch for a step.
        check: Whether to compare the first replays.
        say: Called with one line where steps are not replayed.
        capture: Plain code in tests.
    """

    def __init__(
        self,
        body: Body,
        seed: Callable[[Progress], None],
        method: Method,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        check: bool,
        say: Callable[[str], None],
        capture: Capture = cuda_capture,
    ) -> None:
        self._body, self._seed, self._method, self._optimizer, self._say = body, seed, method, optimizer, say
        self._capture, self._inputs = capture, StepInputs()
        self._steps, self._unchecked, self._check = 0, _CHECKED, check
        self._buffers: dict[str, Tensor] = {}
        exact = torch.float32 if device.type == "cuda" else torch.float64
        self._rates = torch.zeros(len(optimizer.param_groups), dtype=exact, device=device)
        self._replay: Callable[[], StepResult] | None = None
        self.refused: str | None = None

    def __call__(self, inputs: Mapping[str, Tensor], now: Progress) -> StepResult:
        """Take a step. The optimizer's groups have the step's learning rates, as numbers."""
        self._steps += 1
        if self.refused is not None or self._steps <= _STEPS_BEFORE:
            return self._body(inputs, now)
        self._fill(inputs, now)
        if self._replay is not None and not self._unchecked:
            return self._replay().clone()
        before, remembered = self._state(), self._remembered()
        watched = WatchedProgress(*now)
        with device_waits(self._rates.device) as waits:
            expected = self._without_replay(watched)
        if expected is None:
            vars(self._method).update(remembered)
            return self._unchecked_replay(before, now)
        if watched.read:
            return self._refuse(f"the method reads its progress on the host ({watched.read})", expected)
        if waits:  # a capture that fails in its midst would leave torch's allocator in disorder
            return self._refuse(f"the host waits for the GPU within a step ({waits[0]})", expected)
        after = self._state()
        self._restore(before)
        self._seed(now)
        try:
            replay = self._replay or self._captured(now)
        except (RuntimeError, LeoclrError) as error:
            self._restore(after)
            return self._refuse(f"it cannot be captured ({in_a_line(error, 200)})", expected)
        found = replay().clone()
        if self._check and not self._alike(before, after):
            self._restore(after)
            return self._refuse("a replay does not give what the step gives", expected)
        self._replay = replay
        self._unchecked = self._unchecked - 1 if self._check else 0
        if not self._unchecked:
            give_back(self._rates.device)
        return found

    def _without_replay(self, now: Progress) -> StepResult | None:
        """The step itself; None where there is no room for it beside the memory of the replay."""
        try:
            with self._inputs.serving():
                return self._body(self._buffers, now).clone()
        except RuntimeError as error:
            if self._replay is None or out_of_memory(error) is None:
                raise
            return None

    def _unchecked_replay(self, before: list[Tensor], now: Progress) -> StepResult:
        """A step by the replay alone, from the state `before`, as all that follow."""
        assert self._replay is not None
        self._optimizer.zero_grad(set_to_none=True)
        self._restore(before)
        self._seed(now)
        self._unchecked = 0
        give_back(self._rates.device)
        return self._replay().clone()

    def _captured(self, now: Progress) -> Callable[[], StepResult]:
        """The replay of the step. What the method remembers in Python is as before, if the capture fails."""
        remembered = self._remembered()

        def body() -> StepResult:
            with self._inputs.serving():
                return self._body(self._buffers, WatchedProgress(*now))

        try:
            return self._capture(body)
        except BaseException:
            vars(self._method).update(remembered)
            self._optimizer.zero_grad(set_to_none=True)
            raise

    def _fill(self, inputs: Mapping[str, Tensor], now: Progress) -> None:
        if not self._buffers:
            self._buffers = {name: torch.empty_like(value) for name, value in inputs.items()}
        for name, value in inputs.items():
            self._buffers[name].copy_(value)
        rates = torch.tensor([group["lr"] for group in self._optimizer.param_groups], dtype=self._rates.dtype)
        self._rates.copy_(rates.pin_memory() if self._rates.is_cuda else rates, non_blocking=True)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate
            if "capturable" in group:
                group["capturable"] = True
        self._inputs.fill(now)

    def _tensors(self) -> list[Tensor]:
        state = (value for each in self._optimizer.state.values() for value in each.values())
        return [
            *(parameter.data for parameter in self._method.parameters()),
            *self._method.buffers(),
            *(value for value in state if isinstance(value, Tensor)),
        ]

    def _remembered(self) -> dict[str, Any]:
        """Copies of what the method itself keeps in Python, such as keys that wait for the update."""
        ours = vars(nn.Module())
        own = {name: value for name, value in vars(self._method).items() if name not in ours}
        return {name: copy.copy(value) for name, value in own.items() if isinstance(value, list | dict | set)}

    def _state(self) -> list[Tensor]:
        """A copy on the host: the graph and a step without it may leave no room for it on a GPU."""
        return [tensor.to("cpu", copy=True) for tensor in self._tensors()]

    def _restore(self, state: list[Tensor]) -> None:
        for tensor, value in zip(self._tensors(), state, strict=True):
            tensor.copy_(value)

    def _refuse(self, reason: str, result: StepResult) -> StepResult:
        self.refused, self._replay, self._buffers = reason, None, {}
        self._say(f"steps are not replayed as a CUDA graph: {reason}")
        return result

    def _alike(self, before: list[Tensor], expected: list[Tensor]) -> bool:
        """Whether the state is about where another step from `before` led: in the parameters, and in all else."""
        found = self._tensors()
        parameters = sum(1 for _ in self._method.parameters())
        parts = slice(0, parameters), slice(parameters, None)
        return all(_near(before[part], expected[part], found[part]) for part in parts)


def _near(before: list[Tensor], expected: list[Tensor], found: list[Tensor]) -> bool:
    length = distance = rounding = 0.0
    for *kept, other in zip(before, expected, found, strict=True):
        old, one = (tensor.to(other.device) for tensor in kept)
        if one.is_floating_point():
            length += float((one.double() - old.double()).square().sum())
            distance += float((one.double() - other.double()).square().sum())
            rounding += float((one.double() * torch.finfo(one.dtype).eps).square().sum())
        elif not torch.equal(one, other):
            return False
    return distance <= _SAME**2 * length + rounding
