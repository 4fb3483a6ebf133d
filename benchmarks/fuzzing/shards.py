"""Tar headers, index files and label members."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.fuzzing.target import Target, refusable
from leoclr.datasets.errors import LeoclrError
from leoclr.datasets.shards.description import as_json, class_line, contents, hint, remarks
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.reindex import read_classes
from leoclr.datasets.shards.sample_members import Members
from leoclr.datasets.shards.scan import build_index, index_file


def describe(index: Index) -> None:
    lines = [contents(index), class_line(index), hint(index), *remarks(index), json.dumps(as_json(index))]
    assert all(line is None or "\n" not in line for line in lines)


# Tar headers


def _tar_bytes(members: list[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=format) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        end = archive.offset
    return data.getvalue()[: end + 2 * tarfile.BLOCKSIZE]


def _sealed_tar(data: bytes) -> bytes:
    blocks = bytearray(data)
    for start in range(0, len(blocks) - 511, 512):
        block = blocks[start : start + 512]
        if block[257:262] == b"ustar":
            blank = bytes(block[:148]) + b" " * 8 + bytes(block[156:])
            blocks[start + 148 : start + 156] = b"%06o\0 " % sum(blank)
    return bytes(blocks)


def _try_tar(data: bytes, folder: Path) -> None:
    which = (Members(), Members("jpg,png", "json:class"), Members(None, "txt"))[len(data) % 3]
    path = folder / "s.tar"
    path.write_bytes(_sealed_tar(data))
    index = build_index([path], which=which)
    describe(index)
    index.save(folder / "s.index.json")
    assert Index.load(folder / "s.index.json").digest == index.digest


def _tar_seeds() -> list[bytes]:
    long = "n" * 150
    sets: list[list[tuple[str, bytes]]] = [
        [("a.jpg", b"12345"), ("a.cls", b"1"), ("b.jpg", b"x"), ("b.cls", b"cat")],
        [(f"{long}/c.png", b""), (f"{long}/c.json", b'{"class": 3}'), ("é/d.jpg", b"1" * 600)],
        [("e.left.png", b"1"), ("e.txt", b"dog"), ("__key__", b""), ("f.JPG", b"2")],
    ]
    formats = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    return [_tar_bytes(members, format) for members in sets for format in formats if format or len(members) != 3]


# Index files


def _try_index(data: bytes, folder: Path) -> None:
    """The input is the JSON file, a zero byte and the file of columns."""
    text, _, columns = data.partition(b"\0")
    digest = hashlib.sha256(columns).hexdigest().encode()
    (folder / "s.index.json").write_bytes(text.replace(b"DIGEST", digest))
    (folder / "s.index.safetensors").write_bytes(columns)
    index = Index.load(folder / "s.index.json")
    describe(index)
    assert len(index.keys()) == len(index)
    assert len(index.digest) == len(index.content_digest)
    index.with_shards(range(len(index.shards)))


def _index_seeds() -> list[bytes]:
    seeds = []
    for members, which in product(_tar_seeds()[::2], (Members(), Members("left.png,jpg", "json:class"))):
        with TemporaryDirectory() as name:
            path = Path(name) / "s.tar"
            path.write_bytes(members)
            try:
                build_index([path], which=which).save(Path(name) / "s.index.json")
            except LeoclrError:
                continue
            columns = (Path(name) / "s.index.safetensors").read_bytes()
            text = (Path(name) / "s.index.json").read_bytes()
        seeds.append(text.replace(hashlib.sha256(columns).hexdigest().encode(), b"DIGEST") + b"\0" + columns)
    return seeds


# Label members and files of class names


def _try_label(data: bytes, folder: Path) -> None:
    """The first byte says how the label is named."""
    which = (Members(), Members(None, "json:class"), Members(None, "cls:class"), Members(None, "txt"))[
        (data[0] if data else 0) % 4
    ]
    suffix, label = which.label_name or "cls", data[1:]
    tar = _tar_bytes([("a.jpg", b"1"), (f"a.{suffix}", label), ("b.jpg", b"1"), (f"b.{suffix}", b"cat")])
    index = index_file(io.BytesIO(tar), "s.tar", checksum=False, which=which)
    describe(index)
    assert int(index.label.min()) >= -1 and len(index) == 2
    names = folder / "names.txt"
    names.write_bytes(label)
    found = read_classes(names)
    assert len(set(found)) == len(found)
    path = folder / "s.tar"
    path.write_bytes(_tar_bytes([("a.jpg", b"1"), ("a.cls", b"0")]))
    build_index([path], classes=found).save(folder / "s.index.json")
    assert Index.load(folder / "s.index.json").classes == found


def _label_seeds() -> list[bytes]:
    texts = (
        "7",
        "-1",
        "0.0",
        "cat",
        "été\n",
        '{"class": 12}',
        '{"class": {"class": [1e5, "a"]}}',
        "[1, 2]",
        "cat\ndog",
    )
    plain = [text.encode() for text in texts] + [b"\xef\xbb\xbfcat\r\ndog\r\n", b"\xff\xfec\0", b"9" * 30, b""]
    return [bytes([kind]) + text for kind in range(4) for text in plain]


TAR = Target(refusable(_try_tar), _tar_seeds)
INDEX = Target(refusable(_try_index), _index_seeds, json=lambda data: (0, data.find(b"\0")))
LABELS = Target(refusable(_try_label), _label_seeds, 2048, json=lambda data: (1, len(data)))
