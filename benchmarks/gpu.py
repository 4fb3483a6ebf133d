"""Everything about a GPU in one command: its tests, the rates and launches of a step, start to k-NN score.

Run: python benchmarks/gpu.py [--cifar SHARDS] [--only PART ...] [--minutes N] [--output FILE.json]

It makes its own images; `--cifar` takes real ones, a folder with `train` and `test`. Each part has a process and a time
limit of its own, so that one that fails costs one row. It prints a table, and JSON with `--output`. Without a GPU the
parts that need none run, at a small size, and the others are listed as left out. On a GPU so are those for which the
time, five minutes unless told otherwise, is too short; the most telling ones come first. The JSON is written after each
part, and has the last lines of what a failed one printed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
CARD = torch.cuda.is_available()
SECONDS = 3.0  # that a rate is measured over
PROFILED = 3  # steps
WARM = 12 if CARD else 1  # steps: those without a graph, those that compare it, and a few to settle
LINES = 40  # that are kept of what a failed part printed
PHOTOGRAPHS = 2_048 if CARD else 128
DIFFERENT = 256  # photographs; making one takes longer than reading it
Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One row or a few: `run(folder)` returns them by name.

    Attributes:
        limit: Seconds after which it is ended.
        expected: Seconds on a large GPU that it has never run on; with less left it is not begun.
        card: Whether it needs a GPU.
    """

    run: Callable[[Path], dict[str, Row]]
    limit: int
    expected: int
    card: bool = True


# --- images ---


def write_small(folder: Path, images: int) -> None:
    """Ten classes of 32 px: each has a pattern of its own under noise."""
    generator = np.random.default_rng(0)
    patterns = generator.integers(0, 160, (10, 32, 32, 3))
    with webdataset.ShardWriter(
        f"{folder.as_posix()}/small-%06d.tar", maxcount=5000, verbose=0, encoder=False
    ) as shard:
        for number in range(images):
            pixels = patterns[number % 10] + generator.integers(0, 96, (32, 32, 3))
            data = b"P6 32 32 255\n" + pixels.astype(np.uint8).tobytes()
            shard.write({"__key__": f"{number:06d}", "ppm": data, "cls": str(number % 10).encode()})


def write_photographs(folder: Path, images: int) -> None:
    """JPEGs of 500 x 375 pixels that cost about as much as photographs."""
    generator = np.random.default_rng(0)
    with webdataset.ShardWriter(f"{folder.as_posix()}/photo-%06d.tar", maxcount=500, verbose=0, encoder=False) as shard:
        made = list[bytes]()
        for _ in range(min(images, DIFFERENT)):
            small = Image.fromarray(generator.integers(0, 256, (24, 32, 3), dtype=np.uint8))
            pixels = np.asarray(small.resize((500, 375), Image.Resampling.BICUBIC), np.int16)
            noisy = (pixels + generator.integers(-12, 13, pixels.shape)).clip(0, 255).astype(np.uint8)
            buffer = BytesIO()
            Image.fromarray(noisy).save(buffer, "JPEG", quality=90)
            made.append(buffer.getvalue())
        for number in range(images):
            shard.write({"__key__": f"{number:06d}", "jpg": made[number % len(made)]})


def make_images(folder: Path, cifar: Path | None) -> None:
    """`small/train`, `small/test` and `photographs`."""
    if cifar is not None:
        (folder / "small").symlink_to(cifar.resolve())
    else:
        for split, images in (("train", 20_000 if CARD else 1_000), ("test", 2_000 if CARD else 200)):
            (folder / "small" / split).mkdir(parents=True)
            write_small(folder / "small" / split, images)
    (folder / "photographs").mkdir()
    write_photographs(folder / "photographs", PHOTOGRAPHS)


# --- parts ---


def tests(folder: Path) -> dict[str, Row]:
    """The tests of devices and of the kernels."""
    began = time.monotonic()
    files = ["training/test_devices.py", "methods/test_batchnorm_groups.py", "images/test_jitter_triton.py"]
    files += ["training/test_graph.py::test_a_gpu_replays_its_steps"]
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider"]
    if CARD and importlib.util.find_spec("xdist"):
        command += ["-n", "4"]
    command += [f"tests/{name}" for name in files]
    lines, failed = list[str](), list[str]()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", file=sys.stderr, flush=True)  # what a part prints is kept where it is ended
            lines += [line.strip()] if line.strip() else []
            if " FAILED" in line or " ERROR" in line:  # told at once, as the part may be ended before the summary
                failed.append(line.strip())
                _so_far({"tests": {"passed": False, "failures": failed}})
    row: Row = {"passed": process.returncode == 0, "seconds": time.monotonic() - began, "result": lines[-1]}
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"tests": row if row["passed"] else row | {"failures": failures, "printed": lines[-LINES:]}}


