"""What a graph of the training step needs of CUDA: its capture, and where the host waits for the GPU."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

from leoclr.cli.run.devices import without_algorithm_search
from leoclr.cli.training.step import StepResult

_SYNCHRONIZES = "synchronizing CUDA operation"  # in torch's warning

Capture = Callable[[Callable[[], StepResult]], Callable[[], StepResult]]

_failed: list[torch.cuda.CUDAGraph] = []  # the allocator of pinned memory may go on asking them about the capture


@cache
def _stream(device: int) -> torch.cuda.Stream:
    """One for all captures: cuBLAS keeps a workspace for each stream as long as the process runs."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def cuda_capture(body: Callable[[], StepResult]) -> Callable[[], StepResult]:
    """Record what `body` launches, without running it.

    By this thread alone: others, which pin the next batches, may allocate memory meanwhile ("global", torch's default,
    lets either them or the capture fail). cuDNN takes the algorithms that the steps before have found, and searches for
    none: a search makes the host wait. Where the capture fails, the stream, the allocator and the generator are as
    before, which torch leaves out.
    """
    graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    pool = torch.cuda.graph_pool_handle()
    try:
        with without_algorithm_search():
            with torch.cuda.graph(
                graph, pool=pool, stream=_stream(before.device_index), capture_error_mode="thread_local"
            ):
                result = body()
    except BaseException:
        torch.cuda.set_stream(before)
        _failed.append(graph)
        _after_failed_capture(before.device_index, pool)
        raise

    def replay() -> StepResult:
        graph.replay()
        return result

    return replay


def _after_failed_capture(device: int, pool: Any) -> None:
    """Let the device be used as before the capture. Where torch has seen to it itself, it says so by an error."""
    with contextlib.suppress(RuntimeError, AttributeError):
        torch._C._cuda_endAllocateToPool(device, pool)  # else the allocator waits for the end of the capture for ever
        torch._C._cuda_releasePool(device, pool)  # else what it holds is lost
    with contextlib.suppress(RuntimeError, AttributeError):
        generator = torch.cuda.default_generators[device]
        generator.graphsafe_set_state(generator.clone_state())  # the copy knows of no capture


@contextlib.contextmanager
def device_waits(device: torch.device) -> Iterator[list[str]]:
    """Gathers where the host waits for the GPU within the block, as "file:line". Torch's other warnings, such as that
    a step ready for a capture is taken without, have no meaning for the user."""
    found: list[str] = []
    if device.type != "cuda":
        yield found
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = [(Path(each.filename), each.lineno) for each in caught if _SYNCHRONIZES in str(each.message)]
    found += [f"{path.parent.name}/{path.name}:{line}" for path, line in places]


def give_back(device: torch.device) -> None:
    """Free what steps without the graph have used: the graph has memory of its own."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
