"""State files of runs and packings, and settings files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from benchmarks.fuzzing.target import Target, refusable
from leoclr.cli.config.preset_files import preset_path
from leoclr.cli.config.resolve import resolve
from leoclr.cli.config.setting_files import read_settings_file, to_toml
from leoclr.cli.config.settings import Settings
from leoclr.cli.reporting.page import report_page
from leoclr.cli.reporting.run_facts import read_run
from leoclr.cli.reporting.run_pictures import Pictures
from leoclr.cli.run.checkpoint import MANIFEST, STATE, verify
from leoclr.cli.run.folder import RunFolder, newest_run
from leoclr.cli.run.listing import list_runs
from leoclr.cli.run.recorded import recorded_settings
from leoclr.datasets.packing.journal import JOURNAL_NAME, Journal, kept_shards

# State files of runs and packings


def _state_contents() -> dict[str, bytes]:
    settings = Settings().model_dump(mode="json")
    data = {"train": ["a.tar"], "val": [], "samples": 9, "labelled": True, "classes": 2}
    run = {"format": 1, "settings": settings, "data": data, "started": "2026-01-01T00:00:00+00:00"}
    state = {"step": 7, "steps": 9, "epoch": 1.5, "settings": settings, "data": {"digest": "0", "samples": 9}}
    metrics = [{"step": step, "epoch": step / 5, "loss": 6.1, "knn": 0.4, "images_per_second": 9} for step in range(3)]
    notes = {"files": [1, "a"]}
    entry = {"split": "train", "shard": "s.tar", "sha256": "0", "pictures": 1, "skipped": [], "notes": notes}
    knn = {"kind": "knn", "accuracy": 0.5, "n": 10, "k": 20, "interval": [0.4, 0.6], "checkpoint": {"path": "run/x"}}
    return {
        "run.json": json.dumps(run).encode(),
        STATE: json.dumps(state).encode(),
        MANIFEST: b'{"format": 1, "step": 7, "files": {"state.json": {"bytes": 2, "sha256": "0"}}}',
        "failed-step.json": b'{"step": 6, "images": ["a", "b"]}',
        "metrics.jsonl": b"\n".join(json.dumps(line).encode() for line in metrics),
        JOURNAL_NAME: b"\n".join((b'{"format": 2, "fingerprint": "f"}', json.dumps(entry).encode(), b"")),
        "evals/knn.json": json.dumps(knn).encode(),
    }


_STATE_CONTENTS = _state_contents()


def _try_state(data: bytes, folder: Path) -> None:
    """The first byte of the input says which file it takes the place of."""
    name = tuple(_STATE_CONTENTS)[(data[0] if data else 0) % len(_STATE_CONTENTS)]
    files = _STATE_CONTENTS | {name: data[1:]}
    run, step, staging = folder / "run", folder / "run" / "checkpoints" / "step-000000007", folder / "staging"
    for place in (step, run / "evals", staging / "train"):
        place.mkdir(parents=True, exist_ok=True)
    (staging / "train" / "s.tar").write_bytes(b"")
    (staging / JOURNAL_NAME).write_bytes(files[JOURNAL_NAME])
    state = files[STATE]
    sealed = {"bytes": len(state), "sha256": hashlib.sha256(state).hexdigest()}
    manifest = {"format": 1, "step": 7, "files": {STATE: sealed}}
    files[MANIFEST] = files[MANIFEST] if name == MANIFEST else json.dumps(manifest).encode()
    for part in (STATE, MANIFEST):
        (step / part).write_bytes(files[part])
    for part in ("run.json", "failed-step.json", "metrics.jsonl", "evals/knn.json"):
        (run / part).write_bytes(files[part])
    for use in _USES[name]:
        refusable(use)(data, folder)


def _use_journal(data: bytes, folder: Path) -> None:
    journal = Journal(folder / "staging", "f")
    journal.verify()
    assert journal.pictures >= journal.shards >= 0 and journal.bytes >= 0 and kept_shards(folder / "staging") >= 0


def _list(data: bytes, folder: Path) -> None:
    for run in list_runs([folder]):
        json.dumps(vars(run), default=str)
    assert newest_run(folder) == folder / "run"


def _read_checkpoint(data: bytes, folder: Path) -> None:
    verify(folder / "run" / "checkpoints" / "step-000000007").load()


def _failed_step(data: bytes, folder: Path) -> None:
    RunFolder(folder / "run").failed_step()


def _settings_of_run(data: bytes, folder: Path) -> None:
    recorded_settings(folder / "run")


def _report(data: bytes, folder: Path) -> None:
    read = read_run(folder / "run")
    report_page([read], [Pictures()], {}).encode(errors="replace")


_USES: dict[str, tuple[Callable[[bytes, Path], None], ...]] = {
    "run.json": (_list, _settings_of_run, _report),
    STATE: (_list, _read_checkpoint),
    MANIFEST: (_list, _read_checkpoint),
    "failed-step.json": (_failed_step,),
    "metrics.jsonl": (_list, _report),
    JOURNAL_NAME: (_use_journal,),
    "evals/knn.json": (_report,),
}


def _state_seeds() -> list[bytes]:
    return [bytes([number]) + _STATE_CONTENTS[name] for number, name in enumerate(_STATE_CONTENTS)]


# Settings files


def _try_settings(data: bytes, folder: Path) -> None:
    """The first byte says the format. What is read is written as TOML, and read again."""
    path = folder / f"settings{('.toml', '.yaml', '.json')[(data[0] if data else 0) % 3]}"
    path.write_bytes(data[1:])
    settings = resolve(None, path, {}, {}).settings
    again = folder / "again.toml"
    again.write_text(to_toml(settings), encoding="utf-8")
    assert resolve(None, again, {}, {}).settings == settings


def _settings_seeds() -> list[bytes]:
    files = [preset_path(name).read_bytes() for name in ("cifar10", "imagenet", "quickstart")]
    seeds = [b"\0" + data for data in (*files, to_toml(Settings()).encode())]
    with TemporaryDirectory() as name:
        for data in files:
            (Path(name) / "x.toml").write_bytes(data)
            content = read_settings_file(Path(name) / "x.toml")
            seeds += [b"\1" + yaml.safe_dump(content).encode(), b"\2" + json.dumps(content, indent=1).encode()]
    return [*seeds, b"\1" + b"optimizer:\n  lr: 1e-3\n  cosine: no\ndata: {train: [a.tar, 'b.tar']}\n"]


STATE_FILES = Target(_try_state, _state_seeds, json=lambda data: (1, len(data)))
SETTINGS = Target(refusable(_try_settings), _settings_seeds, json=lambda data: (1, len(data)))
