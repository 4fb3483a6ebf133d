"""Checkpoints are whole or not there, verified before use, and never unpickled."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from collections import UserDict
from collections.abc import ItemsView, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from leoclr.cli.run.checkpoint import JSON, Sound, load_checkpoint, newest_checkpoint, prune, save_checkpoint
from leoclr.cli.run.folder import find_checkpoint
from leoclr.datasets.errors import CheckpointError
from leoclr.datasets.files import sha256_file


def save(folder: Path, step: int) -> Path:
    tensors = {"model": {"weight": torch.full((3, 4), float(step))}, "optimizer": {"momentum": torch.arange(step)}}
    return save_checkpoint(folder, step, tensors, {"epoch": step // 10, "settings": {"backend": "moco"}})


def run_python(script: str, *arguments: str, **environment: str) -> str:
    """Output of a script in a process of its own, which must end well."""
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def forge_manifest(checkpoint: Path) -> None:
    """Make the manifest agree with whatever lies in the folder, as an attacker would."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for name in manifest["files"]:
        path = checkpoint / name
        manifest["files"][name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    tensors: dict[str, dict[str, Tensor]] = {
        "model": {
            "half": torch.randn(2, 3).bfloat16(),
            "double": torch.tensor([1e-300, -0.0], dtype=torch.float64),
            "scalar": torch.tensor(7),
            "nothing": torch.empty(0, 5),
            "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
            "mask": torch.tensor([True, False]),
        },
        "queue": {"keys": torch.nn.Parameter(torch.randn(8, 2))},
    }
    state: dict[str, JSON] = {"epoch": 3, "lr": 0.1 + 0.2, "settings": {"views": ["a", "b"]}, "best": None}
    path = save_checkpoint(tmp_path, 12, tensors, state)
    assert path == tmp_path / "step-000000012"
    checkpoint = load_checkpoint(path)
    assert (checkpoint.path, checkpoint.step, checkpoint.state) == (path, 12, state)
    assert checkpoint.tensors.keys() == tensors.keys()
    for group, named in tensors.items():
        assert checkpoint.tensors[group].keys() == named.keys()
        for name, tensor in named.items():
            loaded = checkpoint.tensors[group][name]
            assert loaded.dtype == tensor.dtype and torch.equal(loaded, tensor)


def test_one_group_can_be_loaded_alone_and_an_unknown_one_is_named(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    assert list(load_checkpoint(path, groups=("model",)).tensors) == ["model"]
    with pytest.raises(CheckpointError, match="no group 'queue', only model, optimizer"):
        load_checkpoint(path, groups=("queue",))


def test_shared_and_overlapping_tensors_are_saved_in_full(tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    tensors = {"model": {"whole": whole, "same": whole, "part": whole[3:6], "every_other": whole[::2]}}
    loaded = load_checkpoint(save_checkpoint(tmp_path, 1, tensors, {})).tensors["model"]
    assert {name: tensor.tolist() for name, tensor in loaded.items()} == {
        name: tensor.tolist() for name, tensor in tensors["model"].items()
    }


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    first, second = save(tmp_path / "a", 5), save(tmp_path / "b", 5)
    assert sorted(path.name for path in first.iterdir()) == [
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_taken(tmp_path: Path, name: str, damage: str) -> None:
    good, bad = save(tmp_path, 9), save(tmp_path, 10)
    file = bad / name
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(data if damage == "flip" else data[:-1])
    with pytest.raises(CheckpointError, match=str(file)):
        load_checkpoint(bad)
    newest, passed_over = newest_checkpoint(tmp_path)
    assert newest == good
    assert len(passed_over) == 1 and str(file) in passed_over[0]


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "[]",
        "{}",
        '{"format": 2, "step": 1, "files": {"state.json": {}}}',
        '{"format": 1, "step": true, "files": {"state.json": {}}}',
        '{"format": 1, "step": 1, "files": {}}',
        '{"format": 1, "step": 1, "files": {"state.json": {}}}',
        '{"format": 1, "step": 1, "files": {"state.json": 3}}',
        '{"format": 1, "step": 1, "files": {"state.json": {"bytes": "many", "sha256": ""}}}',
        '{"format": 1, "step": NaN, "files": {"state.json": {}}}',
        "[" * 100_000,
    ],
)
def test_a_malformed_manifest_is_refused_by_name(tmp_path: Path, manifest: str) -> None:
    path = save(tmp_path, 1)
    (path / "manifest.json").write_text(manifest)
    with pytest.raises(CheckpointError, match=str(path / "manifest.json")):
        load_checkpoint(path)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "model.bin", "a/b.safetensors", "x.pkl"])
