"""`leoclr export --push`: the folder reaches a stand-in of the hub's HTTP interface, whole and with nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from leoclr.cli.commands.app import main
from leoclr.cli.exporting.push import push_folder
from leoclr.datasets.errors import RunError

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's own


class Hub(ThreadingHTTPServer):
    """Repositories, and the files of their commits, as the hub would hold them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.created: list[dict[str, Any]] = []
        self.objects: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.refuse = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answers(BaseHTTPRequestHandler):
    """The part of the hub's interface that an upload uses; large files go by Git LFS."""

    server: Hub

    def do_GET(self) -> None:
        known = {"sha": "0" * 40, "id": "me/encoder", "siblings": []}
        self.answer(known if "/revision/" in self.path else {}, 401 if self.server.refuse else 200)

    def do_POST(self) -> None:
        body = self.body()
        if self.server.refuse:
            self.answer({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self.answer({"url": f"{self.server.address}/me/encoder", "name": "me/encoder", "id": "1"}, 200)
        elif self.path == "/api/validate-yaml":  # of the model card
            self.answer({"errors": [], "warnings": []}, 200)
        elif "/preupload/" in self.path:
            modes = [self.mode(file["path"]) for file in json.loads(body)["files"]]
            self.answer({"files": modes}, 200)
        elif self.path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            self.answer({"transfer": "basic", "objects": [self.upload(each) for each in wanted]}, 200)
        elif "/commit/" in self.path:
            for line in body.decode().splitlines():
                self.commit(json.loads(line))
            address = f"{self.server.address}/me/encoder/commit/{'1' * 40}"
            self.answer({"commitUrl": address, "commitOid": "1" * 40, "success": True}, 200)
        else:
            self.answer({"error": f"unknown: {self.path}"}, 404)

    def do_PUT(self) -> None:
        self.server.objects[self.path.rpartition("/")[2]] = self.body()
        self.answer({}, 200)

    def mode(self, path: str) -> dict[str, Any]:
        return {
            "path": path,
            "uploadMode": "lfs" if path.endswith(".safetensors") else "regular",
            "shouldIgnore": False,
        }

    def upload(self, wanted: dict[str, Any]) -> dict[str, Any]:
        return {**wanted, "actions": {"upload": {"href": f"{self.server.address}/objects/{wanted['oid']}"}}}

    def commit(self, line: dict[str, Any]) -> None:
        value = line["value"]
        if line["key"] == "file":
            self.server.files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            self.server.files[value["path"]] = self.server.objects[value["oid"]]

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def answer(self, value: dict[str, Any], status: int) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: a test's output is its own."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "a-token")
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    path.mkdir()
    for name, content in {"model.safetensors": b"w" * 1000, "config.json": b"{}", "README.md": b"card"}.items():
        (path / name).write_bytes(content)
    (path / "notes.txt").write_text("the user's own")
    return path


def exported(folder: Path) -> list[Path]:
    return [folder / name for name in ("README.md", "config.json", "model.safetensors")]


def test_the_hub_gets_the_exported_files_and_no_other(hub: Hub, folder: Path) -> None:
    address = push_folder(folder, exported(folder), "me/encoder", public=False)
    assert address == f"{hub.address}/me/encoder/commit/{'1' * 40}"
    assert hub.files == {file.name: file.read_bytes() for file in exported(folder)}
    assert list(hub.objects) == [hashlib.sha256(b"w" * 1000).hexdigest()]
    assert [is_private(each) for each in hub.created] == [True]
    push_folder(folder, exported(folder), "me/encoder", public=True)
    assert [is_private(each) for each in hub.created] == [True, False]


def is_private(created: dict[str, Any]) -> bool:
    """As older and newer versions of huggingface_hub say it."""
    return bool(created["private"]) if "private" in created else created["visibility"] == "private"


def test_a_refusal_is_one_line(hub: Hub, folder: Path) -> None:
    hub.refuse = True
    with pytest.raises(RunError, match=f"{folder} is written, but not uploaded to me/encoder: .*401") as caught:
        push_folder(folder, exported(folder), "me/encoder", public=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--format", "onnx", "--push", "me/encoder"], "--push uploads a folder: add --format hf"),
        (["--format", "hf", "--push", "encoder"], "--push encoder: must be OWNER/NAME"),
    ],
)
def test_what_cannot_be_pushed_is_refused_first(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["export", "nowhere", *arguments])
    assert said in capsys.readouterr().err


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SystemExit, match="2"):
        main(["export", "nowhere", "--format", "hf", "--push", "me/encoder"])
    assert "pip install 'leoclr-cli[hf]'" in capsys.readouterr().err
