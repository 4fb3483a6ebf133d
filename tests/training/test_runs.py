"""Finding runs and checkpoints, and one writer at a time."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from leoclr.cli.run import lock
from leoclr.cli.run.checkpoint import Sound, save_checkpoint
from leoclr.cli.run.folder import RunFolder, find_checkpoint, newest_run
from leoclr.cli.run.lock import RunLock
from leoclr.cli.run.recorded import recorded_settings
from leoclr.datasets.errors import CheckpointError, RunError


def path_of_checkpoint(path: Path | None) -> Path:
    found = find_checkpoint(path)
    return found.path if isinstance(found, Sound) else found


def make_run(path: Path, started: str, steps: tuple[int, ...] = ()) -> Path:
    run = RunFolder(path)
    run.write({"settings": {}, "started": started})
    for step in steps:
        save_checkpoint(run.checkpoints, step, {"model": {"weight": torch.ones(3)}}, {})
    return path


def test_run_json_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "new" / "run")
    run.write({"settings": {"backend": "simclr"}, "data": {"samples": 3}})
    assert run.read() == {"format": 1, "settings": {"backend": "simclr"}, "data": {"samples": 3}}
    assert [path.name for path in run.path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("when", ["before", "during"])
def test_nothing_is_saved_where_a_run_has_vanished(tmp_path: Path, when: str) -> None:
    run = RunFolder(make_run(tmp_path / "run", "2026-01-01T00:00:00"))
    if when == "before":
        run.path.rename(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="run has vanished"), run.still_there():
        run.path.rename(tmp_path / "elsewhere")
        save_checkpoint(run.checkpoints, 1, {"model": {"weight": torch.ones(3)}}, {})
    assert not run.path.exists()


def test_a_save_that_fails_in_a_run_that_is_there_says_why(tmp_path: Path) -> None:
    run = RunFolder(make_run(tmp_path / "run", "2026-01-01T00:00:00"))
    run.checkpoints.write_text("a file where a folder should be")
    with pytest.raises(CheckpointError, match="cannot write checkpoint"), run.still_there():
        save_checkpoint(run.checkpoints, 1, {"model": {"weight": torch.ones(3)}}, {})


DEEP = "[" * 100_000  # Python's parser gives up with another error than for what is no JSON


@pytest.mark.parametrize(
    "content", [None, "", "[]", '{"format": 99}', DEEP, '{"format": 1, "settings": 3}', '{"format": 1, "data": []}']
)
def test_a_missing_or_damaged_run_json_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunError, match=str(tmp_path)):
        RunFolder(tmp_path).read()


@pytest.mark.parametrize("data", ["{}", '{"train": "a.tar", "val": []}', '{"train": [1], "val": []}'])
def test_a_run_json_that_names_no_data_is_told(data: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(f'{{"format": 1, "data": {data}}}')
    with pytest.raises(RunError, match="does not say where the data lies"):
        RunFolder(tmp_path).data()
    RunFolder(tmp_path).write({"data": {"train": ["a.tar", "b.tar"], "val": []}})
    assert RunFolder(tmp_path).data() == (("a.tar", "b.tar"), ())


@pytest.mark.parametrize(
    "settings",
    ["{}", '{"backend": []}', '{"backend": "absent"}', '{"backend": {"moco": 1}, "train": 3}', '{"encoder": null}'],
)
@pytest.mark.parametrize("method", ["null", "[]", '{"package": 7}'])
def test_settings_of_a_run_that_are_none_are_named(settings: str, method: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(f'{{"format": 1, "settings": {settings}, "method": {method}, "data": {{}}}}')
    with pytest.raises(RunError, match=str(tmp_path)):
        recorded_settings(tmp_path)


def test_a_failed_write_keeps_the_old_run_json(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write({"epoch": 1})
    with pytest.raises(ValueError, match="JSON"):
        run.write({"epoch": float("nan")})
    assert run.read()["epoch"] == 1


def test_the_newest_run_is_the_one_started_last_wherever_it_lies(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "b", "2026-01-02T10:00:00+00:00")
    newest = make_run(tmp_path / "elsewhere", "2026-01-02T10:30:00+00:00")
    make_run(tmp_path / "runs" / "a", "2026-01-02T11:00:00+02:00")
    assert newest_run(tmp_path) == newest
    quickstart = make_run(tmp_path / "first" / "run", "2026-01-02T10:45:00+00:00")
    assert newest_run(tmp_path) == quickstart


def test_a_run_that_does_not_say_when_it_started_counts_from_its_file(tmp_path: Path) -> None:
    old = make_run(tmp_path / "old", "2026-01-02T10:00:00+00:00")
    silent = make_run(tmp_path / "silent", "")
    os.utime(silent / "run.json", (0, 0))
    assert newest_run(tmp_path) == old
    os.utime(silent / "run.json", (4e9, 4e9))
    assert newest_run(tmp_path) == silent


def test_no_run_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="leoclr train --data"):
        newest_run(tmp_path)


def test_each_way_to_name_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "runs" / "first", "2026-01-02T10:00:00+00:00", (5, 1000000000))
    checkpoints = run / "checkpoints"
    newest = checkpoints / "step-1000000000"
    exported = tmp_path / "weights.pth"
    exported.write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert path_of_checkpoint(None) == Path("runs/first/checkpoints/step-1000000000")
    assert path_of_checkpoint(run) == path_of_checkpoint(checkpoints) == newest
    assert path_of_checkpoint(checkpoints / "step-000000005") == checkpoints / "step-000000005"
    assert path_of_checkpoint(exported) == exported


def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", "2026-01-02T10:00:00+00:00", (1, 2))
    damaged = run / "checkpoints" / "step-000000002" / "model.safetensors"
    damaged.write_bytes(b"")
    assert path_of_checkpoint(run).name == "step-000000001"
    assert f"warning: passed over a damaged checkpoint: {damaged}" in capsys.readouterr().err
    (run / "checkpoints" / "step-000000001" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="no sound checkpoint.*model.safetensors.*manifest.json"):
        path_of_checkpoint(run)


def test_what_is_no_checkpoint_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="gone: no such run, checkpoint or file"):
        path_of_checkpoint(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="neither a run, a checkpoint nor an exported file"):
        path_of_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        path_of_checkpoint(make_run(tmp_path / "run", "2026-01-02T10:00:00+00:00"))


HOLD = """
import sys, time
from pathlib import Path
from leoclr.cli.run.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""

