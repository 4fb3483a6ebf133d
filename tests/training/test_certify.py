"""`leoclr certify`: what it finds, what it writes, and that it fails where a promise is broken."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from leoclr.cli.commands.app import main
from leoclr.cli.methods import certificate
from leoclr.cli.methods.processes import Ended
from leoclr.cli.methods.session import Session, samples_file
from leoclr.cli.run.checkpoint import save_checkpoint
from leoclr.datasets.loading.plan import Plan

MakeShards = Callable[..., Path]
TinyConfig = Callable[..., Path]
CHECKS = (
    "every image once",
    "two processes equal one",
    "stopped equals uninterrupted",
    "killed equals uninterrupted",
    "other numbers of processes",
)


def certified(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    with pytest.raises(SystemExit) as stopped:
        main(["certify", *arguments, "--output", str(folder), "--json"])
    record: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert json.loads((folder / "certificate.json").read_text()) == record
    assert isinstance(stopped.value.code, int)
    return stopped.value.code, record


def failed_checks(record: dict[str, Any]) -> dict[str, str]:
    return {check["check"]: check["detail"] for check in record["checks"] if not check["passed"]}


class MadeUpSessions:
    """In place of processes: writes what a run of six steps leaves, right but for one fault."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def __call__(self, module: str, arguments: Any, work: str, count: int, threads: int | None) -> list[Ended]:
        session = Session.model_validate_json(work)
        interrupted = session.resume and session.run.name in ("stopped", "killed")
        ends = bool(session.signal) and self.fault != "goes on"
        session.run.mkdir(parents=True, exist_ok=True)
        first = len(list((session.run / "checkpoints").glob("*"))) and max(
            int(path.name[5:]) for path in (session.run / "checkpoints").iterdir()
        )
        last = session.signal_step if ends else session.until
        loss = 2.0 if self.fault == "loss" and count == 3 else 1.0
        with (session.run / "metrics.jsonl").open("a") as file:
            file.writelines(json.dumps({"step": step + 1, "loss": loss}) + "\n" for step in range(first, last))
        for rank in range(count):
            with samples_file(session.run, rank).open("a") as file:
                for step in range(first, last):
                    samples = [12 * step + rank * 12 // count + number for number in range(12 // count)]
                    samples = samples[::-1] if self.fault == "images" and interrupted else samples
                    file.write(json.dumps({"step": step, "samples": samples}) + "\n")
        weight = torch.tensor(1.0 if self.fault == "weights" and interrupted else 0.0)
        tensors = {"model": {"weight": weight}, "optimizer": {"momentum": torch.tensor(0.0)}}
        save_checkpoint(session.run / "checkpoints", last, tensors, {})
        return [Ended(-signal.SIGKILL if session.signal == signal.SIGKILL else 0, "")] * count


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("none", {}),
        ("weights", dict.fromkeys(CHECKS[2:4], "weight in model.safetensors differs")),
        ("images", dict.fromkeys(CHECKS[2:4], "trained on other images")),
        ("goes on", {CHECKS[2]: "did not end at SIGTERM", CHECKS[3]: "did not end at SIGKILL"}),
        ("loss", {CHECKS[4]: "the loss of step 5 is 2 instead of 1"}),
        ("order", {CHECKS[0]: "the order depends on the number of processes"}),
    ],
)
def test_a_broken_promise_fails_its_check_and_the_command(
    make_shards: MakeShards,
    tiny_config: TinyConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: str,
    expected: dict[str, str],
) -> None:
    monkeypatch.setattr(certificate, "run_processes", MadeUpSessions(fault))
    monkeypatch.setattr(certificate, "two_processes", lambda settings, folder: "as one")
    if fault == "order":
        order = Plan.order
        monkeypatch.setattr(Plan, "order", lambda plan, epoch, at: order(plan, epoch + plan.ranks, at))
    arguments = ["--config", str(tiny_config(moco__bn_splits=6)), "--data", str(make_shards((20, 9)))]
    code, record = certified(arguments, tmp_path / "certificate", capsys)
    found = failed_checks(record)
    assert found.keys() == expected.keys() and all(words in found[check] for check, words in expected.items())
    assert (code, record["passed"]) == (int(bool(expected)), not expected)
    assert tuple(check["check"] for check in record["checks"]) == CHECKS
    assert record["changes"]["data.batch_size"] == {"yours": 8, "checked": 12}
    assert record["data"]["samples"] == 29 and len(record["weights"]) == 64 and "torch" in record["versions"]
    page = (tmp_path / "certificate" / "certificate.html").read_text()
    assert ("All checks passed." in page) == (not expected) and record["data"]["digest"] in page


def test_too_few_images_are_refused(
    make_shards: MakeShards, tiny_config: TinyConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["certify", "--config", str(tiny_config()), "--data", str(make_shards((9,)))])
    assert stopped.value.code == 2
    assert "9 images are too few: with these settings a step takes 12" in capsys.readouterr().err


FORGETFUL = """
import os
if os.environ.get("FORGETS"):
    import leoclr.cli.training.state as state
    state.load_optimizer_tensors = lambda optimizer, tensors: None
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("forgets", ["", "1"])
def test_real_runs_keep_the_promises_unless_they_forget_the_momentum(
    make_shards: MakeShards,
    tiny_config: TinyConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    forgets: str,
) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(FORGETFUL)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("FORGETS", forgets)
    arguments = ["--config", str(tiny_config(moco__bn_splits=6, optimizer__lr=0.05))]
    arguments += ["--data", str(make_shards((50, 50)))]
    code, record = certified(arguments, tmp_path / "certificate", capsys)
    failed = failed_checks(record)
    assert failed.keys() == ({*CHECKS[2:4]} if forgets else set()) and code == int(bool(forgets)), record["checks"]
