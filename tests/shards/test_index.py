"""An index file comes back as it was written, and a damaged, foreign or hostile one is refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file, save_file

from leoclr.datasets.errors import DataError
from leoclr.datasets.shards.concatenation import concatenate
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.reader import SampleReader
from leoclr.datasets.shards.scan import build_index

Columns = dict[str, NDArray[Any]]


@pytest.fixture
def saved(make_shards: Callable[..., Path]) -> Path:
    """The index file of three shards of 4, 0 and 3 labelled samples."""
    folder = make_shards((4, 0, 3))
    path = folder / "data.index.json"
    build_index(sorted(folder.glob("*.tar")), classes=["a", "b", "c", "d"]).save(path)
    return path


def columns_of(path: Path) -> Path:
    return path.with_name("data.index.safetensors")


def rewrite(path: Path, change: Callable[[Columns], object]) -> None:
    """Change the columns and put the digest right, as who forges an index would."""
    columns = load_file(columns_of(path))
    change(columns)
    save_file(columns, columns_of(path))
    content = json.loads(path.read_text())
    content["columns"]["sha256"] = hashlib.sha256(columns_of(path).read_bytes()).hexdigest()
    path.write_text(json.dumps(content))


def rows(index: Index) -> list[tuple[str, str, int, bytes]]:
    """Key, shard, label and bytes of every sample."""
    reader = SampleReader(index)
    return [
        (index.key(n), Path(index.shards[index.shard[n]].path).name, int(index.label[n]), reader.read(n))
        for n in range(len(index))
    ]


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        Index.load(path)
    message = str(caught.value)
    assert str(path.parent) in message and "\n" not in message
    return message


def test_an_index_comes_back_as_it_was(saved: Path) -> None:
    built = build_index([Path(shard.path) for shard in Index.load(saved).shards], classes=["a", "b", "c", "d"])
    loaded = Index.load(saved)
    assert loaded.shards == built.shards and loaded.classes == built.classes == ("a", "b", "c", "d")
    assert loaded.digest == built.digest and loaded.keys() == built.keys() == [f"{n:05d}" for n in range(7)]
    assert rows(loaded) == rows(built)
    assert loaded.labelled and loaded.class_count == 4


def test_saving_is_deterministic_and_leaves_nothing_else(saved: Path) -> None:
    before = [path.read_bytes() for path in (saved, columns_of(saved))]
    names = {path.name for path in saved.parent.iterdir()}
    Index.load(saved).save(saved)
    assert [path.read_bytes() for path in (saved, columns_of(saved))] == before
    assert {path.name for path in saved.parent.iterdir()} == names


def test_the_folder_may_be_moved(saved: Path, tmp_path: Path) -> None:
    before = Index.load(saved)
    expected, digest = rows(before), before.digest
    moved = saved.parent.rename(tmp_path / "elsewhere")
    after = Index.load(moved / saved.name)
    assert rows(after) == expected and after.digest == digest


def test_the_digest_tells_data_apart(make_shards: Callable[..., Path]) -> None:
    whole = build_index(sorted(make_shards((4, 3)).glob("*.tar")))
    other_labels = build_index(sorted(make_shards((4, 3), name="other/data", classes=3).glob("*.tar")))
    digests = {whole.digest, whole.subset(np.arange(6)).digest, whole.with_shards([1, 0]).digest, other_labels.digest}
    assert len(digests) == 4


def test_samples_in_common_are_counted_where_there_are_checksums(saved: Path) -> None:
    index = Index.load(saved)
    assert index.subset(np.array([0, 2])).shared_with(index) == 2
    assert index.shared_with(index.subset(np.array([1]))) == 1
    without = replace(index, crc=np.zeros_like(index.crc))
    assert index.shared_with(without) is None and without.shared_with(index) is None


def test_a_subset_keeps_what_belongs_to_each_sample(saved: Path) -> None:
    index = Index.load(saved)
    chosen = index.subset(np.array([6, 0, 3]))
    assert rows(chosen) == [rows(index)[number] for number in (6, 0, 3)]
    assert len(index.subset(np.array([], np.int64))) == 0


def test_some_of_the_shards(saved: Path) -> None:
    index = Index.load(saved)
    part = index.with_shards([2, 0])
    assert rows(part) == rows(index)[4:] + rows(index)[:4]
    assert part.shard.tolist() == [0] * 3 + [1] * 4 and [shard.samples for shard in part.shards] == [3, 4]
    assert len(index.with_shards([1])) == len(index.with_shards([])) == 0


def test_indexes_are_put_one_behind_the_other(make_shards: Callable[..., Path]) -> None:
    parts = [build_index(sorted(make_shards(sizes, name=f"{sizes[0]}/d").glob("*.tar"))) for sizes in ((2, 1), (3, 2))]
    together = concatenate(parts)
    assert rows(together) == rows(parts[0]) + rows(parts[1])
    assert together.shard.tolist() == [0, 0, 1, 2, 2, 2, 3, 3]


def test_classes_are_put_together_by_name(saved: Path, make_shards: Callable[..., Path]) -> None:
    named = Index.load(saved)
    shards = sorted(make_shards((2,), name="more/data").glob("*.tar"))
    assert concatenate([named, build_index(shards)]).classes == named.classes
    both = concatenate([build_index(shards, classes=["x", "a"]), named])
    assert both.classes == ("a", "b", "c", "d", "x") and both.class_count == 5
    assert [both.class_name(label) for label in both.label[:2]] == ["x", "a"]
    assert both.label[2:].tolist() == named.label.tolist()
    three = concatenate([both, build_index(shards), build_index(shards, classes=["y", "z"])])
    assert three.label[len(both) : -2].tolist() == [-1, -1]  # numbers of which classes?


def test_an_index_lies_beside_its_shards(saved: Path, tmp_path: Path) -> None:
    index = Index.load(saved)
    with pytest.raises(DataError, match="an index lies beside its shards"):
        index.save(tmp_path / "x.index.json")
    with pytest.raises(DataError, match="ends in .index.json"):
        index.save(saved.with_name("x.json"))

    links = tmp_path / "links"
    links.mkdir()
    for shard in index.shards:
        (links / Path(shard.path).name).symlink_to(shard.path)
    build_index(sorted(links.iterdir())).save(links / "x.index.json")  # a folder of links is a place like any other
    assert rows(Index.load(links / "x.index.json")) == rows(index)


# Damage


def test_a_missing_file_is_named(saved: Path) -> None:
    assert "there is no such index" in refused(saved.with_name("none.index.json"))
    columns_of(saved).unlink()
    assert "data.index.safetensors is missing" in refused(saved)


def test_every_flipped_byte_of_the_columns_is_noticed(saved: Path) -> None:
    good = columns_of(saved).read_bytes()
    for place in range(0, len(good), 37):
        columns_of(saved).write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        assert "does not belong to data.index.json" in refused(saved)
    columns_of(saved).write_bytes(good[:-8])
    assert "does not belong" in refused(saved)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{",
        '{"format": 2}',
        '{"format": 1}',
        "\xff",
        "<html>",
        '{"format": 1, "pipe": "x"}',
        "9" * 9999,
    ],
)
def test_json_that_is_no_index_is_refused(text: str, saved: Path) -> None:
    saved.write_bytes(text.encode("latin-1"))
    assert "not an index that this version reads" in refused(saved)


# Attacks: an index is untrusted


@pytest.mark.parametrize("name", ["../x.tar", "/etc/passwd", "a/b.tar", "..\\x.tar", "x\x00.tar", ""])
def test_shards_elsewhere_are_refused(name: str, saved: Path) -> None:
    content = json.loads(saved.read_text())
    content["shards"][0]["name"] = name
    saved.write_text(json.dumps(content))
    assert "shards.0.name" in refused(saved)


@pytest.mark.parametrize(
    ("key", "value"), [("bytes", -1), ("bytes", 2**63), ("bytes", "9"), ("samples", -4), ("samples", 1.5), ("name", 3)]
)
def test_impossible_shards_are_refused(key: str, value: object, saved: Path) -> None:
    content = json.loads(saved.read_text())
    content["shards"][0][key] = value
    saved.write_text(json.dumps(content))
    assert f"shards.0.{key}" in refused(saved)


@pytest.mark.parametrize(
    ("shard_samples", "total"), [((10**18, 0, 3), 7), ((3, 0, 4), 7), ((4, 3, 0), 7), ((4, 0, 3), 8), ((5, 0, 3), 8)]
)
def test_counts_that_do_not_add_up_are_refused(shard_samples: tuple[int, ...], total: int, saved: Path) -> None:
    content = json.loads(saved.read_text())
    content["samples"] = total
    for shard, samples in zip(content["shards"], shard_samples, strict=True):
        shard["samples"] = samples
    saved.write_text(json.dumps(content))
    assert "contradicts itself" in refused(saved)


def put(name: str, row: int, value: int) -> Callable[[Columns], object]:
    def change(columns: Columns) -> None:
        columns[name][row] = value

    return change


LARGE = 2**63 - 1


@pytest.mark.parametrize(
    "change",
    [
        put("offset", 0, -1),
        put("offset", 6, 10**9),
        put("offset", 6, LARGE),
        put("length", 0, -1),
        put("length", 6, 10**9),
        put("length", 6, LARGE),
        put("shard", 0, 1),
        put("shard", 6, 99),
        put("shard", 0, -1),
        put("label", 0, -2),
        put("label", 0, 4),
        put("label", 0, LARGE),
        put("key_bytes", 0, 27),  # steers a terminal that shows the key
        put("key_end", 0, -1),
        put("key_end", 2, 0),
        put("key_end", 6, LARGE),
        lambda columns: columns.update(label=columns["label"][:-1]),
        lambda columns: columns.update(key_bytes=columns["key_bytes"][:-1]),
        lambda columns: columns.update({name: column[:0] for name, column in columns.items()}),
    ],
)
def test_columns_that_point_astray_are_refused(change: Callable[[Columns], object], saved: Path) -> None:
    rewrite(saved, change)
    assert "contradicts itself" in refused(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda columns: columns.pop("label"),
        lambda columns: columns.update(more=np.zeros(3)),
        lambda columns: columns.update(offset=columns["offset"].astype(np.float64)),
        lambda columns: columns.update(shard=columns["shard"].astype(np.int64)),
    ],
)
def test_other_columns_are_refused(change: Callable[[Columns], object], saved: Path) -> None:
    rewrite(saved, change)
    assert "the columns are not those of an index" in refused(saved)


def test_columns_that_are_no_safetensors_are_refused(saved: Path) -> None:
    for data in (b"", b"x", (2**40).to_bytes(8, "little") + b"{}", b"\x80\x04\x95" + bytes(100)):
        columns_of(saved).write_bytes(data)
        content = json.loads(saved.read_text())
        content["columns"]["sha256"] = hashlib.sha256(data).hexdigest()
        saved.write_text(json.dumps(content))
        assert "damaged" in refused(saved)


def test_keys_that_are_not_text_can_still_be_shown(saved: Path) -> None:
    rewrite(saved, put("key_bytes", 0, 0xFF))
    assert Index.load(saved).key(0) == "\ufffd0000"


def test_the_columns_are_mapped_not_read(saved: Path) -> None:
    """What is not touched takes no memory: the arrays are views of the file."""
    index = Index.load(saved)
    for column in (index.offset, index.length, index.label, index.shard, index.key_bytes):
        assert not column.flags.owndata and not column.flags.writeable
    os.unlink(columns_of(saved))  # the mapping holds the file
    assert index.keys() == [f"{number:05d}" for number in range(7)]


def test_pngs_of_equal_crc_and_length_are_told_apart(tmp_path: Path) -> None:
    def picture(number: int) -> bytes:
        data = io.BytesIO()
        Image.new("RGB", (2, 2), (number & 255, number >> 8, 7)).save(data, "PNG", compress_level=0)
        return data.getvalue()

    known: dict[int, int] = {}
    for number in range(2000):  # of 16 bits: a pair among a few hundred
        other = known.setdefault(zlib.crc32(picture(number)), number)
        if other != number:
            break
    assert len(picture(other)) == len(picture(number)) and picture(other) != picture(number)
    for name, numbers in {"a": (other, other + 1, other + 1), "b": (number, other + 1)}.items():
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for place, which in enumerate(numbers):
                info = tarfile.TarInfo(f"{place:03d}.png")
                info.size = len(picture(which))
                tar.addfile(info, io.BytesIO(picture(which)))
    first, second = (build_index([tmp_path / f"{name}.tar"]) for name in "ab")
    assert first.shared_with(second) == 2 and second.shared_with(first) == 1
    old = replace(first, shards=tuple(replace(shard, checksum="crc32") for shard in first.shards))
    assert old.shared_with(second) is None


def test_checksums_of_older_indexes_are_compared_as_they_were_made(make_shards: Callable[..., Path]) -> None:
    (path,) = make_shards((3,)).glob("*.tar")
    index = build_index([path])
    images = [SampleReader(index).read(number) for number in range(3)]
    shards = tuple(replace(shard, checksum="crc32") for shard in index.shards)
    old = replace(index, shards=shards, crc=np.array([zlib.crc32(image) for image in images], np.uint32))
    old.save(path.with_name("data.index.json"))
    stored = json.loads(path.with_name("data.index.json").read_text())
    assert "checksum" not in stored
    reader = SampleReader(Index.load(path.with_name("data.index.json")))
    assert [reader.read(number) for number in range(3)] == images
    reader.close()
