"""Hostile shards, index files, checkpoints, settings and names start no process, open no socket, unpickle nothing.

The commands run in one process of their own under an audit hook, with `--workers 0`: loader processes hand over their
batches by torch's queues, which pickle, but only what the toolkit itself put in.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

MakeShards = Callable[..., Path]
TinyConfig = Callable[..., Path]

# Lines on stdin: a JSON list of arguments each. Lines on stdout: the exit code, and what the command said.
PROGRAM = """
import contextlib, io, json, platform, sys

FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "os.fork",
             "os.forkpty", "socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "pickle.find_class")
allowed = True  # while torch and others are imported
seen = []

def hook(event, arguments):
    if event in FORBIDDEN and not allowed:
        seen.append(f"{event} {arguments!r}"[:300])

sys.addaudithook(hook)
import accelerate, sklearn.linear_model, torchvision, webdataset
import leoclr.cli.run.encoders, leoclr.cli.scoring.evaluation, leoclr.cli.exporting.export
import leoclr.cli.training.trainer, leoclr.datasets.packing.pack
from leoclr.cli.commands.app import main
platform.processor()  # asks `uname` once, for run.json
allowed = False

for line in sys.stdin:
    seen.clear()
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            main(json.loads(line))
            code = 0
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            code, _ = repr(error), text.write(repr(error))
    print(json.dumps({"code": code, "text": text.getvalue(), "seen": seen}), file=sys.__stdout__, flush=True)
"""


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, evidence: Path) -> None:
        self.evidence = evidence

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.evidence}",)


class Guarded:
    """The command line in one process under an audit hook."""

    def __init__(self, folder: Path, evidence: Path) -> None:
        self.evidence = evidence
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",
            "GOPEN_REWRITE": f"{folder}=pipe:touch {evidence}",
            "WDS_REWRITE": f"{folder}=pipe:touch {evidence}",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=folder,
            text=True,
        )

    def __call__(self, *arguments: str | Path) -> tuple[object, str]:
        """Exit code and words of a command, which did none of what is forbidden."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(argument) for argument in arguments]) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert answer["seen"] == [], (arguments, answer["seen"])
        assert not self.evidence.exists(), arguments
        return answer["code"], answer["text"]

    def refuses(self, *arguments: str | Path) -> str:
        """The one line that a command is refused with."""
        code, text = self(*arguments)
        assert code == 2 and "error: " in text and "Traceback" not in text, (arguments, code, text)
        return text

    def close(self) -> None:
        self._process.communicate()


def add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    shard.addfile(member, io.BytesIO(content))


