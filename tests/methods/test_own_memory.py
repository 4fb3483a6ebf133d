"""Buffers and parameters of memory that may only be read: a resume writes into them, which would end the process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from leoclr.cli.methods.small_settings import small_settings
from leoclr.cli.training import build
from leoclr.cli.training.own_memory import leave_read_only_memory, writable
from tests.methods.conftest import Install
from tests.methods.test_method_check import INIT, install_with

READ_ONLY = pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")


@READ_ONLY
def test_memory_that_may_only_be_read_is_left_and_what_is_shared_stays_shared(tmp_path: Path) -> None:
    np.arange(16).tofile(tmp_path / "numbers")
    read, array = np.memmap(tmp_path / "numbers", np.int64, "r"), np.zeros(4)
    module = nn.Module()
    module.weight = module.tied = nn.Parameter(torch.as_tensor(read.view(np.float64)))
    kept = {"whole": torch.as_tensor(read), "columns": torch.as_tensor(read).view(4, 4).T}
    for name, tensor in {**kept, "array": torch.from_numpy(array)}.items():
        module.register_buffer(name, tensor)
    leave_read_only_memory(module)
    assert all(writable(each.data_ptr()) for each in (*module.parameters(), *module.buffers()))  # else the next ends us
    module.load_state_dict({name: value + 1 for name, value in module.state_dict().items()})
    assert kept["whole"].tolist() == list(range(1, 17)) and kept["columns"][0].tolist() == [1, 5, 9, 13]
    assert module.weight is module.tied and array.tolist() == [1, 1, 1, 1]
    kept["whole"][4] = -1
    assert kept["columns"][0, 1] == -1 and read[4] == 4


@READ_ONLY
def test_a_method_may_make_a_buffer_of_an_array_that_may_only_be_read(install: Install, tmp_path: Path) -> None:
    np.arange(16).tofile(tmp_path / "labels")
    array = f"numpy.memmap({str(tmp_path / 'labels')!r}, 'int64', 'r')"
    buffer = f"        self.register_buffer('labels', torch.as_tensor({array}))\n"
    name = install_with(install, (INIT, buffer + INIT), ("import copy\n", "import copy\n\nimport numpy\n"))
    method = build.method(small_settings(name), torch.device("cpu"), images=16)
    labels = method.get_buffer("labels")
    assert writable(labels.data_ptr()) and labels.tolist() == list(range(16))
