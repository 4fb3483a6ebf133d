"""What a step needs is estimated before the first one, and refused where it is not there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from leoclr.cli.config.settings import Settings
from leoclr.cli.preflight import memory
from leoclr.cli.preflight.disk import check_disk
from leoclr.cli.preflight.memory import StepMemory, check_memory, estimate, free_bytes
from leoclr.cli.training import build
from leoclr.cli.training.trainer import train
from leoclr.datasets.errors import RunError

CPU = torch.device("cpu")
TinySettings = Callable[..., Settings]


def estimated(settings: Settings, micro: int, workers: int = 0) -> StepMemory:
    method = build.method(settings, CPU, images=100)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    found = estimate(method, settings, micro, workers)
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    return found


def test_activations_grow_with_the_batch_and_the_state_does_not(tiny_settings: TinySettings, tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path)
    small, large = estimated(settings, 8), estimated(settings, 16)
    assert small.state == large.state and small.processes == large.processes
    assert large.activations == pytest.approx(2 * small.activations, rel=0.02)
    parameters = sum(p.nbytes for p in build.method(settings, CPU, images=100).parameters())
    assert parameters < small.state < 3 * parameters  # a copy without gradient, one with gradient and momentum


def test_loader_processes_count_on_the_host_alone(tiny_settings: TinySettings, tmp_path: Path) -> None:
    found = estimated(tiny_settings(tmp_path), 8, workers=3)
    assert found.loaders > 3 * (100 << 20)
    assert found.needed("cpu") - found.needed("cuda") == found.loaders


@pytest.mark.parametrize(("free", "refused"), [(1 << 40, False), (1 << 20, True)])
def test_a_step_that_does_not_fit_is_refused_before_it(
    free: int, refused: bool, tiny_settings: TinySettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda _: free)
    settings = tiny_settings(tmp_path)
    method = build.method(settings, CPU, images=100)
    if refused:
        with pytest.raises(RunError, match="a step needs about .* GiB, and 0.0 GiB are free on this machine; take "):
            check_memory(method, settings, 8, 0, CPU)
    else:
        assert check_memory(method, settings, 8, 0, CPU) == []


def test_advice_names_a_batch_that_fits(
    tiny_settings: TinySettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings(tmp_path, data__batch_size="64")
    rest = StepMemory(state=0, activations=8 << 30, loaders=0, processes=1 << 30)
    monkeypatch.setattr(memory, "free_bytes", lambda _: 3 << 30)
    with pytest.raises(RunError, match="--batch-size 16, or --set train.accumulation=4 for the same batch in 4 parts"):
        memory.refuse_too_much(rest, CPU, settings)
    nearly = StepMemory(state=0, activations=2 << 30, loaders=0, processes=int(1.2 * (1 << 30)))
    (warning,) = memory.refuse_too_much(nearly, CPU, settings)
    assert "if it ends for lack of memory" in warning


def test_free_memory_is_read_from_the_system() -> None:
    free = free_bytes(CPU)
    assert free is None or free > 1 << 20


def test_what_the_cache_of_files_holds_in_a_container_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"max": "1000", "current": "900", "stat": "anon 200\ninactive_file 600\nactive_file 100\n"}

    def number(file: Path, read: Callable[[str], int]) -> int | None:
        return read(texts[file.suffix[1:]]) if file.name.startswith("memory.") else None

    monkeypatch.setattr(memory, "_number", number)
    assert free_bytes(torch.device("cpu")) == 700


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_a_disk_without_room_for_a_checkpoint_is_told_before_the_first_step(
    name: str, tiny_settings: TinySettings, make_shards: Callable[..., Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    settings = tiny_settings(make_shards((16,)), optimizer__name=name, train__epochs="1")
    written = Path(train(settings, tmp_path / "run", None, ["test"], resume=False).checkpoint)
    needed = sum(file.stat().st_size for file in written.glob("*.safetensors"))
    assert "is due" not in capsys.readouterr().err
    method = build.method(settings, CPU, images=16)
    for free, told in ((0.98 * needed, True), (1.02 * needed, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda place, free=free: shutil._ntuple_diskusage(0, 0, int(free)))
        assert bool(check_disk(tmp_path / "new" / "run", method, name)) == told
