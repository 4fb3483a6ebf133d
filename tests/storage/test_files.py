"""A result replaces a file, and nothing that is no file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from leoclr.datasets.errors import RunError
from leoclr.datasets.files import writable, write_atomic


def test_a_pipe_or_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    """As the superuser, a rename to /dev/null takes the device away from the whole system."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(OSError, match="is a device, pipe or socket; name a file"):
            write_atomic(path, b"new")
    assert stat.S_ISFIFO(pipe.stat().st_mode) and link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe"]


def test_a_file_and_a_link_that_leads_nowhere_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for name in ("file", "link", "new"):
        write_atomic(tmp_path / name, b"new")
        assert (tmp_path / name).read_bytes() == b"new"


def test_the_folder_of_a_file_that_was_asked_for_is_made_and_what_stands_in_the_way_is_one_line(tmp_path: Path) -> None:
    with writable(tmp_path / "a" / "b" / "file") as temporary:
        temporary.write_bytes(b"new")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"new"
    for taken in (tmp_path / "a", tmp_path / "a" / "b" / "file" / "below"):
        with pytest.raises(RunError) as refused, writable(taken) as temporary:
            temporary.write_bytes(b"new")
        assert str(refused.value).startswith(f"{taken}: cannot be written (")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "file"]