FORK = """
import os, sys, time
from pathlib import Path
from leoclr.cli.run.lock import RunLock
with RunLock(Path(sys.argv[1])):
    if os.fork() == 0:
        print("held", flush=True)  # by the child, once it has run what it does at a fork
    time.sleep(100)
"""


def holder(script: str, run: Path) -> subprocess.Popen[str]:
    """A process in a session of its own that holds the lock of `run`."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(run)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("script", [HOLD, FORK], ids=["alone", "with a worker that outlives it"])
def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path: Path, script: str) -> None:
    first = holder(script, tmp_path)
    try:
        with pytest.raises(RunError, match=f"{tmp_path} is in use by process {first.pid} on {socket.gethostname()}"):
            with RunLock(tmp_path):
                pass
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        with RunLock(tmp_path):
            assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(first.pid, signal.SIGKILL)
        first.communicate()


def test_the_lock_is_free_again_after_the_block_even_when_it_raises(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        with RunLock(tmp_path / "run"):
            raise KeyError
    with RunLock(tmp_path / "run"):
        with pytest.raises(RunError, match=f"process {os.getpid()} "):
            with RunLock(tmp_path / "run"):
                pass


def test_a_lock_is_on_the_file_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run fails and takes its folder away, between the opening of the file and the lock on it."""
    run, take = tmp_path / "run", lock._lock

    def after_the_other_has_gone(descriptor: int) -> None:
        monkeypatch.undo()
        (run / "lock").unlink()
        run.rmdir()
        take(descriptor)

    monkeypatch.setattr(lock, "_lock", after_the_other_has_gone)
    with lock.RunLock(run):
        assert lock.is_locked(run)
        with pytest.raises(RunError, match="is in use by"), lock.RunLock(run):
            pass


def test_a_folder_that_cannot_hold_a_lock_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=f"cannot write to the run folder {tmp_path / 'file' / 'run'}"):
        with RunLock(tmp_path / "file" / "run"):
            pass


@pytest.mark.parametrize("before", ["", "runs", "runs/first"])
def test_a_block_that_fails_leaves_no_folder_that_it_made(before: str, tmp_path: Path) -> None:
    (tmp_path / before).mkdir(parents=True, exist_ok=True)
    run = tmp_path / "runs" / "first"
    with pytest.raises(RunError), RunLock(run):
        raise RunError("refused")
    assert (tmp_path / before).exists() and run.exists() == (before == "runs/first")
    assert (tmp_path / "runs").exists() == (before != "")
    with RunLock(run):
        pass
    assert run.exists()


def test_a_block_that_fails_keeps_what_is_in_the_folder(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "first"
    with pytest.raises(KeyboardInterrupt), RunLock(run):
        (run / "run.json").touch()
        raise KeyboardInterrupt
    assert (run / "run.json").exists()
