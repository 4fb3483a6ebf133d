"""`leoclr runs`: what state a run is in, and the removal of those that nobody needs."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from leoclr.cli.commands.app import main
from leoclr.cli.run.checkpoint import JSON, save_checkpoint
from leoclr.cli.run.folder import RunFolder
from leoclr.cli.run.lock import RunLock, is_locked


def make_run(path: Path, day: int, saved: int | None) -> Path:
    run = RunFolder(path)
    run.write({"settings": {"train": {"epochs": 10}}, "started": f"2026-01-{day:02d}T10:00:00+00:00"})
    lines = [{"step": 40, "epoch": 4.0, "loss": 5.5, "knn": 0.25}, {"step": 45, "epoch": 4.5, "loss": 5.25}]
    run.metrics.write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"step": 4')  # cut by a kill
    if saved is not None:
        save_checkpoint(run.checkpoints, saved, {"model": {"weight": torch.zeros(250)}}, {"steps": 100})
    return path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs in four states."""
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "done", 1, 100)
    make_run(tmp_path / "runs" / "half", 2, 40)
    make_run(tmp_path / "runs" / "never", 3, None)
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "run.json").write_text("{")
    return tmp_path / "runs"


def call(line: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["runs", *shlex.split(line)])
    return int(ended.value.code or 0)


def listed(line: str, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    assert call(f"{line} --json") == 0
    return {Path(run["path"]).name: run for run in json.loads(capsys.readouterr().out)["runs"]}


@pytest.mark.parametrize("settings", [3, {}, {"train": []}, {"train": {"epochs": "ten"}}])
@pytest.mark.parametrize(
    "metrics", ["[" * 100_000, '{"step": 1e999, "epoch": NaN}', f'{{"step": {10**400}, "epoch": 1}}']
)
def test_a_run_with_odd_files_is_listed(
    settings: JSON, metrics: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = RunFolder(folder / "done")
    odd.write({"settings": settings, "started": 3})
    odd.metrics.write_text(metrics)
    (odd.checkpoints / "step-000000100" / "state.json").write_text('{"steps": null}')
    found = listed("", capsys)
    assert found["half"]["state"] == "stopped"
    assert found["done"]["state"] == ("damaged" if settings == 3 else "stopped") and found["done"]["steps"] is None


def test_the_table_has_the_newest_run_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("") == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert table[0] == ["run", "state", "step", "loss", "k-NN", "size", "age"]
    assert [(row[0], row[1]) for row in table[1:]] == [
        ("runs/broken", "damaged"),
        ("runs/never", "empty"),
        ("runs/half", "stopped"),
        ("runs/done", "complete"),
    ]
    assert table[3][2:7] == ["40", "of", "100", "5.250", "25.0%"] and table[3][8] == "kB"


def test_the_json_has_numbers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = listed("", capsys)["half"]
    assert (half["state"], half["step"], half["steps"], half["loss"], half["knn"]) == ("stopped", 40, 100, 5.25, 0.25)
    assert half["bytes"] == sum(file.stat().st_size for file in (folder / "half").rglob("*") if file.is_file())
    never = listed("--state empty", capsys)
    assert list(never) == ["never"] and never["never"]["steps"] == 100  # by its epochs, as nothing is saved


def test_a_run_that_is_written_to_is_running(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLock(folder / "half"):
        assert is_locked(folder / "half")
        half = listed("runs/half", capsys)["half"]
        assert (half["state"], half["step"]) == ("running", 45)  # what is logged, beyond what is saved
        assert call("runs/half --state stopped --prune --yes") == 0
        assert (folder / "half").exists()
    assert not is_locked(folder / "half")


def test_empty_runs_are_pruned_once_that_is_confirmed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--prune") == 2
    assert "error: 1 run would be removed: say so with --yes" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    for answer, gone in ((False, False), (True, True)):
        monkeypatch.setattr("typer.confirm", lambda question, err, said=answer: "remove 1 run, " in question and said)
        assert call("--prune") == 0
        assert (folder / "never").exists() != gone
    assert {path.name for path in folder.iterdir()} == {"done", "half", "broken"}


def test_other_runs_are_removed_where_their_state_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("runs/done --state complete --prune --yes --json") == 0
    assert json.loads(capsys.readouterr().out)["removed"] == ["runs/done"]
    assert {path.name for path in folder.iterdir()} == {"half", "never", "broken"}
    assert call("--state running --prune --yes") == 2


def test_a_link_to_a_run_is_not_followed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = make_run(folder.parent / "elsewhere" / "deep" / "run", 4, None)
    (folder / "link").symlink_to(elsewhere)
    assert call("runs/link --prune --yes") == 0
    assert elsewhere.exists() and "warning: not removed: runs/link is a link" in capsys.readouterr().err


def test_places_without_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "nothing").mkdir()
    assert call("nothing") == 0
    assert capsys.readouterr().out == "no runs\n"
    assert call("nowhere") == 2
    assert capsys.readouterr().err == "error: nowhere: no such folder\n"


def test_a_list_needs_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom leoclr.cli.commands.app import main\n"
        "try:\n    main(['runs'])\nfinally:\n    assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "runs/half" in done.stdout, done.stderr
