"""Reading from a web server that fails in every way a web server can."""

from __future__ import annotations

import json
import mmap
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest

from leoclr.cli.commands.app import main
from leoclr.datasets.errors import DataError, Missing
from leoclr.datasets.storage import outages
from leoclr.datasets.storage.addresses import check_address, shown
from leoclr.datasets.storage.http import HttpStorage
from leoclr.datasets.storage.opening import as_file, open_storage
from leoclr.datasets.storage.retries import Patience, read_resuming

QUICK = Patience(attempts=3, first_wait=0.01, longest_wait=0.05, silence=0.4, request=0.8)
CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, serve: Callable[[Path], str]) -> str:
    folder = tmp_path_factory.mktemp("served")
    (folder / "x.tar").write_bytes(CONTENT)
    (folder / "empty.tar").touch()
    (folder / "a b%#.tar").write_bytes(CONTENT[:10])
    return serve(folder)


@pytest.fixture
def url(server: str) -> str:
    """The server's address; it has no faults set and an empty log."""
    for what, value in (("faults", []), ("log", []), ("etag", "v1")):
        tell(server, what, value)
    return server


def tell(url: str, what: str, value: Any) -> None:
    urlopen(Request(f"{url}/{what}", json.dumps(value).encode(), method="POST")).close()


def log(url: str) -> list[dict[str, str]]:
    with urlopen(f"{url}/log") as response:
        return list(json.load(response))


@pytest.fixture
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "_told", mmap.mmap(-1, 16))


def storage(url: str, name: str = "x.tar") -> HttpStorage:
    return HttpStorage(f"{url}/{name}", patience=QUICK)


def test_ranges_size_and_identity(url: str) -> None:
    remote = storage(url)
    assert remote.size() == len(CONTENT)
    assert remote.read(1000, 200_000) == CONTENT[1000:201_000]
    assert remote.read(5, 0) == b""
    assert remote.identity() == storage(url).identity()
    file = as_file(open_storage(f"{url}/x.tar"))
    file.seek(-4, 2)
    assert file.read() == CONTENT[-4:]
    assert storage(url, "a%20b%25%23.tar").read(0, 10) == CONTENT[:10]


@pytest.mark.parametrize("fault", ["reset", "cut", "no length, cut", "stall"])
def test_a_cut_answer_is_continued_where_it_ended(url: str, fault: str) -> None:
    remote = storage(url)
    tell(url, "faults", [{"do": fault}])
    assert remote.read(100, 200_000) == CONTENT[100:200_100]
    first, second = (entry["range"] for entry in log(url))
    assert first == "bytes=100-200099"
    start = int(second.removeprefix("bytes=").partition("-")[0])
    assert start > 100 or fault == "reset"  # a reset may take along what was not read yet


def test_without_a_length_the_range_still_says_how_much(url: str) -> None:
    tell(url, "faults", [{"do": "no length"}])
    assert storage(url).read(0, 1000) == CONTENT[:1000] and len(log(url)) == 1


@pytest.mark.usefixtures("nothing_told")
def test_a_server_that_does_not_answer_is_told_of_once_an_attempt(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = HttpStorage(f"{url}/x.tar", patience=replace(QUICK, attempts=4, quiet=0.0))
    for _ in range(2):  # as two threads would
        tell(url, "faults", [{"status": 503}] * 3)
        assert told.read(0, 10) == CONTENT[:10]
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"{url}/x.tar: not answering (the server answered 503 Service Unavailable), attempt {number} of 4 in 1 s"
        for number in (2, 3, 4)
    ]