@pytest.mark.slow(ci=True)
def test_no_input_starts_a_process_opens_a_socket_or_is_unpickled(
    make_shards: MakeShards, tiny_config: TinyConfig, tmp_path: Path
) -> None:
    evidence = tmp_path / "evidence"
    data = make_shards((12,))
    config = tiny_config(data__batch_size=4, data__max_bad_samples=0.5, moco__queue=8, train__epochs=1)
    with tarfile.open(data / "data-000000.tar", "a") as shard:  # hostile members beside good ones
        add(shard, "evil1.pyd", pickle.dumps(Evil(evidence)))
        add(shard, "evil2.pickle", pickle.dumps(Evil(evidence)))
        add(shard, "evil3.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touch) (w) file\nshowpage\n%%EOF\n")
        add(shard, "evil5.npy", b"\x93NUMPY\x01\x00" + pickle.dumps(Evil(evidence)))
        add(shard, "evil6.jpg", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1:9/x"/></svg>')
    guarded = Guarded(tmp_path, evidence)
    try:
        _pack_train_score_and_export(guarded, tmp_path, data, config)
        _hostile_names(guarded, tmp_path, data, config)
        _hostile_index(guarded, tmp_path, data, config)
        _hostile_checkpoints(guarded, tmp_path, evidence)
    finally:
        guarded.close()


def _pack_train_score_and_export(guarded: Guarded, folder: Path, data: Path, config: Path) -> None:
    run, labelled = folder / "run", folder / "labelled"
    shutil.copytree(data, folder / "source")
    (folder / "source" / "evil.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    code, text = guarded("shard", folder / "source" / "data-000000.tar", folder / "packed", "--workers", "1")
    assert code == 0 and text.count("skipped") >= 2, text
    code, text = guarded("check", data)
    assert code == 1 and "evil3" in text and "evil6" in text
    assert guarded("train", "--config", config, "--data", data, "--output", run)[0] == 0
    assert "evil" in (run / "bad-images.txt").read_text()
    assert guarded("train", "--resume", run)[0] == 0
    assert guarded("views", data, "--count", "2", "-o", folder / "views.png")[0] == 0
    labelled.mkdir()
    with tarfile.open(data / "data-000000.tar") as old, tarfile.open(labelled / "data-000000.tar", "w") as new:
        for member in old:
            content = old.extractfile(member)
            assert content is not None
            if not member.name.startswith("evil"):
                add(new, member.name, content.read())
    code, text = guarded(
        "eval", "knn", run, "--train-data", labelled, "--data", labelled, "--no-cache", "--workers", "0"
    )
    assert code == 0, text
    code, text = guarded("export", run, "--format", "safetensors", "-o", folder / "encoder.safetensors")
    assert code == 0, text


def _hostile_names(guarded: Guarded, folder: Path, data: Path, config: Path) -> None:
    for name in ("pipe:touch evidence", "{a,pipe:touch evidence}", f"{data}::b.tar", "x-${HOME}.tar", "gopen:x"):
        guarded.refuses("train", "--config", config, "--data", name)
        guarded.refuses("index", name)
        guarded.refuses("check", name)
        guarded.refuses("views", name)
    labels = folder / "labels.tar"
    with tarfile.open(labels, "w") as shard:
        add(shard, "a.cls", b"pipe:touch evidence")
    assert "hold no images" in guarded.refuses("train", "--config", config, "--data", labels)
    yaml = folder / "evil.yaml"
    for text in (
        "train: !!python/object/apply:os.system ['touch evidence']",
        "data: {train: !!python/name:os.system x}",
        "a: &a [x]\nb: [*a, *a]",
    ):
        yaml.write_text(text)
        assert "evil.yaml" in guarded.refuses("train", "--config", yaml, "--data", data)
    toml = folder / "evil.toml"
    toml.write_text('[data]\ntrain = ["pipe:touch evidence"]\n')
    assert "'pipe:'" in guarded.refuses("train", "--config", toml)
    assert "'pipe:'" in guarded.refuses("train", "--config", config, "--data", data, "--val-data", "pipe:id")
    for backbone in ("timm:hf-hub:evil/model", "../evil", "timm:local-dir:/tmp/evil"):
        guarded.refuses("train", "--config", config, "--data", data, "--backbone", backbone)


def _hostile_index(guarded: Guarded, folder: Path, data: Path, config: Path) -> None:
    (folder / "secret.tar").write_bytes((data / "data-000000.tar").read_bytes())
    index = data / "data.index.json"
    good = json.loads(index.read_text())
    for name in ("../secret.tar", str(folder / "secret.tar"), "pipe:touch evidence", "a::b", "x\x00.tar"):
        bad = {**good, "shards": [{**good["shards"][0], "name": name}]}
        index.write_text(json.dumps(bad))
        guarded.refuses("train", "--config", config, "--data", index)
        guarded.refuses("train", "--config", config, "--data", data)
    index.write_bytes(pickle.dumps(Evil(guarded.evidence)))
    guarded.refuses("train", "--config", config, "--data", index)
    index.write_text(json.dumps(good))
    columns = data / "data.index.safetensors"
    columns.write_bytes(pickle.dumps(Evil(guarded.evidence)))
    guarded.refuses("train", "--config", config, "--data", index)


def _hostile_checkpoints(guarded: Guarded, folder: Path, evidence: Path) -> None:
    evil = pickle.dumps(Evil(evidence))
    for name in ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"):
        copy = folder / f"run-{name}"
        shutil.copytree(folder / "run", copy)
        for checkpoint in (copy / "checkpoints").iterdir():
            (checkpoint / name).write_bytes(evil)
        guarded.refuses("export", copy, "--format", "safetensors", "-o", folder / "out.safetensors")
    (folder / "run-run.json").mkdir()
    (folder / "run-run.json" / "run.json").write_bytes(evil)
    guarded.refuses("train", "--resume", folder / "run-run.json")
    for name in ("evil.pth", "evil.pt", "evil.safetensors"):
        (folder / name).write_bytes(evil)
        guarded.refuses("export", folder / name, "--format", "safetensors", "-o", folder / "out.safetensors")
        guarded.refuses("eval", "knn", folder / name, "--train-data", folder / "labelled")
    assert not (folder / "out.safetensors").exists()


@pytest.mark.parametrize("name", ["LEOCLR_DATA__TRAIN", "LEOCLR_DATA__VAL", "LEOCLR_ENCODER__BACKBONE"])
def test_a_command_in_the_environment_is_refused(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "leoclr.cli", "show-config"],
        env=os.environ | {name: "pipe:touch evidence"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "'pipe:'" in done.stderr
