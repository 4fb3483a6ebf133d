"""Damaged and hostile files by the thousand: every one is read, or refused in one line; no other error, no wait.

Each case is a valid file with a few bytes changed, cut, repeated or filled in from a dictionary, by a seeded generator:
a failure names its seed. `MUTATIONS=100000` in the environment tries as many of each kind.
"""

from __future__ import annotations

import io
import json
import os
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from leoclr.datasets.errors import LeoclrError
from leoclr.datasets.packing.arrangement import arrange
from leoclr.datasets.packing.sources import open_source
from leoclr.datasets.shards.check import difference_of_members
from leoclr.datasets.shards.description import as_json, class_line, contents, hint, remarks
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.labels import MAX_LABEL, parse_json, parse_text
from leoclr.datasets.shards.reader import SampleReader
from leoclr.datasets.shards.sample_members import Members
from leoclr.datasets.shards.scan import build_index

COUNT = int(os.environ.get("MUTATIONS", "300"))
_WORDS: tuple[bytes, ...] = (
    b"\0",
    b"\xff",
    b"\x80",
    b"/",
    b"..",
    b"\\",
    b"path=",
    b"size=",
    b"99999999999",
    b"-1",
    b"7" * 40,
    b"\xef\xbb\xbf",
)
_WORDS += (b"L", b"x", b"g", b"S", b"\n", b'"', b"{", b"[", b"}", b"PK\x01\x02", b"\x01\x99", b"NaN", b"1e999", b"null")


def mutated(data: bytes, dice: random.Random) -> bytes:
    """The data with one to eight changes."""
    changed = bytearray(data)
    for _ in range(dice.randint(1, 8)):
        place, kind = dice.randrange(len(changed) + 1), dice.randrange(6)
        if kind == 0:
            del changed[place:]
        elif kind == 1 and place < len(changed):
            changed[place] ^= 1 << dice.randrange(8)
        elif kind == 2:
            word = dice.choice(_WORDS)
            changed[place : place + len(word)] = word
        elif kind == 3:
            changed[place:place] = dice.choice(_WORDS)
        elif kind == 4:
            del changed[place : place + dice.randint(1, 600)]
        elif len(changed) < 1 << 16:
            start = dice.randrange(len(changed) + 1)
            changed[place:place] = changed[start : start + dice.randint(1, 1024)]
    return bytes(changed)


def tar(names: tuple[str, ...]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = 5
            archive.addfile(info, io.BytesIO(b"%05d" % number))
    return data.getvalue()


def sealed(data: bytes) -> bytes:
    """The tar with the checksums of its headers put right, so that a change reaches further than these."""
    blocks = bytearray(data)
    for start in range(0, len(blocks) - 511, 512):
        block = blocks[start : start + 512]
        if block[257:262] == b"ustar":
            blank = bytes(block[:148]) + b" " * 8 + bytes(block[156:])
            blocks[start + 148 : start + 156] = b"%06o\0 " % sum(blank)
    return bytes(blocks)


def describe(index: Index) -> None:
    """All that is printed of an index."""
    lines = [contents(index), class_line(index), hint(index), *remarks(index), json.dumps(as_json(index))]
    assert all(line is None or "\n" not in line for line in lines)


def try_all(name: str, original: bytes, attempt: Callable[[bytes], None], mend: Callable[[bytes], bytes]) -> int:
    """Try mutations of a file; how many of them were read."""
    read = 0
    for seed in range(COUNT):
        data = mend(mutated(original, random.Random(f"{name} {seed}")))
        try:
            attempt(data)
            read += 1
        except LeoclrError as error:
            assert "\n" not in str(error), (name, seed)
        except Exception as error:
            raise AssertionError(f"{name}, seed {seed}: {error!r}") from error
    return read


@pytest.mark.parametrize("which", [Members(), Members("jpg,png", "json:class"), Members(None, "txt")])
def test_tar_headers_and_label_members(which: Members, tmp_path: Path) -> None:
    names = ("a.jpg", "a.cls", "a.json", "long" * 40 + ".png", "b.cls", "b.png", "c/d.jpg", "c/d.txt", "é.jpg")
    path = tmp_path / "s.tar"

    def attempt(data: bytes) -> None:
        path.write_bytes(data)
        index = build_index([path], which=which)
        describe(index)
        reader = SampleReader(index)
        assert all(len(reader.read(number)) == index.length[number] for number in range(len(index)))
        reader.close()
        assert difference_of_members(index, 0) is None

    assert try_all("shard", tar(names), attempt, sealed) > 0


@pytest.mark.parametrize("file", ["s.index.json", "s.index.safetensors"])
def test_index_files(file: str, tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(tar(("a.jpg", "a.cls", "b.jp2", "c.png")))
    build_index([tmp_path / "s.tar"], which=Members("jpg,png")).save(tmp_path / "s.index.json")
    original = (tmp_path / file).read_bytes()

    def attempt(data: bytes) -> None:
        (tmp_path / file).write_bytes(data)
        describe(Index.load(tmp_path / "s.index.json"))

    try_all(file, original, attempt, lambda data: data)


@pytest.mark.parametrize("encoding", [None, "gbk"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives_to_be_packed(kind: str, encoding: str | None, tmp_path: Path) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("train/cat/1.png", "train/dög/2.jpg", "test/cat/3.png", "test/dög/4.png", "a.TXT"):
            archive.writestr(name, b"bytes of it" * 9)
    original = data.getvalue() if kind == "zip" else tar(("train/cat/1.png", "train/dog/2.jpg", "test/cat/3.png"))
    path = tmp_path / f"x.{kind}"

    def attempt(data: bytes) -> None:
        path.write_bytes(data)
        with open_source(str(path), tmp_path, encoding=encoding) as source:
            assert all(line.splitlines() == [line] for line in source.notes.lines() if line.isprintable())
            for name in source.paths:
                try:
                    source.read(name)
                except LeoclrError:
                    source.size(name)
            arrange(source)

    try_all(f"{kind} {encoding}", original, attempt, lambda data: sealed(data) if kind == "tar" else data)


def test_label_texts() -> None:
    dice = random.Random(0)
    originals = (b"12\n", b'{"class": 12}', "\ufeffété".encode(), b'{"class": {"class": [1e5, "a"]}}')
    for _ in range(20 * COUNT):
        data = mutated(dice.choice(originals), dice)
        for found in (parse_text(data), parse_json(data, "class")):
            if isinstance(found, str):
                assert found and not any(character < " " for character in found)
            assert not isinstance(found, int) or 0 <= found <= MAX_LABEL