@pytest.mark.usefixtures("nothing_told")
def test_what_passes_within_a_second_is_not_told(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    tell(url, "faults", [{"status": 503}] * 2)
    assert storage(url).read(0, 10) == CONTENT[:10]
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("nothing_told")
def test_loader_processes_tell_once_together(capfd: pytest.CaptureFixture[str]) -> None:
    workers = [multiprocessing.get_context("fork").Process(target=tell_twice) for _ in range(3)]
    for worker in workers:
        worker.start()
        worker.join()
    assert capfd.readouterr().err.splitlines() == [
        f"x.tar: not answering (no route), attempt {number} of 8 in 2 s" for number in (3, 4)
    ]


def tell_twice() -> None:
    for attempt in (3, 4):
        outages.tell_of_attempt("x.tar", "no route", attempt, 8, 2.0)


@pytest.mark.parametrize("status", [500, 502, 503, 429, 408])
def test_what_may_pass_is_tried_again(url: str, status: int) -> None:
    tell(url, "faults", [{"status": status}, {"status": status, "headers": {"Retry-After": "9"}}])
    assert storage(url).read(0, 10) == CONTENT[:10]
    tell(url, "faults", [{"status": status}] * 3)
    with pytest.raises(DataError, match=rf"x\.tar: given up after 3 attempts; the last: the server answered {status}"):
        storage(url).size()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"status": 403}, "access refused .403 Forbidden.*LEOCLR_HTTP_AUTH"),
        ({"status": 401}, "access refused"),
        ({"status": 404}, "nothing there"),
        ({"status": 400}, "answered 400"),
        ({"do": "whole"}, "does not answer range requests"),
        ({"do": "other range"}, "asked for bytes 0-9, got 1-10"),
        ({"do": "other length"}, "contradicts itself on its length"),
        ({"do": "gzip"}, "recodes"),
        ({"status": 302, "headers": {"Location": "file:///etc/passwd"}}, "refused a redirect from http to file"),
        ({"status": 302, "headers": {"Location": "ftp://host/x?sig=hunter2"}}, "to ftp$"),
        ({"status": 302, "headers": {"Location": "http://[hunter2"}}, "redirected to something that is no address"),
        ({"status": 302, "headers": {"Location": f"http://{'a' * 70}.example/"}}, "the server's name is not one"),
        ({"status": 206}, "does not say which part"),
    ],
)
def test_what_will_not_pass_ends_at_once(url: str, fault: dict[str, Any], message: str) -> None:
    tell(url, "faults", [fault])
    with pytest.raises(DataError, match=message) as raised:
        storage(url).read(0, 10)
    assert len(log(url)) == 1 and "hunter2" not in str(raised.value)


def test_redirects_end(url: str) -> None:
    tell(url, "faults", [{"status": 302, "headers": {"Location": "/x.tar?sig=hunter2"}}] * 9)
    with pytest.raises(DataError, match="redirected more than 5 times") as raised:
        storage(url).read(0, 10)
    assert "hunter2" not in str(raised.value)
    tell(url, "faults", [{"status": 307, "headers": {"Location": "/a%20b%25%23.tar"}}])
    assert storage(url).read(0, 10) == CONTENT[:10]


def test_missing_and_empty(url: str) -> None:
    with pytest.raises(Missing, match="none.tar: there is nothing there"):
        storage(url, "none.tar").size()
    assert storage(url, "empty.tar").size() == 0
    with pytest.raises(DataError, match="is empty"):
        storage(url, "empty.tar").read(0, 1)
    remote = storage(url)
    with pytest.raises(DataError, match="got|ends before|answered"):
        remote.read(len(CONTENT) - 5, 10)


@pytest.mark.parametrize("fault", ["drip", "drip headers"])
def test_a_dripping_server_is_left_within_the_deadline(url: str, fault: str) -> None:
    tell(url, "faults", [{"do": fault}] * 3)
    started = time.monotonic()
    with pytest.raises(DataError, match="given up after 3 attempts"):
        storage(url).read(0, 100_000)
    assert time.monotonic() - started < 3 * QUICK.request + 2


def test_a_replaced_file_is_noticed(url: str) -> None:
    remote = storage(url)
    before = remote.identity()
    assert remote.read(0, 10) == CONTENT[:10]
    tell(url, "etag", "v2")
    with pytest.raises(DataError, match=r"x\.tar has changed on the server"):
        remote.read(0, 10)
    with pytest.raises(DataError, match="has changed"):
        HttpStorage(f"{url}/x.tar", before, QUICK).read(0, 10)
    tell(url, "etag", "v1")
    tell(url, "faults", [{"do": "other size"}])
    with pytest.raises(DataError, match="has changed"):
        remote.read(0, 10)


def test_one_connection_serves_many_requests_and_a_closed_one_is_replaced(url: str) -> None:
    remote = storage(url)
    for _ in range(3):
        assert remote.read(7, 70) == CONTENT[7:77]
    tell(url, "faults", [{"do": "no length"}])
    for _ in range(3):
        assert remote.read(7, 70) == CONTENT[7:77]
    assert len(log(url)) == 6


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="given up after 3 attempts; the last: Connection refused"):
        storage("http://127.0.0.1:9").size()


