"""The command line as the tests of scores call it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from leoclr.cli.commands.app import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`command_line("eval", "knn", ...)` in `tmp_path`, with the cache there; gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return int(str(exit.value.code)), captured.out, captured.err

    return call