def batchnorm(folder: Path) -> dict[str, Row]:
    """Forward and backward of BatchNorm in two and eight groups beside one group by torch's, bf16, in milliseconds."""
    from leoclr.backends.networks.batchnorm_groups import Running, group_batch_norm

    rows: dict[str, Row] = {}
    for shape in ((512, 64, 32, 32), (512, 512, 4, 4), (256, 256, 56, 56), (256, 2048, 7, 7)):
        pixels = torch.randn(shape, device="cuda", dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
        pixels.requires_grad_()
        weight, bias, mean, var = (torch.ones(shape[1], device="cuda", requires_grad=number < 2) for number in range(4))
        running = Running(mean, var, torch.zeros((), dtype=torch.long, device="cuda"), 0.1)
        gradient = torch.randn_like(pixels)
        forms = {
            "groups": partial(group_batch_norm, pixels, weight, bias, running, 8, 1e-5),
            "two_groups": partial(group_batch_norm, pixels, weight, bias, running, 2, 1e-5),
            "plain": partial(F.batch_norm, pixels, mean, var, weight, bias, True, 0.1, 1e-5),
        }
        row = _kernels_of("bf16")
        for name, forward in forms.items():
            row[f"{name}_forward_ms"] = _milliseconds(forward)
            row[f"{name}_both_ms"] = _milliseconds(partial(_gradients, forward, [pixels, weight, bias], gradient))
        rows["x".join(map(str, shape))] = row | {"ratio": row["groups_both_ms"] / row["plain_both_ms"]}
        _so_far(rows)
    return rows


def batchnorm_of_more_programs(folder: Path) -> dict[str, Row]:
    """`batchnorm` by twice as many programs, each with fewer rows."""
    from leoclr.backends.networks import batchnorm_triton

    batchnorm_triton._PROGRAMS, batchnorm_triton._LEAST_ROWS = 2048, 64
    return batchnorm(folder)


def _kernels_of(precision: str) -> Row:
    """Whose kernels BatchNorm's groups have; without Triton's, a row does not show what it is to show."""
    from leoclr.backends.networks.batchnorm_groups import why_no_kernels
    from leoclr.cli.run.devices import DTYPES

    reason = why_no_kernels(DTYPES[precision])
    return {"kernels": "Triton's"} if reason is None else {"kernels": reason, "passed": False}


def _gradients(forward: Callable[[], torch.Tensor], of: list[torch.Tensor], gradient: torch.Tensor) -> object:
    return torch.autograd.grad(forward(), of, gradient)


def _milliseconds(function: Callable[[], object], times: int = 10) -> float:
    """Of one call, as in a replayed step: launching from Python would take longer than small kernels do."""
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            function()
    graph.replay()
    torch.cuda.synchronize()
    began = time.monotonic()
    for _ in range(times):
        graph.replay()
    torch.cuda.synchronize()
    return 1000 * (time.monotonic() - began) / times**2


def step(folder: Path, data: str = "small/train", preset: str | None = "cifar10", **changes: str) -> dict[str, Row]:
    """Rate of training from data to update, the share of time spent waiting for data, launches, busy share."""
    from leoclr.cli.config.resolve import resolve
    from leoclr.cli.preflight.checks import facts_of
    from leoclr.cli.run.devices import accelerated, check_kernels
    from leoclr.cli.training import build
    from leoclr.cli.training.data import TrainingData
    from leoclr.cli.training.graph import use_graph
    from leoclr.cli.training.step import RunLength, TrainStep
    from leoclr.datasets.loading.device_feed import Pace

    given = {"train.precision": _precision()} if CARD else {"encoder.width": "16", "data.batch_size": "64"}
    given |= {"data.train": str(folder / data), "run.trackers": "", "moco.queue": "4096"}
    given |= {name.replace("__", "."): value for name, value in changes.items()}
    settings = resolve(preset, None, {}, given).settings
    with accelerated(settings, folder) as accelerator:
        loaded = TrainingData(settings, accelerator)
        settings, device = loaded.settings, accelerator.device
        began = time.monotonic()
        check_kernels(device, settings.train.precision)  # a run does it before its steps, too
        kernels = time.monotonic() - began
        began = time.monotonic()
        facts = facts_of(settings, len(loaded.index), 1)
        method = build.method(settings, device, len(loaded.index))
        length = RunLength(1_000_000, loaded.plan.steps_per_epoch)
        take = TrainStep(settings, accelerator, method, facts.pairs, facts.micro, length, loaded.make_views)
        notes: list[str] = []
        use_graph(take, notes.append)
        batches, pace, waited = loaded.batches(0, 1 << 30), Pace(device), [0.0]

        def one(number: int) -> torch.Tensor:
            asked = time.monotonic()
            batch = next(batches)
            waited[0] += time.monotonic() - asked
            loss = take(batch.inputs, number).loss
            pace.step_taken()
            return loss

        losses = [float(one(0))]
        first = time.monotonic() - began
        _so_far({"": {"kernels_s": kernels, "first_step_s": first}})  # most of it is cuDNN's search, which may be long
        for number in range(1, WARM):
            one(number)
        _settled()
        ready = time.monotonic() - began
        began, waited[0], number = time.monotonic(), 0.0, WARM
        while time.monotonic() - began < SECONDS:
            loss = one(number)
            number += 1
        losses.append(float(loss))
        seconds = time.monotonic() - began
        count = number - WARM
        row: Row = {
            "images_per_second": count * settings.data.batch_size / seconds,
            "step_ms": 1000 * seconds / count,
            "waiting": waited[0] / seconds,
            "precision": settings.train.precision,
            "kernels_s": kernels,
            "first_step_s": first,
            f"first_{WARM}_steps_s": ready,
            "loss_first": losses[0],
            "loss_last": losses[1],
        }
        row |= {"graph": notes[0] if notes else "replayed" if take.replay else "no"}
        row |= _kernels_of(settings.train.precision) if CARD else {}
        _so_far({"": row})
        return {"": row | _profiled(partial(one, number), seconds / count) | _memory()}


def step_with_all_plans(folder: Path) -> dict[str, Row]:
    """`step` where cuDNN tries as many algorithms for each convolution as torch lets it: what the bound costs."""
    from leoclr.cli.run import devices

    devices._CUDNN_PLANS = 10
    return step(folder)


def step_without_search(folder: Path) -> dict[str, Row]:
    """`step` where cuDNN takes its first guess for each convolution: what the search costs at the start, and gains."""
    from leoclr.cli.run import devices

    devices._CUDNN_SEARCH = False
    return step(folder)


def operations(folder: Path) -> dict[str, Row]:
    """Launches of a step without a graph, counted on a processor."""
    command = [sys.executable, str(ROOT / "benchmarks" / "count_operations.py"), "--json"]
    counted = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {"": {name: counted[name] for name in ("views", "step", "all")}}


def host(folder: Path) -> dict[str, Row]:
    """What the host does for a replayed step of 512 images, on one core: it draws in a thread, fills and launches."""
    from leoclr.cli.config.augmentation import augmentation_spec
    from leoclr.cli.config.resolve import resolve
    from leoclr.cli.run.devices import accelerated
    from leoclr.cli.training import build
    from leoclr.cli.training.graph import StepGraph
    from leoclr.cli.training.step import RunLength, StepResult, TrainStep
    from leoclr.datasets.images.augmentation import view_specs
    from leoclr.datasets.loading.plan import Plan
    from leoclr.datasets.loading.resident import ResidentImages, resident_batches
    from leoclr.datasets.loading.view_maker import ViewMaker

    given = {"run.device": "cpu", "run.trackers": "", "data.train": "none", "augmentation.executor": "device"}
    settings = resolve("cifar10", None, {}, given | {"encoder.width": "16"}).settings
    policy, spec, batch = settings.view_policy, augmentation_spec(settings), settings.data.batch_size
    pixels = torch.randint(256, (4 * batch, 3, 32, 32), dtype=torch.uint8)

    def drawn(start: int, steps: int) -> list[Any]:
        plan = Plan((len(pixels),), batch, 0)
        return list(resident_batches(ResidentImages(pixels, {}), plan, policy, spec, start, start + steps))

    def replays_nothing(body: Callable[[], StepResult]) -> Callable[[], StepResult]:
        result = body()
        return lambda: result

    with accelerated(settings, folder) as accelerator:
        method = build.method(settings, accelerator.device, len(pixels))
        make = ViewMaker(view_specs(policy, spec), pixels)
        take = TrainStep(settings, accelerator, method, policy.pairs, batch, RunLength(1000, 4), make)
        take.replay = StepGraph(
            take.body, take.seed, method, take.optimizer, accelerator.device, False, print, replays_nothing
        )
        for each in drawn(0, 4):
            take(each.inputs, each.step)
        torch.set_num_threads(1)
        steps = 100
        began = time.process_time()
        batches = drawn(4, steps)
        draws = time.process_time() - began
        began = time.process_time()
        for each in batches:
            take(each.inputs, each.step)
        fills = time.process_time() - began
    draw_ms, fill_ms = 1000 * draws / steps, 1000 * fills / steps
    row: Row = {"draw_ms": draw_ms, "fill_ms": fill_ms, "both_ms": draw_ms + fill_ms}
    return {"": row | {"passed": draw_ms + fill_ms < 4}}


def features(folder: Path) -> dict[str, Row]:
    """Features of resident images, ResNet-18 at 32 px."""
    from leoclr.backends.networks.backbones import build_backbone
    from leoclr.datasets.loading.resident import load_resident
    from leoclr.datasets.shards.locate import open_data
    from leoclr.evals.features.extract import Precision, extract_features
    from leoclr.evals.features.preprocessing import Preprocessing, WholeImage

    device = torch.device("cuda" if CARD else "cpu")
    index = open_data([str(folder / "small" / "train")])
    resident = load_resident(index, device, min(16, os.cpu_count() or 1))
    backbone = build_backbone("resnet18", "cifar", 64 if CARD else 16).to(device).to(memory_format=torch.channels_last)
    preprocessing = Preprocessing(WholeImage(32), (0.5,) * 3, (0.2,) * 3)
    rows: dict[str, Row] = {}
    precisions: tuple[Precision, ...] = ("float32", "bf16") if CARD else ("float32",)
    for precision in precisions:
        for batch_size in (256, 1024):
            for _ in range(2):  # the first time chooses algorithms
                began = time.monotonic()
                extract_features(
                    backbone, index, preprocessing, batch_size=batch_size, device=device, precision=precision,
                    resident=resident,
                )  # fmt: skip
                seconds = time.monotonic() - began
            rows[f"{precision}, batches of {batch_size}"] = {"images_per_second": len(index) / seconds}
            _so_far(rows)
    return rows


def photographs(folder: Path) -> dict[str, Row]:
    """Three views of 224 px as training gets them, without a step: decoding and crops by all cores."""
    from leoclr.cli.config.resolve import resolve
    from leoclr.cli.run.devices import accelerated
    from leoclr.cli.training.data import TrainingData

    given = {"data.train": str(folder / "photographs"), "run.trackers": "", "augmentation.executor": "device"}
    settings = resolve(None, None, {}, given | {"data.batch_size": "256" if CARD else "32"}).settings
    with accelerated(settings, folder) as accelerator:
        loaded = TrainingData(settings, accelerator)
        batches = loaded.batches(0, 1 << 30)
        for _ in range(2 * loaded.workers):
            next(batches)  # made while the processes started
        began, images = time.monotonic(), 0
        while time.monotonic() - began < 2 * SECONDS:
            images += len(next(batches).samples)
        _settled()
        seconds = time.monotonic() - began
    return {"": {"images_per_second": images / seconds, "workers": loaded.workers}}


def _precision() -> str:
    """Of training: bf16, where the GPU computes in it."""
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"


def _so_far(rows: dict[str, Row]) -> None:
    """Tell the rows that are done, for the case that the part is ended."""
    print(json.dumps(rows), flush=True)


def _settled() -> None:
    if CARD:
        torch.cuda.synchronize()


def _memory() -> Row:
    return {"memory_gib": torch.cuda.max_memory_allocated() / 2**30} if CARD else {}


def _profiled(one: Callable[[], object], seconds: float) -> Row:
    """Operations a step by torch's profiler: on a GPU launches, and the share of the time that kernels run.

    Args:
        seconds: That a step takes without the profiler, which slows it.
    """
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if CARD else [])]
    os.environ.setdefault("TEARDOWN_CUPTI", "0")  # as torch does for its own graphs: its end may crash beside one
    with profile(activities=kinds) as profiler:
        for _ in range(PROFILED):
            one()
        _settled()
    events = profiler.events() or []
    host = [event.name for event in events if event.device_type == DeviceType.CPU]
    operations = sum(name.startswith("aten::") for name in host) / PROFILED
    if not CARD:
        return {"operations": operations}
    launches = sum(name.startswith(("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")) for name in host)
    on_card = (event for event in events if event.device_type == DeviceType.CUDA)
    kernels = [event for event in on_card if not getattr(event, "is_user_annotation", False)]  # which span many
    if not kernels:
        return {"operations": operations, "launches": "the profiler may not look at this GPU"}
    busy = sum(event.time_range.elapsed_us() for event in kernels) / 1e6 / PROFILED
    return {"launches": launches / PROFILED, "operations": operations, "busy": busy / seconds}


