"""Data that the tests make: shards of small random pictures, written by webdataset itself. And the option --slow."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from leoclr.cli.config.resolve import resolve
from leoclr.cli.config.settings import Settings
from leoclr.cli.run.variables import drop_what_changes_results
from leoclr.datasets.shards.scan import build_index

if not torch.cuda.is_available():  # the GPU's kernels run on the processor; to be said before Triton is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

torch.set_num_threads(1)  # several change sums in their last bits, and keep tests that run side by side waiting
drop_what_changes_results(os.environ)  # a machine's own variables would add a line to what commands print
if torch.cuda.is_available():  # torch reads it at the first matrix product, which may come before a deterministic run
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.ones(8, 8, device="cuda").mm(torch.ones(8, 8, device="cuda"))
    del os.environ["CUBLAS_WORKSPACE_CONFIG"]
os.environ["TERM"] = "xterm-256color"  # a dumb terminal has no bar

MakeShards = Callable[..., Path]
MakeTinted = Callable[..., Path]
TinySettings = Callable[..., Settings]
TinyConfig = Callable[..., Path]

# The run of seconds that the tests train.
TINY: dict[str, object] = {
    "data.batch_size": 8,
    "data.image_size": 16,
    "encoder.backbone": "resnet18",
    "encoder.stem": "cifar",
    "encoder.width": 16,
    "moco.queue": 16,
    "moco.bn_splits": 2,
    "run.workers": 0,
    "run.device": "cpu",
    "run.trackers": [],
}


def png(number: int, side: int = 16) -> bytes:
    """A picture that depends on its number: smooth colours, so that crops of it are alike."""
    generator = np.random.default_rng(number)
    small = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((side, side), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip slow tests. With CI in the environment, those marked `slow(ci=True)` run all the same.

    Files with slow tests come first: with several processes, none is left alone with a long file at the end.
    """
    long_files = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long_files)
    if config.getoption("--slow"):
        return
    for item in items:
        slow = item.get_closest_marker("slow")
        if slow and not (slow.kwargs.get("ci") and os.environ.get("CI")):
            item.add_marker(pytest.mark.skip(reason="slow; --slow runs it"))


@pytest.fixture
def make_shards(tmp_path: Path) -> MakeShards:
    """`make_shards(sizes, name="data", labelled=True, classes=4, bad=(), labels=())` writes one shard per size and
    returns the folder. Samples whose number is in `bad` are not images; `labels` are texts to take in turn."""

    def make(
        sizes: tuple[int, ...],
        name: str = "data",
        labelled: bool = True,
        classes: int = 4,
        bad: tuple[int, ...] = (),
        labels: tuple[bytes, ...] = (),
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        number = 0
        for shard, size in enumerate(sizes):
            with webdataset.TarWriter(str(folder / f"{Path(name).name}-{shard:06d}.tar"), encoder=False) as writer:
                for _ in range(size):
                    sample = {"__key__": f"{number:05d}", "png": b"not an image" if number in bad else png(number)}
                    if labelled:
                        sample["cls"] = labels[number % len(labels)] if labels else str(number % classes).encode()
                    writer.write(sample)
                    number += 1
        return folder

    return make


@pytest.fixture
def tiny_settings() -> TinySettings:
    """`tiny_settings(data, **changes)`: `TINY` with a checkpoint each epoch and `section__key="value"` changed."""
    flags = {name: "" if value == [] else str(value) for name, value in TINY.items()} | {"run.checkpoint_epochs": "1"}

    def make(data: Path, **changes: str) -> Settings:
        changed = {name.replace("__", "."): value for name, value in changes.items()}
        return resolve(None, None, {}, flags | {"data.train": str(data)} | changed).settings

    return make


@pytest.fixture
def tiny_config(tmp_path: Path) -> TinyConfig:
    """`tiny_config(**changes)` writes a settings file of `TINY`, a log line for each step, and `section__key=value`
    changed."""

    def make(**changes: object) -> Path:
        values = TINY | {"run.log_steps": 1} | {name.replace("__", "."): value for name, value in changes.items()}
        path = tmp_path / "tiny.toml"
        path.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in values.items()))
        return path

    return make


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[..., str]]:
    """`serve(folder)` starts a web server for a folder (range_server.py) and returns its address; with the file of a
    certificate and its key, one that speaks TLS."""
    servers: list[subprocess.Popen[str]] = []

    def start(folder: Path, certificate: Path | None = None) -> str:
        script = Path(__file__).with_name("range_server.py")
        server = subprocess.Popen(
            [sys.executable, str(script), str(folder), *([str(certificate)] if certificate else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        servers.append(server)
        assert server.stdout is not None
        return f"http{'s' if certificate else ''}://127.0.0.1:{int(server.stdout.readline())}"

    yield start
    for server in servers:
        server.communicate()


@pytest.fixture
def make_tinted(tmp_path: Path) -> MakeTinted:
    """`make_tinted(name, labels, seed=0, keys=None)` packs noise, 16 px, with a tint for each of the classes blue,
    green and red into one shard with its index, and returns the folder. Keys are numbers unless given."""

    def make(
        name: str, labels: Sequence[int], seed: int = 0, side: int = 16, keys: Sequence[str] | None = None
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        random = np.random.default_rng(seed)
        with webdataset.TarWriter(str(folder / "data-000000.tar"), encoder=False) as writer:
            for number, label in enumerate(labels):
                pixels = random.integers(0, 120, (16, 16, 3))
                pixels[:, :, 2 - label] += 60
                buffer = io.BytesIO()
                Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
                key = keys[number] if keys else f"{number:05d}"
                writer.write({"__key__": key, "png": buffer.getvalue(), "cls": str(label).encode()})
        build_index([folder / "data-000000.tar"], ("blue", "green", "red")).save(folder / "data.index.json")
        return folder

    return make
