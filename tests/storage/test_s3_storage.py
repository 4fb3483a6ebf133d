"""Reading from S3, here a real server process: moto's."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from leoclr.datasets.errors import DataError, Missing
from leoclr.datasets.shards.locate import open_data
from leoclr.datasets.shards.reader import SampleReader
from leoclr.datasets.storage.block_cache import BlockCache
from leoclr.datasets.storage.retries import Patience
from leoclr.datasets.storage.s3 import open_s3

boto3 = pytest.importorskip("boto3")

QUICK = Patience(attempts=2, first_wait=0.01)
SERVER = """
from moto.server import ThreadedMotoServer
import sys
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout is not None
    port = int(next(line for line in server.stdout if line.strip().isdigit()))
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            break
    yield f"http://127.0.0.1:{port}"
    server.communicate()


@pytest.fixture(autouse=True)
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "AKIAHUNTER2",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="images")
    client.put_object(Bucket="images", Key="a b/x#1.tar", Body=b"0123456789")
    return "images"


def test_ranges_size_and_identity() -> None:
    storage = open_s3("s3://images/a b/x#1.tar")
    assert (storage.size(), storage.read(2, 3)) == (10, b"234")
    boto3.client("s3").put_object(Bucket="images", Key="a b/x#1.tar", Body=b"9876543210")
    with pytest.raises(DataError, match="has changed on the server"):
        storage.read(2, 3)


def test_what_is_missing_is_named_without_the_signature() -> None:
    with pytest.raises(Missing, match="s3://images/none.tar") as raised:
        open_s3("s3://images/none.tar", patience=QUICK).size()
    assert "Signature" not in str(raised.value) and "AKIA" not in str(raised.value)
    with pytest.raises(Missing):
        open_s3("s3://no-such-bucket/x.tar", patience=QUICK).size()


def test_without_boto3_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(DataError, match=r"leoclr-cli\[s3\]"):
        open_s3("s3://images/x.tar")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "s3://images/x.tar: no AWS credentials were found; set AWS_PROFILE"),
        (
            {"AWS_ACCESS_KEY_ID": "AKIAHUNTER2", "AWS_SECRET_ACCESS_KEY": "hunter2"},
            "s3://images/x.tar: given up after 2 attempts; the last: Connection refused",
        ),
    ],
)
def test_a_request_that_cannot_be_made_says_why(tmp_path: Path, given: dict[str, str], message: str) -> None:
    script = """
from leoclr.datasets.storage.retries import Patience
from leoclr.datasets.storage.s3 import open_s3
try:
    open_s3("s3://images/x.tar", patience=Patience(attempts=2, first_wait=0.01)).size()
except Exception as error:
    print(error)
"""
    environment = {
        "HOME": str(tmp_path),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    }
    found = subprocess.run([sys.executable, "-c", script], env=environment | given, capture_output=True, text=True)
    assert found.stdout.startswith(message) and "hunter2" not in (found.stdout + found.stderr).casefold()


def test_shards_in_a_bucket_read_like_local_ones(make_shards: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_shards((5, 3, 4))
    local = open_data([str(folder)])
    client = boto3.client("s3")
    for path in folder.iterdir():
        client.upload_file(str(path), "images", f"train/{path.name}")
    cache = BlockCache(tmp_path / "blocks")
    remote = open_data(["s3://images/train/data-{000000..000002}.tar"], cache=cache)
    assert remote.digest == local.digest
    reader, local_reader = SampleReader(remote), SampleReader(local)
    reader.prefetch(range(12))
    assert [reader.read(number) for number in range(12)] == [local_reader.read(number) for number in range(12)]
    with pytest.raises(DataError, match="2 of 5 shards are missing: s3://images/train/data-000003.tar, s3"):
        open_data(["s3://images/train/data-{000000..000004}.tar"], cache=cache)
