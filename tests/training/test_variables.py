"""What the environment holds changes nothing that is computed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from leoclr.cli.config.settings import Settings
from leoclr.cli.run.variables import drop_what_changes_results, settle_launch
from leoclr.cli.training.trainer import train
from leoclr.datasets.errors import RunError

MakeShards = Callable[..., Path]
TinySettings = Callable[..., Settings]

HOSTILE = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_DYNAMO_BACKEND": "EAGER",
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_TORCH_DEVICE": "meta",
    "PARALLELISM_CONFIG_TP_SIZE": "2",
    "ONEDNN_DEFAULT_FPMATH_MODE": "ANY",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "ATEN_CPU_CAPABILITY": "default",
    "NPY_DISABLE_CPU_FEATURES": "AVX2",
    "MKL_CBWR": "COMPATIBLE",
    "MKL_NUM_THREADS": "2",
    "OMP_DYNAMIC": "true",
    "JSIMD_FORCENONE": "1",
    "NVIDIA_TF32_OVERRIDE": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":0:0",
    "WORLD_SIZE": "1",
    "RANK": "0",
    "LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_SIZE": "1",
}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.name}:{name}": tensor
        for file in sorted(run.glob("checkpoints/*/*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first and first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_hostile_environment_leaves_the_weights_alone(
    make_shards: MakeShards, tiny_settings: TinySettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings(make_shards((24,)), train__epochs="1", train__precision="float32")
    train(settings, tmp_path / "clean", None, [], resume=False)
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
    train(settings, tmp_path / "hostile", None, [], resume=False)
    assert_same_weights(tmp_path / "clean", tmp_path / "hostile")


@pytest.mark.slow
def test_nor_do_variables_that_libraries_read_when_they_are_loaded(make_shards: MakeShards, tmp_path: Path) -> None:
    data = make_shards((24,))
    options = ("--batch-size", "8", "--epochs", "1", "--device", "cpu", "--workers", "1", "--precision", "float32")
    tiny = ("data.image_size=32", "encoder.backbone=resnet18", "encoder.width=16", "moco.queue=16", "moco.bn_splits=2")
    command = [sys.executable, "-m", "leoclr.cli", "train", "--data", str(data), *options]
    command += [word for setting in (*tiny, "run.trackers=") for word in ("--set", setting)]
    for name, extra in (("clean", dict[str, str]()), ("hostile", HOSTILE)):
        environment = {key: value for key, value in os.environ.items() if key not in HOSTILE} | extra
        done = subprocess.run(
            [*command, "--output", str(tmp_path / name)],
            env=environment | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4" in done.stderr) == bool(extra)
        assert "\ndone in" in done.stderr
    assert_same_weights(tmp_path / "clean", tmp_path / "hostile")


def test_what_is_taken_out_is_named_unless_it_means_nothing() -> None:
    environment = {"ACCELERATE_MIXED_PRECISION": "no", "MKL_CBWR": "AVX2", "PATH": "/bin", "ACCELERATE_LOG_LEVEL": "x"}
    assert drop_what_changes_results(environment) == ["MKL_CBWR=AVX2"]
    assert environment == {"PATH": "/bin", "ACCELERATE_LOG_LEVEL": "x"}


def test_threads_are_those_of_torch_for_all_libraries() -> None:
    environment = {"OMP_NUM_THREADS": "4", "MKL_NUM_THREADS": "4", "OPENBLAS_NUM_THREADS": "1"}
    assert drop_what_changes_results(environment) == ["OPENBLAS_NUM_THREADS=1"]
    assert environment == {"OMP_NUM_THREADS": "4"}


COMPLETE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"WORLD_SIZE": None}, "RANK=1, but WORLD_SIZE is not set"),
        ({"WORLD_SIZE": "1"}, "RANK=1, but WORLD_SIZE is 1"),
        ({"WORLD_SIZE": None, "RANK": None, "LOCAL_RANK": "3"}, "LOCAL_RANK=3, but WORLD_SIZE is not set"),
        ({"RANK": None}, "WORLD_SIZE=2, but RANK is not set"),
        ({"MASTER_ADDR": None, "MASTER_PORT": None}, "MASTER_ADDR and MASTER_PORT are not set"),
        ({"LOCAL_RANK": None}, "LOCAL_RANK is not set"),
        ({"RANK": "2"}, "RANK=2, but WORLD_SIZE=2"),
        ({"RANK": "-1"}, "RANK='-1' is no whole number from 0"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two' is no whole number from 1"),
        ({"LOCAL_WORLD_SIZE": "1"}, "LOCAL_RANK=1, but LOCAL_WORLD_SIZE=1"),
        ({"MASTER_PORT": "x"}, "MASTER_PORT='x'"),
        ({"RANK": None, "LOCAL_RANK": None, "WORLD_SIZE": None, "OMPI_COMM_WORLD_SIZE": "4"}, "mpirun or srun"),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": None, "PMI_SIZE": "2"}, "PMI_SIZE=2: mpirun or srun"),
    ],
)
def test_half_a_launch_is_refused_by_name(changes: dict[str, str | None], message: str) -> None:
    environment = {name: value for name, value in (COMPLETE | changes).items() if value is not None}
    with pytest.raises(RunError, match=message):
        settle_launch(environment)


def test_a_whole_launch_stays_and_one_process_needs_none() -> None:
    environment = COMPLETE | {"OMPI_COMM_WORLD_SIZE": "8"}
    settle_launch(environment)
    assert environment == COMPLETE
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_PORT": "x", "PMI_SIZE": "1", "HOME": "/"}
    settle_launch(alone)
    assert alone == {"HOME": "/"}