def ranks(folder: Path) -> dict[str, Row]:
    """Two processes on one device beside one: the largest difference of losses, gradients, keys and queue."""
    from safetensors.torch import load_file

    program, found = ROOT / "tests" / "programs" / "backend_ranks.py", []
    for world in (1, 2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        group = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        group["LEOCLR_TEST_DEVICE"] = "cuda:0" if CARD else "cpu"
        environment = {name: value for name, value in os.environ.items() if name != "LEOCLR_TEST_DEVICE"} | group
        output = str(folder / f"world{world}-RANK.safetensors")
        processes = [
            subprocess.Popen([sys.executable, str(program), output], env=environment | {"RANK": str(rank)})
            for rank in range(world)
        ]
        if any([process.wait() for process in processes]):
            raise RuntimeError("a process failed")
        found.append(load_file(output.replace("RANK", "0")))
    names = [name for name in found[0] if not name.startswith("traffic.")]  # bytes sent, which one process has none of
    difference = max(
        float(((found[0][name] - found[1][name]) / (1 + found[0][name].abs())).abs().max()) for name in names
    )
    return {"two processes": {"largest_difference": difference, "passed": difference < 1e-7}}


def run(folder: Path) -> dict[str, Row]:
    """A short training by the command line to a k-NN score, and what scoring it takes."""
    rows: dict[str, Row] = {}
    output = folder / "run"
    small = ["--precision", _precision()] if CARD else ["--set", "encoder.width=16", "--batch-size", "64"]
    command = [
        "train",
        "--preset",
        "cifar10",
        "--data",
        str(folder / "small" / "train"),
        "--epochs",
        "8" if CARD else "1",
    ]
    command += ["--val-data", str(folder / "small" / "test"), "--set", "moco.queue=4096", "--set", "run.trackers="]
    rows["train"] = _command(*command, *small, "--output", str(output), "--json")
    newest = json.loads((output / "metrics.jsonl").read_text().splitlines()[-1])  # the mean has the start in it
    rows["train"]["images_per_second"] = newest.get("images_per_second")
    _so_far(rows)
    for name, scored in (("knn", ["knn"]), ("lbfgs", ["linear", "--protocol", "lbfgs"])):
        rows[f"eval {name}"] = _command("eval", *scored, str(output), "--no-cache", "-o", str(folder / f"{name}.json"))
        results = json.loads((folder / f"{name}.json").read_text())["results"]
        rows[f"eval {name}"]["top1"] = next(iter(results.values()))["top1"]
        _so_far(rows)
    return rows


def _command(*words: str) -> Row:
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "leoclr.cli", *words], capture_output=True, text=True)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    told = json.loads(done.stdout) if "--json" in words else {}
    kept = {name: told[name] for name in ("images_per_second", "loss", "knn") if told.get(name) is not None}
    return {"seconds": time.monotonic() - began, **kept}


