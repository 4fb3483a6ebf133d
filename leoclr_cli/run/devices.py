"""Choice of device, precision and processes, or a refusal."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import ProjectConfiguration, check_cuda_p2p_ib_support

from leoclr.backends.distributed import gather
from leoclr.backends.networks.backbones import Backbone, narrow_convolution
from leoclr.backends.networks.batchnorm_groups import why_no_kernels, why_no_triton
from leoclr.cli.config.settings import Settings
from leoclr.cli.run.allocator import keep_freed_memory
from leoclr.cli.run.variables import CUBLAS, drop_what_changes_results, settle_launch
from leoclr.datasets.errors import RunError
from leoclr.datasets.images.augment_device import why_no_jitter

# Timed for each convolution, cuDNN's best guesses first. With torch's ten, the first steps took 20 s on an H100. The
# bound spares the timing of the others; torch builds the plans of all of them before, which no setting bounds.
_CUDNN_SEARCH, _CUDNN_PLANS = True, 4
_AGREE_STEPS_CUDA = 10  # asking all GPUs whether to stop waits for them; every step would cost speed
# The host's allocator, CUDA and Triton, and cuDNN, which tries again with less and then finds no algorithm.
_NO_MEMORY = ("allocate memory", "out of memory", "_STATUS_ALLOC_FAILED", "unable to find an engine")
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_PRECISION: dict[str, Literal["no", "bf16", "fp16"]] = {"float32": "no", "bf16": "bf16", "fp16": "fp16"}


def make_accelerator(settings: Settings, output: Path) -> Accelerator:
    """Accelerate's view of device, processes and precision.

    Buffers are not broadcast: ranks hold equal queues already, and BatchNorm statistics are per rank by design.

    Raises:
        RunError: There is no such device, or it does not compute in that precision; or the environment says that there
            are several processes, and not which this one is.
    """
    drop_what_changes_results(os.environ)  # where this is not run by the command line, which says so
    settle_launch(os.environ)
    device = choose_device(settings.run.device)
    check_precision(settings.train.precision, device)
    if settings.run.deterministic:
        torch.use_deterministic_algorithms(True)
    if device.type == "cpu":
        keep_freed_memory()
    else:
        gc.collect()  # of a run before this one in the process: its step and the graph of it refer to each other
        torch.cuda.empty_cache()
        torch.backends.cudnn.benchmark = _CUDNN_SEARCH and not settings.run.deterministic
        torch.backends.cudnn.benchmark_limit = _CUDNN_PLANS
        if not check_cuda_p2p_ib_support():  # Accelerate refuses such GPUs unless NCCL is told
            os.environ.update(NCCL_P2P_DISABLE="1", NCCL_IB_DISABLE="1")
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=_PRECISION[settings.train.precision],
        log_with=list(settings.run.trackers) or None,
        project_config=ProjectConfiguration(str(output), logging_dir=str(output / "tensorboard")),
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            # Accelerate leaves out what equals its own default of ten minutes; torch's, for gloo, is thirty.
            InitProcessGroupKwargs(timeout=timedelta(minutes=settings.run.timeout_minutes, microseconds=1)),
        ],
    )


@contextmanager
def accelerated(settings: Settings, output: Path) -> Iterator[Accelerator]:
    """`make_accelerator`; afterwards the device and precision are forgotten, so that the next may have others.

    The group of processes is left in order only where all went well. NCCL would have one that fails wait for the
    others, which wait for it; once it has ended, they notice.
    """
    try:
        yield make_accelerator(settings, output)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = False
        AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def without_algorithm_search() -> Iterator[None]:
    """The block has shapes that do not come again: cuDNN takes its first guess for them and tries no other."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def agree(accelerator: Accelerator, step: int, signal_number: int, save_is_due: bool) -> tuple[int, bool]:
    """What any process was asked to stop by (0: nothing), and whether any finds a save due.

    All must act alike: clocks differ, and a process that went its own way would leave the others waiting.
    """
    if accelerator.num_processes == 1:
        return signal_number, save_is_due
    if accelerator.device.type == "cuda" and step % _AGREE_STEPS_CUDA:
        return 0, False
    asked = torch.tensor([[signal_number, int(save_is_due)]], device=accelerator.device)
    found = gather(asked).max(dim=0).values.tolist()  # SIGTERM, 15, before SIGUSR1, 10, and SIGINT, 2
    return found[0], bool(found[1])


def refuse_different_steps(step: int, device: torch.device) -> None:
    """Raise RunError, in all processes, where they would go on after different steps: their weights differ."""
    found = sorted(set(gather(torch.tensor([step], device=device)).tolist()))
    if len(found) > 1:
        raise RunError(
            f"the processes found different checkpoints, of steps {', '.join(map(str, found))}; all must see the same "
            "run folder"
        )


def explained(error: RuntimeError) -> RunError | None:
    """What to say of an error of torch's that is no error of the program; None where it may be one."""
    found = lost_process(error) or failed_compilation(error) or out_of_memory(error)
    return found or changed_in_place(error) or kept_graph(error) or matrix_product_before(error)


def lost_process(error: RuntimeError) -> RunError | None:
    """What to say where `error` is the end of the talk between processes; None where it is anything else."""
    text = " ".join(str(error).split())
    if not isinstance(error, torch.distributed.DistError) and "gloo" not in text:
        return None
    waited = "timed out" in text.casefold() or "timeout" in text.casefold()
    what = "has not answered within run.timeout_minutes" if waited else "has ended; look above for its message"
    if isinstance(error, torch.distributed.DistNetworkError):
        return RunError(f"the processes of this run cannot reach each other ({text[:200]})")
    reason = text.removeprefix("[").partition("] ")[2].partition(". ")[0] or text
    return RunError(f"another process of this run {what} ({reason[:200]})")