def test_a_manifest_cannot_point_at_other_files(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"][name] = manifest["files"]["state.json"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="only state.json and NAME.safetensors"):
        load_checkpoint(path)


def test_a_file_that_the_manifest_does_not_list_is_ignored(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    (path / "notes.pkl").write_bytes(b"\x80\x04")
    (path / "evil.safetensors").write_bytes(b"\x80\x04")
    assert list(load_checkpoint(path).tensors) == ["model", "optimizer"]


def test_nan_in_the_state_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_checkpoint(tmp_path / "new", 1, {}, {"loss": float("nan")})
    assert not (tmp_path / "new").exists()


class Interrupted(UserDict[str, Tensor]):
    """A group that Ctrl-C meets while it is written."""

    def items(self) -> ItemsView[str, Tensor]:
        raise KeyboardInterrupt


def test_ctrl_c_during_a_save_leaves_only_the_checkpoints_before(tmp_path: Path) -> None:
    good = save(tmp_path, 1)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, 2, {"model": {"w": torch.ones(5)}, "optimizer": Interrupted()}, {})
    assert list(tmp_path.iterdir()) == [good]
    load_checkpoint(good)


def test_leftovers_of_a_killed_save_are_ignored_and_removed_by_the_next(tmp_path: Path) -> None:
    good = save(tmp_path, 1)
    leftover = tmp_path / ".partial-step-000000002"
    shutil.copytree(good, leftover)
    assert newest_checkpoint(tmp_path) == (good, [])
    newest = save(tmp_path, 3)
    assert sorted(tmp_path.iterdir()) == [good, newest]


def test_saving_a_step_again_keeps_a_sound_checkpoint_and_replaces_a_damaged_one(tmp_path: Path) -> None:
    path = save(tmp_path, 4)
    save_checkpoint(tmp_path, 4, {"model": {"weight": torch.zeros(1)}}, {})
    assert load_checkpoint(path).tensors["model"]["weight"].shape == (3, 4)
    (path / "state.json").write_text("{}")
    save_checkpoint(tmp_path, 4, {"model": {"weight": torch.zeros(1)}}, {})
    assert load_checkpoint(path).tensors["model"]["weight"].shape == (1,)


def test_pruning_keeps_the_newest_and_the_protected(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 50):
        save(tmp_path, step)
    prune(tmp_path, 50, keep=2, protect=lambda step: step == 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:09d}" for step in (20, 40, 50)]


def test_pruning_counts_no_checkpoint_after_the_newest_sound_one(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 50):
        save(tmp_path, step)
    prune(tmp_path, 30, keep=1, protect=lambda step: False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:09d}" for step in (30, 40, 50)]


def test_no_checkpoints_is_no_error(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "none") == (None, [])
    prune(tmp_path / "none", 1, keep=1, protect=lambda step: False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_the_checkpoint_before_and_says_how_much_is_needed(small_disk: Path) -> None:
    folder = small_disk / "checkpoints"
    good = save(folder, 1)
    with pytest.raises(CheckpointError, match=r"step-000000002: .*needs 4,000,0\d\d bytes, [12],\d+,\d+ are free"):
        save_checkpoint(folder, 2, {"model": {"weight": torch.ones(1_000_000)}}, {})
    assert list(folder.iterdir()) == [good]
    assert newest_checkpoint(folder) == (good, [])


def test_a_limit_on_the_size_of_a_file_is_told_as_such(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(CheckpointError) as told:
            save_checkpoint(tmp_path, 2, {"model": {"weight": torch.ones(1_000_000)}}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "bytes, more than the limit of 1,000,000 bytes (`ulimit -f`) for a file" in str(told.value)
    assert " free" not in str(told.value) and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=f"cannot write checkpoint {tmp_path / 'file' / 'checkpoints'}"):
        save(tmp_path / "file" / "checkpoints", 1)


KILLS = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from leoclr.cli.run.checkpoint import load_checkpoint, newest_checkpoint, prune, save_checkpoint

folder = Path(sys.argv[1])

def save(step):
    tensors = {name: {"weight": torch.full((50_000,), float(step))} for name in ("model", "optimizer")}
    save_checkpoint(folder, step, tensors, {"step": step})
    prune(folder, 10**9, 1, lambda step: False)

def child(work):
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    return pid

def die_at_event(step, number):
    events = 0
    def hook(name, _):
        nonlocal events
        if name == "open" or name.startswith(("os.", "shutil.")):
            events += 1
            if events == number:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    save(step)

def check(lowest):
    newest, damaged = newest_checkpoint(folder)
    assert not damaged, damaged
    checkpoint = load_checkpoint(newest)
    assert checkpoint.step >= lowest
    for group in checkpoint.tensors.values():
        assert group["weight"].eq(checkpoint.step).all()
    return checkpoint.step

save(1)
killed, leftovers, step, number = 0, 0, 1, 0
while True:
    number += 1
    pid = child(lambda: die_at_event(step + 1, number))
    if os.waitpid(pid, 0)[1] == 0:
        break
    killed += 1
    leftovers += any(folder.glob(".partial-*"))
    step = check(step)

def save_for_ever():
    for later in range(step + 1, step + 100_000):
        save(later)

chance = random.Random(0)
for _ in range(10):
    pid = child(save_for_ever)
    time.sleep(chance.uniform(0.002, 0.08))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    step = check(step)
save(step + 1)
check(step + 1)
assert not any(folder.glob(".partial-*"))
print(killed, leftovers)
"""


def test_kill_at_every_file_operation_and_at_random_instants_leaves_a_sound_newest_checkpoint(tmp_path: Path) -> None:
    killed, leftovers = map(int, run_python(KILLS, str(tmp_path), OMP_NUM_THREADS="1").split())
    assert killed > 10 and leftovers > 5


PICKLES = """
import sys
from pathlib import Path
from leoclr.cli.run.checkpoint import load_checkpoint
from leoclr.datasets.errors import CheckpointError

unpickled = []
sys.addaudithook(lambda name, _: unpickled.append(name) if name == "pickle.find_class" else None)
for path in sys.argv[1:]:
    try:
        load_checkpoint(Path(path))
    except CheckpointError as error:
        print(error)
assert not unpickled
"""


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, evidence: Path) -> None:
        self.evidence = evidence

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.evidence),)


def test_a_planted_pickle_is_refused_by_name_and_not_run(tmp_path: Path) -> None:
    planted = [save(tmp_path / name, 1) / name for name in ("model.safetensors", "state.json", "manifest.json")]
    for file in planted:
        file.write_bytes(pickle.dumps(Malicious(tmp_path / "evidence")))
        if file.name != "manifest.json":
            forge_manifest(file.parent)
    folders = [str(file.parent) for file in planted]
    refusals = run_python(PICKLES, *folders, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1").splitlines()
    assert len(refusals) == 3 and all(str(file) in line for file, line in zip(planted, refusals, strict=True))
    assert not (tmp_path / "evidence").exists()


@pytest.mark.parametrize("argument", ["", "checkpoints", "checkpoints/step-000000001"])
def test_loading_hashes_each_file_once(argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    folder = tmp_path / "checkpoints"
    save_checkpoint(folder, 1, {"model": {"weight": torch.ones(2)}, "queue": {"keys": torch.ones(2)}}, {})
    (tmp_path / "run.json").write_text("{}")

    def hash_of(path: Path) -> str:
        hashed.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr("leoclr.cli.run.checkpoint.sha256_file", hash_of)
    found = find_checkpoint(tmp_path / argument)
    assert isinstance(found, Sound) and found.load(groups=("model",)).step == 1
    assert sorted(hashed) == ["model.safetensors", "queue.safetensors", "state.json"]