def test_credentials_go_to_their_server_and_nowhere_else(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEOCLR_HTTP_AUTH", f"https://other.example=Bearer wrong\n{url}=Bearer hunter2\n")
    assert storage(url).read(0, 10) == CONTENT[:10]
    assert log(url)[-1]["auth"] == "Bearer hunter2"
    elsewhere = url.replace("127.0.0.1", "localhost")
    tell(url, "faults", [{"status": 302, "headers": {"Location": f"{elsewhere}/x.tar"}}])
    assert storage(url).read(0, 10) == CONTENT[:10]
    assert log(url)[-1]["auth"] is None
    monkeypatch.setenv("LEOCLR_HTTP_AUTH", f"{url}=?sig=hunter2&v=1")
    assert storage(url).read(0, 10) == CONTENT[:10]
    last = log(url)[-1]
    assert (last["path"], last["query"], last["range"]) == ("/x.tar", "sig=hunter2&v=1", "bytes=0-9")
    assert last["auth"] is None


@pytest.mark.parametrize(
    "fault",
    [{"status": 403}, {"status": 404}, {"status": 500}, {"do": "cut"}, {"do": "reset"}, {"do": "whole"}],
)
def test_no_error_shows_a_credential(url: str, monkeypatch: pytest.MonkeyPatch, fault: dict[str, Any]) -> None:
    for value in ("Bearer hunter2", "?sig=hunter2"):
        monkeypatch.setenv("LEOCLR_HTTP_AUTH", f"{url}={value}")
        tell(url, "faults", [fault] * 3)
        with pytest.raises(DataError) as raised:
            storage(url).read(0, 300_000)
        chain: BaseException | None = raised.value
        while chain is not None:
            assert "hunter2" not in repr(chain) and "hunter2" not in str(chain)
            chain = chain.__cause__ or chain.__context__


@pytest.mark.parametrize("value", ["nonsense hunter2", "host=hunter2", "https://host=", "https://u:hunter2@h=x"])
def test_malformed_credentials_are_named_by_line_and_not_shown(
    url: str, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("LEOCLR_HTTP_AUTH", f"\n{value}")
    with pytest.raises(DataError, match="LEOCLR_HTTP_AUTH, line 2") as raised:
        storage(url).size()
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("https://user:hunter2@host/x.tar", "https://***@host/x.tar"),
        ("https://user:hun/ter2@host/x.tar", "https://***@host/x.tar"),
        ("htps://hunter2@host/x.tar", "htps://***@host/x.tar"),
        ("https://host/x.tar?sig=hunter2", "https://host/x.tar?***"),
        ("s3://bucket/x.tar#hunter2", "s3://bucket/x.tar#***"),
    ],
)
def test_an_address_with_a_credential_is_refused_without_showing_it(text: str, name: str) -> None:
    assert shown(text) == name
    with pytest.raises(DataError, match="LEOCLR_HTTP_AUTH") as raised:
        check_address(text)
    assert str(raised.value).startswith(f"{name}: ")


@pytest.mark.parametrize("text", ["https://host:8443/a@b/x.tar", "http://[::1]:80/x.tar", "s3://bucket/x.tar", "a/b?"])
def test_a_harmless_address_is_shown_as_it_is(text: str) -> None:
    assert shown(text) == text


@pytest.mark.parametrize(
    "text", ["https://", "https://host", "s3://bucket/", "https://host:x1/y.tar", "http://h/\n.tar"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(DataError):
        check_address(text)


def test_an_answer_that_is_longer_than_it_says_ends_the_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """http.client gives out more than was asked for where a chunk says that its size is below nought."""

    class Answer:
        status = 206

        def getheader(self, name: str, default: str | None = None) -> str | None:
            return {"Content-Range": "bytes 0-0/100", "ETag": "x"}.get(name, default)

        def read1(self, count: int) -> bytes:
            return bytes(100)

    monkeypatch.setattr("leoclr.datasets.storage.http.get", lambda *arguments: nullcontext(Answer()))
    with pytest.raises(DataError, match="contradicts itself on its length"):
        storage("http://127.0.0.1").read(0, 1)


def test_a_file_without_a_tag_is_another_one_in_another_process() -> None:
    code = "from leoclr.datasets.storage import http; print(http._NO_TAG)"
    tags = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(2)}
    assert len(tags) == 2 and all(len(tag) > 20 for tag in tags)


@pytest.mark.parametrize(
    "arguments",
    [("views", "https://user:s3cret@h/a.jpg"), ("shard", "https://user:s3cret@h/x.zip", "out"),
     ("index", "https://user:s3cret@h/x.index.json", "--output", ".")],
)  # fmt: skip
def test_no_command_prints_a_password(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(list(arguments))
    printed = capsys.readouterr()
    assert "error: " in printed.err and "s3cret" not in printed.err + printed.out


def test_a_large_file_may_take_many_requests_as_long_as_each_brings_something() -> None:
    asked = list[int]()

    def request(offset: int, length: int) -> Iterator[bytes]:
        asked.append(offset)
        yield bytes(min(length, 3 << 20 if offset < 9 << 20 else 1000))

    patience = Patience(attempts=2, first_wait=0.0)
    assert len(read_resuming("file", 0, 9 << 20, request, patience)) == 9 << 20 and len(asked) == 3
    asked.clear()
    with pytest.raises(DataError, match="given up after 2 attempts; the last: the connection ended after 9,439,184 of"):
        read_resuming("file", 0, 10 << 20, request, patience)
    assert asked == [0, 3 << 20, 6 << 20, 9 << 20, (9 << 20) + 1000]