def failed_compilation(error: RuntimeError) -> RunError | None:
    """What to say where `error` is torch.compile's; None where it is anything else."""
    if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return None
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return RunError(f"the encoder cannot be compiled here; take --no-compile ({reason[:200]})")


def out_of_memory(error: RuntimeError) -> RunError | None:
    """What to say where `error` is a lack of memory; None where it is anything else."""
    text = " ".join(str(error).split())
    if not isinstance(error, torch.OutOfMemoryError) and not any(words in text for words in _NO_MEMORY):
        return None
    return RunError(
        "out of memory; the checkpoints are as they were; take a smaller --batch-size, --precision bf16, or "
        f"--set train.accumulation=2 for the same batch in two parts ({text[:200]})"
    )


def changed_in_place(error: RuntimeError) -> RunError | None:
    """What to say where a method changed what its backward pass needs; None where `error` is anything else."""
    text = " ".join(str(error).split())
    if "modified by an inplace operation" not in text:
        return None
    which = text.partition("modified by an inplace operation: ")[2][:120]
    return RunError(
        "the backward pass needs a tensor that was changed in place after its use: a method changes its buffers in "
        f"after_update, or uses clones of them in the loss ({which})"
    )


def kept_graph(error: RuntimeError) -> RunError | None:
    """What to say where a method keeps tensors of a step with their graph; None where `error` is anything else."""
    if "backward through the graph a second time" not in str(error):
        return None
    return RunError(
        "the backward pass reaches into the step before, whose graph is gone: a method keeps a tensor without "
        "detach(), or changes a buffer in forward outside of torch.no_grad()"
    )


def matrix_product_before(error: RuntimeError) -> RunError | None:
    """What to say where `run.deterministic` comes too late in a process; None where `error` is anything else."""
    if CUBLAS[0] not in str(error):
        return None
    return RunError(
        "run.deterministic: this process has multiplied matrices on the GPU before; start Python again with "
        f"{'='.join(CUBLAS)} in the environment"
    )


def choose_device(name: str) -> torch.device:
    """The device called `name`: auto (a GPU if there is one), cpu, cuda or cuda:N.

    Raises:
        RunError: It is none of these, or not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and (kind == "cpu" or not number.isdigit())):
        raise RunError(f"no device is called {name!r}; it is auto, cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise RunError("there is no CUDA GPU that this torch can use; take --device cpu")
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if kind == "cuda" and processes > max(1, torch.cuda.device_count()):
        raise RunError(f"{processes} processes need a GPU each; there are {torch.cuda.device_count()}")
    if number and "LOCAL_RANK" in os.environ:
        raise RunError("processes that are started together take the GPU of their own number; name none: --device cuda")
    if number and int(number) >= torch.cuda.device_count():
        raise RunError(f"there is no {name}: the GPUs are numbered 0 to {torch.cuda.device_count() - 1}")
    if number:
        torch.cuda.set_device(int(number))
    device = torch.device(name)
    _prepare_cublas(device)
    return device


def _prepare_cublas(device: torch.device) -> None:
    """Let a run be deterministic: torch reads this variable at the first matrix product of a process, which may come
    before."""
    if device.type == "cuda":
        os.environ.update([CUBLAS])


def check_precision(precision: str, device: torch.device) -> None:
    """Raise RunError where the device has no arithmetic of this precision and would emulate it slowly or not at all."""
    if precision == "fp16" and device.type == "cpu":
        raise RunError("fp16 needs a GPU; take --precision bf16 or float32 on a CPU")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise RunError("this GPU does not compute in bf16; take --precision fp16 or float32")
    if precision == "bf16" and device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise RunError("this processor does not compute in bf16; take --precision float32")


def autocast(precision: str, device_type: str) -> torch.autocast:
    """The context of a forward pass in `train.precision`; in float32 it changes nothing."""
    dtype = None if precision == "float32" else DTYPES[precision]
    return torch.autocast(device_type, dtype, enabled=dtype is not None)


def check_kernels(device: torch.device, precision: str) -> list[str]:
    """What to say where a GPU does without leoclr's own kernels, which saves it thousands of launches a step."""
    reason = (why_no_kernels(DTYPES[precision]) or why_no_jitter()) if device.type == "cuda" else None
    wanted = "; Triton needs a C compiler and Python's headers" if reason and why_no_triton() else ""
    return [] if reason is None else [f"steps are slower without Triton's kernels{wanted} ({reason})"]


def check_backbone(backbone: Backbone, size: int, precision: str, device: torch.device) -> None:
    """Raise RunError where a backbone cannot be trained on images of `size` pixels.

    By a forward pass of one image. On a CPU in bf16, a convolution's weight gradient is made of memory that nobody
    wrote where its input is narrower than its stride (seen with PyTorch 2.14 and oneDNN on a processor with
    avx512_bf16).
    """
    try:
        name = narrow_convolution(backbone, size)
    except ValueError as error:
        raise RunError(f"this backbone cannot be trained: {error}") from None
    if name and precision == "bf16" and device.type == "cpu":
        raise RunError(
            f"images of {size} px are too small for bf16 on a CPU: {name} takes longer strides than its input is wide, "
            "which PyTorch has wrong gradients for; take --precision float32, or a stem or an image size that leaves "
            "more pixels"
        )