_PHOTOGRAPHS: dict[str, Any] = {"data": "photographs", "preset": None, "data__batch_size": "256"}
PARTS: dict[str, Part] = {
    "step": Part(step, 120, 45, card=False),
    "batchnorm": Part(batchnorm, 60, 15),
    "features": Part(features, 60, 15, card=False),
    "run": Part(run, 150, 70, card=False),
    "step, no search": Part(step_without_search, 60, 20),
    "resnet50": Part(partial(step, **_PHOTOGRAPHS), 150, 60),
    "tests": Part(tests, 200, 60, card=False),
    "photographs": Part(photographs, 60, 15, card=False),
    "ranks": Part(ranks, 90, 30, card=False),
    "step, one group": Part(partial(step, moco__bn_splits="1"), 120, 40, card=False),
    "step, no graph": Part(partial(step, train__graph="no"), 120, 40),
    "step, no graph, one group": Part(partial(step, train__graph="no", moco__bn_splits="1"), 120, 40),
    "resnet50, one group": Part(partial(step, **_PHOTOGRAPHS, moco__bn_splits="1"), 150, 60),
    "step, float32": Part(partial(step, train__precision="float32"), 120, 40),
    "step, simclr": Part(partial(step, backend="simclr", data__batch_size="512"), 120, 40),
    "step, compiled": Part(partial(step, train__compile="true"), 180, 90),
    "step, all plans": Part(step_with_all_plans, 120, 45),
    "batchnorm, more programs": Part(batchnorm_of_more_programs, 60, 15),
    "operations": Part(operations, 60, 15, card=False),
    "host": Part(host, 60, 20, card=False),
}


