"""How many operations a step launches on a GPU, counted on a processor by benchmarks/count_operations.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("triton", reason="the kernels that are counted are Triton's")
PROGRAM = Path(__file__).parents[2] / "benchmarks" / "count_operations.py"


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("count_operations", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_step_of_the_preset_is_a_few_hundred_launches(program: ModuleType, tmp_path: Path) -> None:
    views, step = program.count({}, tmp_path)
    assert views["the jitter's kernels"] == 2 and "bmm" in views
    assert step["BatchNorm's kernels"] == 2 * 2 * 20  # the queries' pass and the keys', of 20 layers
    assert step["BatchNorm's kernels, backward"] == 2 * 20
    assert step["convolution"] == 2 * 20 and step["convolution_backward"] == 20
    assert 300 < views.total() + step.total() < 600


def test_groups_of_batch_norm_cost_few_launches(program: ModuleType, tmp_path: Path) -> None:
    of_groups, plain = (program.count({"moco.bn_splits": splits}, tmp_path)[1].total() for splits in ("8", "1"))
    assert of_groups - plain < 40
