"""Training takes no more memory on more data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "memory.py"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux knows of a process")
def test_ten_times_the_data_take_the_same_memory() -> None:
    printed = subprocess.check_output([sys.executable, PROGRAM, "--images", "1000", "--json"])
    small, large = json.loads(printed)
    assert large["data"] > 9 * small["data"]
    for kind in ("tree", "process"):
        assert large[kind] < 1.05 * small[kind]
