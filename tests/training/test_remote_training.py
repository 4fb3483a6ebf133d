"""Training, and opening data, over HTTP: the same as over files, or one line that says why not."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest

from leoclr.cli.commands.app import main
from leoclr.cli.config.sections import DataSettings, RunSettings
from leoclr.cli.config.settings import Settings
from leoclr.cli.preflight.remote_cache import check_cache
from leoclr.datasets.errors import DataError, RunError
from leoclr.datasets.shards.index import Index, Shard
from leoclr.datasets.shards.locate import open_data
from leoclr.datasets.shards.reader import SampleReader
from leoclr.datasets.shards.reindex import write_indexes
from leoclr.datasets.shards.remote import working_set
from leoclr.datasets.storage.block_cache import BlockCache

MakeShards = Callable[..., Path]
TinyConfig = Callable[..., Path]
Serve = Callable[[Path], str]
SHARDS = "data-{000000..000002}.tar"


@pytest.fixture
def config(tiny_config: TinyConfig) -> Path:
    return tiny_config(optimizer__lr=0.05, train__epochs=2)


@pytest.fixture
def cache(tmp_path: Path) -> BlockCache:
    return BlockCache(tmp_path / "cache")


@pytest.fixture
def shards(make_shards: MakeShards) -> Path:
    """Three shards with an index that holds checksums."""
    folder = make_shards((9, 4, 12), name="data")
    write_indexes(sorted(folder.glob("*.tar")))
    return folder


def tell(url: str, what: str, value: Any) -> None:
    urlopen(Request(f"{url}/{what}", json.dumps(value).encode(), method="POST")).close()


def log(url: str) -> list[dict[str, str]]:
    with urlopen(f"{url}/log") as response:
        return list(json.load(response))


def train(config: Path, *arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--config", str(config), *map(str, arguments)])
    return int(stopped.value.code or 0)


def weights(run: Path) -> bytes:
    return max((run / "checkpoints").glob("step-*/model.safetensors")).read_bytes()


def all_bytes(folder: Path) -> bytes:
    return b"".join(str(path).encode() + path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_run_over_http_is_the_run_over_files_bit_for_bit_and_keeps_secrets(
    shards: Path,
    tmp_path: Path,
    config: Path,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    url = serve(tmp_path)
    monkeypatch.setenv("LEOCLR_HTTP_AUTH", f"{url}=?sig=hunter2")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home-cache"))
    assert train(config, "--data", shards, "--output", tmp_path / "local") == 0
    tell(url, "faults", [{"do": "cut"}, {"status": 503}, {"do": "reset"}])
    remote = ("--data", f"{url}/data/{SHARDS}", "--output", tmp_path / "remote", "--workers", "2")
    assert train(config, *remote) == 0
    assert weights(tmp_path / "remote") == weights(tmp_path / "local")
    assert {entry["query"] for entry in log(url)} == {"sig=hunter2"}
    out, err = capfd.readouterr()
    assert f"shards from {url}/data, through a cache of at most 20.0 GiB in {tmp_path}/home-cache" in err
    assert "hunter2" not in out + err
    for folder in ("remote", "home-cache"):
        assert b"hunter2" not in all_bytes(tmp_path / folder)
    described = json.loads((tmp_path / "remote" / "run.json").read_text())
    assert described["data"]["train"] == [f"{url}/data/{SHARDS}"]


def test_the_index_beside_the_shards_is_taken_or_else_made_once(shards: Path, cache: BlockCache, serve: Serve) -> None:
    url = serve(shards.parent)
    local = open_data([str(shards)])
    for spec in (f"{url}/data/{SHARDS}", f"{url}/data/data.index.json"):
        remote = open_data([spec], cache=cache)
        assert remote.digest == local.digest and np.array_equal(remote.crc, local.crc) and remote.crc.all()
    part = open_data([f"{url}/data/data-<000001..000002>.tar"], cache=cache)
    assert part.keys() == local.keys()[9:] and len(part.shards) == 2
    for path in shards.glob("*.index.*"):
        path.unlink()
    built = open_data([f"{url}/data/{SHARDS}"], cache=cache)
    assert built.digest == local.digest and not built.crc.any()
    tell(url, "log", [])
    assert open_data([f"{url}/data/{SHARDS}"], cache=cache).digest == local.digest
    assert {entry["range"] for entry in log(url)} == {"bytes=0-0"}
    reader, local_reader = SampleReader(built), SampleReader(local)
    assert [reader.read(number) for number in range(25)] == [local_reader.read(number) for number in range(25)]


def test_a_damaged_or_foreign_index_is_named_by_its_address(shards: Path, cache: BlockCache, serve: Serve) -> None:
    url = serve(shards.parent)
    columns = shards / "data.index.safetensors"
    whole = columns.read_bytes()
    columns.write_bytes(whole[:-1] + b"!")
    with pytest.raises(DataError, match=rf"{url}/data/data.index.safetensors does not belong to"):
        open_data([f"{url}/data/{SHARDS}"], cache=cache)
    columns.write_bytes(whole)
    assert len(open_data([f"{url}/data/{SHARDS}"], cache=cache)) == 25
    (shards / "data-000001.tar").write_bytes(b"x" * 512)
    with pytest.raises(DataError, match=r"data-000001.tar has 512 bytes where its index says [0-9,]+: it was replaced"):
        open_data([f"{url}/data/{SHARDS}"], cache=cache)
    (shards / "data.index.json").write_text("<html>")
    with pytest.raises(DataError, match=rf"^{url}/data/data.index.json: not an index that this version reads"):
        open_data([f"{url}/data/data.index.json"], cache=cache)


def test_bytes_that_were_no_shard_are_fetched_again_at_the_next_try(
    shards: Path, cache: BlockCache, serve: Serve
) -> None:
    url = serve(shards.parent)
    for path in shards.glob("*.index.*"):
        path.unlink()
    shard = shards / "data-000001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(b"x" * len(whole))  # under the same tag, as where something on the way answered
    with pytest.raises(DataError, match="data-000001.tar: not a tar header"):
        open_data([f"{url}/data/{SHARDS}"], cache=cache)
    shard.write_bytes(whole)
    assert len(open_data([f"{url}/data/{SHARDS}"], cache=cache)) == 25


def test_rows_are_fetched_in_parts(
    shards: Path, cache: BlockCache, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leoclr.datasets.shards.remote._PART_BYTES", 100)
    local = open_data([str(shards)])
    assert open_data([f"{serve(shards.parent)}/data/data.index.json"], cache=cache).digest == local.digest


def test_all_missing_shards_are_named_at_once(shards: Path, cache: BlockCache, serve: Serve) -> None:
    url = serve(shards.parent)
    with pytest.raises(DataError, match=r"2 of 5 shards are missing: \S*data-000003.tar, \S*data-000004.tar$"):
        open_data([f"{url}/data/data-{{000000..000004}}.tar"], cache=cache)


def test_a_shard_replaced_during_a_run_is_noticed(shards: Path, cache: BlockCache, serve: Serve) -> None:
    url = serve(shards.parent)
    index = open_data([f"{url}/data/{SHARDS}"], cache=cache)
    reader = SampleReader(index)
    before = reader.read(0)
    tell(url, "etag", "v2")
    assert reader.read(0) == before  # from the cache, which holds the version of the run's start
    with pytest.raises(DataError, match="data-000001.tar has changed on the server"):
        reader.prefetch([9])


def test_a_block_damaged_on_disk_is_fetched_again_and_wrong_bytes_name_the_sample(
    shards: Path, cache: BlockCache, serve: Serve
) -> None:
    url = serve(shards.parent)
    index = open_data([f"{url}/data/{SHARDS}"], cache=cache)
    reader = SampleReader(index)
    good = reader.read(3)
    for block in cache.folder.glob("??/*"):
        block.write_bytes(bytes(block.stat().st_size))
    assert reader.read(3) == good
    wrong = replace(index, crc=index.crc + np.uint32(1))
    with pytest.raises(DataError, match=r"data-000000.tar: sample '00003' has changed since it was indexed"):
        SampleReader(wrong).read(3)


def test_local_shards_are_checked_too(shards: Path) -> None:
    index = open_data([str(shards)])
    path = shards / "data-000000.tar"
    content = bytearray(path.read_bytes())
    content[int(index.offset[2]) + 20] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="sample '00002' has changed since it was indexed"):
        SampleReader(open_data([str(shards)])).read(2)


def test_train_and_val_of_equal_names_stay_apart(
    make_shards: MakeShards, tmp_path: Path, cache: BlockCache, serve: Serve
) -> None:
    train, val = make_shards((6,), name="train/x"), make_shards((6,), name="val/x", bad=tuple(range(6)))
    url = serve(tmp_path)
    assert train.name == val.name
    indexes = [open_data([f"{url}/{split}/x/x-000000.tar"], cache=cache) for split in ("train", "val")]
    images = [SampleReader(index).read(0) for index in indexes]
    assert images[0].startswith(b"\x89PNG") and images[1] == b"not an image"
    both = open_data([f"{url}/{split}/x/x-000000.tar" for split in ("train", "val")], cache=cache)
    assert SampleReader(both).read(6) == b"not an image"


def test_files_and_addresses_mix(shards: Path, cache: BlockCache, serve: Serve) -> None:
    url = serve(shards.parent)
    copies = shutil.copytree(shards, shards.parent / "copies")
    specs = [f"{url}/data/data-000000.tar", copies.as_uri() + "/data-000001.tar", str(copies / "data-000002.tar")]
    index = open_data(specs, cache=cache)
    assert index.keys() == open_data([str(shards)]).keys()
    assert len({SampleReader(index).read(number) for number in range(25)}) == 25


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("https://user:hunter2@127.0.0.1:9/x.tar", r"LEOCLR_HTTP_AUTH.*got 'https://\*\*\*@127.0.0.1:9/x.tar'"),
        ("https://127.0.0.1:9/x-{0..9}.tar?sig=hunter2", r"LEOCLR_HTTP_AUTH.*got .*x-{0..9}.tar\?\*\*\*'"),
        ("https://u:hunter2@host/x::y.tar", r"'::'.*got 'https://\*\*\*@host"),
        ("htp://u:hunter2@host/x.tar", "LEOCLR_HTTP_AUTH"),
        ("htp://host/x.tar", "htp:// is not read"),
        ("hf://datasets/x.tar", "huggingface.co"),
        ("s3://bucket/x-*.tar", "a server cannot list its shards"),
        ("https://host/shards/", "name their index"),
        ("file://host/x.tar", "a file of this machine"),
    ],
)
def test_an_address_that_will_not_do_is_refused_in_one_line_that_shows_no_secret(
    tmp_path: Path, config: Path, capfd: pytest.CaptureFixture[str], data: str, message: str
) -> None:
    assert train(config, "--data", data, "--output", tmp_path / "run") == 2
    err = capfd.readouterr().err
    assert re.search(message, err) and err.count("\n") == 1 and "hunter2" not in err
    assert not (tmp_path / "run").exists()


def test_open_data_refuses_credentials_too(cache: BlockCache) -> None:
    with pytest.raises(DataError, match=r"^https://\*\*\*@host/x.tar: must hold no user.*LEOCLR_HTTP_AUTH"):
        open_data(["https://user:hunter2@host/x.tar"], cache=cache)


def remote_index(shards: int, shard_bytes: int, samples: int) -> Index:
    count = shards * samples
    zeros = np.zeros(count, np.int64)
    return Index(
        shards=tuple(Shard(f"s3://b/{n}.tar", shard_bytes, samples, None, identity="1") for n in range(shards)),
        shard=np.repeat(np.arange(shards, dtype=np.int32), samples),
        offset=zeros,
        length=zeros,
        label=zeros,
        crc=zeros.astype(np.uint32),
        key_bytes=zeros.astype(np.uint8),
        key_end=np.arange(1, count + 1),
    )


def test_a_shuffle_that_the_cache_cannot_hold_is_refused_with_what_would_do() -> None:
    index = remote_index(1000, 256 << 20, 10)
    assert working_set(index, 0) == 1000 * (256 << 20)
    with pytest.raises(RunError, match=r"250.0 GiB.*holds 20.0 GiB; use --set data.shuffle_window=160 or --set run"):
        check_cache(Settings(), index)
    check_cache(Settings(data=DataSettings(shuffle_window=160)), index)
    check_cache(Settings(run=RunSettings(cache_gib=287)), index)
    with pytest.raises(RunError, match=r"windows of 5,000 samples .* use --set data.shuffle_window=160"):
        check_cache(Settings(data=DataSettings(shuffle_window=5000)), index)
    check_cache(Settings(), replace(index, shards=tuple(replace(s, identity="") for s in index.shards)))