# --- driver ---


@contextmanager
def images(cifar: Path | None) -> Iterator[Path]:
    """A folder with the images, for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="leoclr-gpu-") as folder:
        make_images(Path(folder), cifar)
        yield Path(folder)


def measured(name: str, folder: Path, most: float) -> dict[str, Row]:
    """The rows of a part, from a process of its own that takes `most` seconds at most.

    A row has `error` where it fails or takes longer than its limit, and `unfinished` where it takes longer than `most`.
    """
    inner = folder / f"part-{name.replace(' ', '-').replace(',', '')}"
    inner.mkdir()
    for shared in ("small", "photographs"):
        if (folder / shared).exists():
            (inner / shared).symlink_to(folder / shared)
    limit = PARTS[name].limit * (1 if CARD else 4)
    command = [sys.executable, __file__, "--part", name, "--folder", str(inner)]
    failed: Row = {}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        output, errors = child.communicate(timeout=min(most, limit))
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        output, errors = child.communicate()
        failed = {"error": f"took more than {limit} s"} if limit <= most else {"unfinished": "the time was up"}
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
    told = [line for line in output.splitlines() if line.startswith("{") and line.endswith("}")]
    rows: dict[str, Row] = json.loads(told[-1]) if told else {}
    found = {f"{name}: {row}" if row and row != name else name: values for row, values in rows.items()}
    if child.returncode and not failed:
        failed = {"error": _reason(errors) or f"ended with {child.returncode}"}
    if failed:
        found[name] = found.get(name, {}) | failed | {"printed": errors.splitlines()[-LINES:]}
    return found


def _reason(errors: str) -> str:
    """The line of a traceback that names the error; libraries print advice below it."""
    lines = [line for line in errors.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt|Failure)\b", line)]
    return (named or lines or [""])[-1]


def shown(values: Row) -> str:
    """A row's values in one line."""
    return "  ".join(
        f"{name} {value:,.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
        if name != "printed"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure everything about a GPU.")
    parser.add_argument("--cifar", type=Path, help="shards of CIFAR-10: a folder with train and test")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="parts to run")
    parser.add_argument("--minutes", type=float, default=5.0 if CARD else 30.0, help="for all of it")
    parser.add_argument("--output", type=Path, help="file for the JSON")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.part:
        print(json.dumps(PARTS[chosen.part].run(chosen.folder)))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends the part that runs
    began = time.monotonic()
    device = torch.cuda.get_device_name() if CARD else f"no GPU; {os.cpu_count()} processors"
    report: Row = {"device": device, "torch": torch.__version__, "python": sys.version.split()[0]}
    shared = shutil.disk_usage("/dev/shm").total >> 20 if Path("/dev/shm").is_dir() else None
    headers = Path(sysconfig.get_paths()["include"], "Python.h").exists()
    report |= {"shared_memory_mib": shared, "compiler": shutil.which("cc"), "python_headers": headers, "parts": {}}
    print(f"{device}, torch {torch.__version__}", flush=True)
    names = chosen.only or list(PARTS)
    left_out = {name: "there is no GPU" for name in names if PARTS[name].card and not CARD}
    with images(chosen.cifar) as folder:
        for name in names:
            left = 60 * chosen.minutes - (time.monotonic() - began)
            if left < (PARTS[name].expected if CARD else 15):
                left_out.setdefault(name, "the time was up")
            if name in left_out:
                continue
            for row, values in measured(name, folder, left).items():
                report["parts"][row] = values
                print(f"{row:28} {shown(values)}", flush=True)
            if chosen.output:
                chosen.output.write_text(json.dumps(report, indent=1) + "\n")
    report |= {"left_out": left_out, "seconds": time.monotonic() - began}
    for reason in dict.fromkeys(left_out.values()):
        print(f"left out, as {reason}: {'; '.join(name for name in left_out if left_out[name] == reason)}")
    print(f"{report['seconds']:.0f} s")
    if chosen.output:
        chosen.output.write_text(json.dumps(report, indent=1) + "\n")
    if any("error" in values or values.get("passed") is False for values in report["parts"].values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
