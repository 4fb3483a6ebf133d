"""Machines without things: a home, a user, standard streams, many file handles."""

from __future__ import annotations

import errno
import os
import pwd
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from leoclr.cli import terminal
from leoclr.cli.commands.base.errors import exit_code
from leoclr.cli.run import devices
from leoclr.datasets.errors import DataError, RunError
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.locate import open_data
from leoclr.datasets.shards.reader import SampleReader
from leoclr.datasets.shards.reindex import write_indexes
from leoclr.datasets.storage.block_cache import BlockCache

MakeShards = Callable[..., Path]


def test_local_data_need_no_home(make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def nobody(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    cache = BlockCache()
    assert len(open_data([str(make_shards((5,)))], cache=cache)) == 5
    with pytest.raises(DataError, match="no home folder; set XDG_CACHE_HOME"):
        cache.prepare()


def test_few_file_handles_are_shared_and_too_few_told(
    make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (12, 12))
    reader = SampleReader(open_data([str(make_shards((1,) * 9))]))
    before = len(os.listdir("/dev/fd"))
    assert len({reader.read(number) for number in range(9)}) == 9
    assert len(os.listdir("/dev/fd")) == before + 3
    reader.close()

    def fail() -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def fail_where_it_is_named() -> int:
        raise DataError(f"a.tar: cannot be read ({os.strerror(errno.EMFILE)})")

    for failure in (fail, fail_where_it_is_named):
        assert exit_code(failure, as_json=False) == 2
        assert "Too many open files" in (told := capsys.readouterr().err) and "may open 12 files" in told


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_log_that_is_full_ends_no_command(make_shards: MakeShards) -> None:
    program = (
        "import sys; from leoclr.cli import __main__ as entry; entry._lose_what_nobody_reads(); "
        "print('lost', file=sys.stderr); sys.stderr.flush(); entry.main()"
    )
    command = [sys.executable, "-c", program, "check", str(make_shards((3,)))]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stderr=full, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0 and "0 faults" in done.stdout


def test_what_the_system_refuses_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: OSError) -> int:
        raise error

    for error in (
        OSError(errno.EROFS, os.strerror(errno.EROFS), "some/folder/x"),
        PermissionError(errno.EACCES, os.strerror(errno.EACCES), "some/folder/x"),
        OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), "some/folder/x"),
    ):
        assert exit_code(lambda: fail(error), as_json=False) == 2  # noqa: B023
        assert capsys.readouterr().err == f"error: some/folder/x: {error.strerror}\n"
    with pytest.raises(OSError, match="bug"):
        exit_code(lambda: fail(OSError("a bug of this project")), as_json=False)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError("Unable to allocate 7 TiB"), "not enough memory within the limit of 3.0 GB (`ulimit -v`) (Unable"),
        (MemoryError(), "not enough memory within the limit of 3.0 GB (`ulimit -v`) (MemoryError)"),
        (ImportError("libx.so: failed to map segment"), "cannot be loaded within the limit of 3.0 GB (`ulimit -v`)"),
        (RuntimeError("can't start new thread"), "starts no further thread or process"),
        (BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)), "starts no further thread or process"),
    ],
)
def test_too_little_memory_is_one_line(
    error: Exception, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (3_000_000_000, -1))

    def fail() -> int:
        raise error

    assert exit_code(fail, as_json=False) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
    with pytest.raises(ImportError, match="no such module"):
        exit_code(lambda: (_ for _ in ()).throw(ImportError("no such module")), as_json=False)


def test_an_index_that_cannot_be_written_is_told_before_the_shards_are_read(
    make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_shards((3,))
    shards = sorted(data.glob("*.tar"))
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda path, mode: False)
        with pytest.raises(DataError, match="nothing can be written there"):
            write_indexes(shards)

    def refuse(self: Index, path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Index, "save", refuse)
    with pytest.raises(DataError, match=r"index.json: the index cannot be written \(Read-only"):
        write_indexes(shards)


def test_closed_streams_stay_out_of_files_and_of_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    terminal.say("lost")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("closed", ["<&- 2>&-", "<&- >&- 2>&-"])
def test_commands_run_without_standard_streams(closed: str, make_shards: MakeShards, tmp_path: Path) -> None:
    data = make_shards((3,))
    done = subprocess.run(["sh", "-c", f'"$0" -m leoclr.cli index "$1" {closed}', sys.executable, str(data)])
    assert done.returncode == 0
    (written,) = data.glob("*.json")
    assert written.read_text().startswith("{")


def test_processes_that_see_different_checkpoints_do_not_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is not shared, or shared late: their weights would differ, and nothing else would tell."""
    monkeypatch.setattr(devices, "gather", lambda own: torch.cat([own, torch.tensor([10])]))
    devices.refuse_different_steps(10, torch.device("cpu"))
    with pytest.raises(RunError, match="different checkpoints, of steps 10, 20; all must see the same run folder"):
        devices.refuse_different_steps(20, torch.device("cpu"))
