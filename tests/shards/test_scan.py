"""Indexing shards of other tools: layouts that are read, and damage and attacks that are named and refused."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import webdataset

from leoclr.datasets.errors import DataError
from leoclr.datasets.shards.reader import SampleReader
from leoclr.datasets.shards.scan import build_index
from leoclr.datasets.shards.tar import MAX_EXTENDED_BYTES

Members = Sequence[tuple[str, bytes]]
IMAGE = b"bytes of an image"


def info(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member


def write_tar(path: Path, files: Members, format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in files:
            archive.addfile(info(name, len(data)), io.BytesIO(data))
    return path


@pytest.fixture
def shard(tmp_path: Path) -> Callable[..., Path]:
    """`shard(files)` writes them to a tar and returns its path."""
    return lambda files, format=tarfile.PAX_FORMAT: write_tar(tmp_path / "s.tar", files, format)


def samples(path: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes of the image and label by key."""
    index = build_index([path])
    reader = SampleReader(index)
    return {index.key(number): (reader.read(number), int(index.label[number])) for number in range(len(index))}


def webdataset_keys(path: Path) -> list[str]:
    found = webdataset.WebDataset([str(path)], shardshuffle=False, empty_check=False)
    return [sample["__key__"] for sample in found if any(suffix in sample for suffix in ("jpg", "png", "v1.jpg"))]


def refused(path: Path) -> str:
    """The one line that indexing ends in; it names the shard."""
    with pytest.raises(DataError) as caught:
        build_index([path])
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


# What is read


def test_the_layout_of_webdataset(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for number in range(3):
            writer.write({"__key__": f"{number:04d}", "jpg": IMAGE + b"%d" % number, "cls": number, "json": {"a": 1}})
    assert samples(path) == {f"{n:04d}": (IMAGE + b"%d" % n, n) for n in range(3)}


def test_the_layout_of_img2dataset(shard: Callable[..., Path]) -> None:
    """Image, caption and metadata; where a download failed there is no image."""
    path = shard(
        [
            ("000000000.jpg", b"first"),
            ("000000000.json", b'{"caption": "a"}'),
            ("000000000.txt", b"a"),
            ("000000001.json", b'{"status": "failed_to_download"}'),
            ("000000002.jpg", b"third"),
            ("000000002.json", b"{}"),
        ]
    )
    assert samples(path) == {"000000000": (b"first", -1), "000000002": (b"third", -1)}
    index = build_index([path])
    assert index.shards[0].samples == 2 and index.shards[0].without_image == 1
    assert not index.labelled


NAMES = [
    "plain.jpg",
    "folder/inside.png",
    "./dotted/start.jpg",
    "v1.0/folder.jpg",
    "with space.jpg",
    "hash#and?query;100%.jpg",
    "größe 日本語 🙂.jpg",
    "x" * 150 + ".jpg",
    "deep/" * 40 + "x.jpg",
    "d" * 120 + "/" + "y" * 60 + ".jpg",
    "a.v1.jpg",
    "SHOUTED.JPG",
    "a:b\\c*.jpg",
]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves its shards open
@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
def test_names_and_keys_are_those_of_webdataset(format: int, shard: Callable[..., Path]) -> None:
    files = [(name, b"%d" % number) for number, name in enumerate(NAMES)]
    path = shard(files, format)
    found = samples(path)
    assert list(found) == webdataset_keys(path)
    assert [data for data, _ in found.values()] == [data for _, data in files]


def test_long_names_of_plain_ustar(shard: Callable[..., Path]) -> None:
    name = "d" * 90 + "/" + "e" * 40 + "/" + "f" * 80
    assert list(samples(shard([(f"{name}.jpg", IMAGE)], tarfile.USTAR_FORMAT))) == [name]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("name", ["b.jpg", "b.seg.PNG", "b.cls"])
def test_a_link_for_an_image_or_label_is_refused(tmp_path: Path, kind: bytes, name: str) -> None:
    """tar stores the second of two hard links so, and all of a data set that is made of links."""
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as archive:
        archive.addfile(info("a.jpg", 4), io.BytesIO(b"1234"))
        archive.addfile(info("a.txt", 0, kind))
        archive.addfile(info(name, 0, kind))
    with pytest.raises(DataError, match=f"{name}' is a link; a shard must hold the files themselves"):
        build_index([path])


def test_what_is_no_part_of_a_sample_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "a global header"}) as archive:
        for name in ("README", ".hidden.jpg", "folder/.jpg", "__meta__/notes.jpg", "__info__", "data.npy", "a.__bad__"):
            archive.addfile(info(name, 4), io.BytesIO(b"1234"))
        for kind in (tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            archive.addfile(info("other.jpg", 0, kind))
        archive.addfile(info("__kept.jpg", 4), io.BytesIO(b"5678"))
    assert samples(path) == {"__kept": (b"5678", -1)}


def test_an_empty_tar_has_no_samples(shard: Callable[..., Path]) -> None:
    assert len(build_index([shard([])])) == 0


def test_an_empty_image_is_indexed(shard: Callable[..., Path]) -> None:
    assert samples(shard([("a.jpg", b""), ("b.jpg", b"x")])) == {"a": (b"", -1), "b": (b"x", -1)}


def test_several_shards_stand_in_the_order_given(tmp_path: Path) -> None:
    paths = [write_tar(tmp_path / f"{n}.tar", [(f"{n}{m}.jpg", IMAGE) for m in range(n)]) for n in (2, 0, 3)]
    seen: list[int] = []
    index = build_index(paths, advance=seen.append)
    assert index.keys() == ["20", "21", "30", "31", "32"] and index.shard.tolist() == [0, 0, 2, 2, 2]
    assert seen == [path.stat().st_size for path in paths]
    assert all(shard.sha256 is not None and len(shard.sha256) == 64 for shard in index.shards)
    assert build_index(paths, checksum=False).shards[0].sha256 is None


# How members are grouped


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a.jpg", "b.jpg", "a.cls", "b.cls"), "'a' are not adjacent"),
        (("a.jpg", "b.jpg", "a.jpg"), "'a' are not adjacent, or the key stands twice"),
        (("a.jpg", "a.jpg"), "two images under the key 'a'"),
        (("a.jpg", "a.png"), "two images under the key 'a'"),
        (("img.v1.0.jpg", "img.v1.1.jpg"), "two images under the key 'img'; keys end at the first dot"),
        (("a.cls", "a.cls"), "two labels under the key 'a'"),
    ],
)
def test_members_that_would_be_mixed_are_refused(
    names: Sequence[str], message: str, shard: Callable[..., Path]
) -> None:
    assert message in refused(shard([(name, b"1") for name in names]))


def test_labels_are_read_and_checked_against_the_class_names(shard: Callable[..., Path]) -> None:
    path = shard([("a.jpg", IMAGE), ("a.cls", b"3\n"), ("b.cls", b"007"), ("b.jpg", IMAGE)])
    index = build_index([path])
    assert index.label.tolist() == [3, 7] and index.labelled and index.class_count == 2
    assert build_index([path], classes=list("abcdefgh")).classes == tuple("abcdefgh")
    with pytest.raises(DataError, match="sample b has class 7, but there are 4 names"):
        build_index([path], classes=list("abcd"))


@pytest.mark.parametrize(
    "name", ["../up.jpg", "a/../../up.jpg", "/etc/absolute.jpg", "new\nline.jpg", "esc\x1b[2J.jpg", "\udcff.jpg"]
)
@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
def test_dangerous_names_are_refused(name: str, format: int, shard: Callable[..., Path]) -> None:
    assert f"refused the member name {name!r}" in refused(shard([("fine.jpg", IMAGE), (name, IMAGE)], format))


# Damage

TEN = [(f"{number:02d}.jpg", b"x" * 700) for number in range(10)]  # each takes a header and two blocks
END = 10 * 3 * 512


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (0, "the file is empty"),
        (100, "not a tar"),
        (4 * 1536 + 200, "end-of-archive mark is missing at byte 6,344; the shard is truncated"),
        (4 * 1536 + 700, "truncated: '04.jpg' declares 700 bytes, of which 188 are there"),
        (4 * 1536, "end-of-archive mark is missing at byte 6,144; the shard is truncated"),
        (END, "end-of-archive mark is missing"),
        (END + 512, "end-of-archive mark is missing"),
    ],
    ids=["empty", "first header", "header", "data", "member boundary", "no end mark", "half an end mark"],
)
def test_a_truncated_shard_is_refused(length: int, message: str, shard: Callable[..., Path]) -> None:
    path = shard(TEN, tarfile.USTAR_FORMAT)
    os.truncate(path, length)
    assert message in refused(path)


def test_a_whole_end_mark_is_enough(shard: Callable[..., Path]) -> None:
    path = shard(TEN, tarfile.USTAR_FORMAT)
    os.truncate(path, END + 1024)
    assert len(samples(path)) == 10


def test_two_archives_in_one_file_are_refused(shard: Callable[..., Path]) -> None:
    path = shard(TEN)
    path.write_bytes(path.read_bytes() * 2)
    assert "more behind the end" in refused(path)


def test_endless_padding_is_refused_without_reading_it(shard: Callable[..., Path]) -> None:
    path = shard(TEN)
    os.truncate(path, 1 << 40)
    start = time.process_time()
    assert "more behind the end" in refused(path)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("place", [0, 3 * 1536 + 2, 3 * 1536 + 130, 3 * 1536 + 150])
def test_a_damaged_header_is_not_taken_for_the_end(place: int, shard: Callable[..., Path]) -> None:
    path = shard(TEN, tarfile.USTAR_FORMAT)
    data = bytearray(path.read_bytes())
    data[place] ^= 0x15
    path.write_bytes(data)
    message = refused(path)
    assert "header" in message and f"at byte {place // 1536 * 1536:,}" in message


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"\x1f\x8b\x08\x00", "compressed archive; shards are plain tars"),
        (b"BZh91AY", "compressed archive"),
        (b"\xfd7zXZ\x00", "compressed archive"),
        (b"\x28\xb5\x2f\xfd", "compressed archive"),
        (b"PK\x03\x04", "a zip archive"),
        (b"\n<!DOCTYPE html><html>", "HTML, not a tar; was an error page saved?"),
        (b"\x89PNG\r\n\x1a\n", "not a tar"),
    ],
)
@pytest.mark.parametrize("size", [40, 5000])
def test_other_files_called_tar_are_told_apart(start: bytes, message: str, size: int, tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(start.ljust(size, b"."))
    assert message in refused(path)


def test_a_gzipped_tar_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w:gz") as archive:
        archive.addfile(info("a.jpg", 4), io.BytesIO(b"1234"))
    assert "compressed archive" in refused(tmp_path / "s.tar")


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    assert "there is no such shard" in refused(tmp_path / "none.tar")
    assert "cannot be read" in refused(tmp_path)


# Attacks: each in a process whose memory is limited


def sealed(header: bytes) -> bytes:
    """The header with its checksum put right."""
    blank = header[:148] + b" " * 8 + header[156:]
    return header[:148] + b"%06o\0 " % sum(blank) + header[156:]


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    return info(name, size, kind).tobuf(tarfile.GNU_FORMAT)


def pax(records: bytes, declared: int | None = None) -> bytes:
    body = records.ljust(-(-len(records) // 512) * 512, b"\0")
    return header("pax", len(records) if declared is None else declared, b"x") + body


def record(keyword: bytes, value: bytes) -> bytes:
    length = len(keyword) + len(value) + 3
    length += len(str(length + len(str(length))))
    return b"%d %s=%s\n" % (length, keyword, value)


def gnu_sparse() -> bytes:
    """An old GNU sparse member: 1 GiB in 512 bytes."""
    block = bytearray(header("a.jpg", 512, b"S"))
    block[386:410] = b"%011o\0" % 0 + b"%011o\0" % 512
    block[483:495] = b"%011o\0" % (1 << 30)
    return sealed(bytes(block)) + bytes(512)


FILE = header("a.jpg", 4) + b"1234".ljust(512, b"\0")
LONG = b"\0" * 1024

ATTACKS = {
    "sparse member": (gnu_sparse(), "'a.jpg' is a sparse member"),
    "sparse by PAX": (pax(record(b"GNU.sparse.realsize", b"1073741824")) + FILE, "a sparse member"),
    "8 GiB declared": (header("a.jpg", 8 << 30) + LONG, "truncated: 'a.jpg' declares 8,589,934,592 bytes"),
    "2**80 declared": (header("a.jpg", 1 << 80) + LONG, "truncated"),
    "negative size": (sealed(header("a.jpg", 0)[:124] + b"\xff" * 12 + header("a.jpg", 0)[136:]), "damaged number"),
    "8 GiB by PAX": (pax(record(b"size", b"8589934592")) + FILE, "truncated: 'a.jpg' declares 8,589,934,592 bytes"),
    "size no number": (pax(record(b"size", b"1e9")) + FILE, "damaged size"),
    "size of digits": (pax(record(b"size", b"9" * 5000)) + FILE, "truncated|damaged size"),
    "huge PAX header": (pax(record(b"path", b"b.jpg"), 8 << 30) + FILE, "an extended header of 8,589,934,592 bytes"),
    "huge long name": (header("long", 4 << 30, b"L") + LONG, "an extended header of 4,294,967,296 bytes"),
    "huge long link": (header("long", 4 << 30, b"K") + LONG, "an extended header of 4,294,967,296 bytes"),
    "PAX header cut": (pax(record(b"path", b"b.jpg"), MAX_EXTENDED_BYTES), "truncated inside an extended header"),
    "PAX without length": (pax(b"path=b.jpg\n") + FILE, "damaged extended header"),
    "PAX length nought": (pax(b"0 path=b.jpg\n") + FILE, "damaged extended header"),
    "PAX length too long": (pax(b"900 path=b.jpg\n") + FILE, "damaged extended header"),
    "PAX of digits": (pax(b"9" * 5000) + FILE, "damaged extended header"),
    "global name": (header("g", 20, b"g") + record(b"path", b"b.jpg").ljust(512, b"\0") + FILE, "a global header"),
    "a million headers": (pax(record(b"comment", b"x")) * 20_000, "end-of-archive mark is missing"),
}

LIMITED = """
import resource, sys
from pathlib import Path
from leoclr.datasets.errors import DataError
from leoclr.datasets.shards.scan import build_index
for name in sys.argv[1:]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        build_index([Path(name)])
    except DataError as error:
        print(error)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 10_000, f"{name}: {grown} KiB"
"""


def test_attacks_are_refused_within_little_memory(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number:02d}.tar" for number in range(len(ATTACKS))]
    for path, (data, _) in zip(paths, ATTACKS.values(), strict=True):
        path.write_bytes(data + bytes(1024 if len(data) < 1 << 20 else 0))
        os.truncate(path, path.stat().st_size)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *map(str, paths)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(ATTACKS), done.stdout
    for line, path, (name, (_, message)) in zip(lines, paths, ATTACKS.items(), strict=True):
        assert str(path) in line and any(part in line for part in message.split("|")), f"{name}: {line}"


def test_a_huge_extended_header_is_refused_although_it_is_there(tmp_path: Path) -> None:
    """8 GiB of zeros that take no room on the disk: reading them would take them in memory."""
    path = tmp_path / "s.tar"
    path.write_bytes(pax(record(b"path", b"b.jpg"), 8 << 30))
    os.truncate(path, 9 << 30)
    assert "an extended header of 8,589,934,592 bytes" in refused(path)


def test_a_huge_image_is_indexed_but_never_read(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(header("a.jpg", 3 << 30))
    os.truncate(path, 512 + (3 << 30) + 1024)
    index = build_index([path], checksum=False)
    assert index.length.tolist() == [3 << 30]
    with pytest.raises(DataError, match=r"^a in .*s.tar: the image has 3,221,225,472 bytes; the limit"):
        SampleReader(index).image(0)


def test_old_tars_are_read(tmp_path: Path) -> None:
    """Without a magic number, as before POSIX; and GNU's with times where POSIX has the start of long names."""
    old = bytearray(header("a.jpg", 4))
    old[257:265] = bytes(8)
    old[156:157] = b"\0"
    folder = bytearray(header("folder/", 0))
    folder[156:157] = b"\0"
    timed = bytearray(header("b.jpg", 4))
    timed[345:369] = b"14712345670\0" * 2
    body = b"1234".ljust(512, b"\0")
    path = tmp_path / "s.tar"
    path.write_bytes(sealed(bytes(folder)) + sealed(bytes(old)) + body + sealed(bytes(timed)) + body + bytes(1024))
    assert list(samples(path)) == ["a", "b"]


def test_many_members_are_indexed_quickly_and_in_little_memory(tmp_path: Path) -> None:
    one = header("@@@@@@.jpg", 4), header("@@@@@@.cls", 1)
    path = tmp_path / "s.tar"
    with path.open("wb") as file:
        for number in range(50_000):
            for block, data in zip(one, (b"1234", b"7"), strict=True):
                named = block.replace(b"@@@@@@", b"%06d" % number)
                file.write(sealed(named) + data.ljust(512, b"\0"))
        file.write(bytes(1024))
    start = time.process_time()
    index = build_index([path], checksum=False)
    taken = time.process_time() - start
    assert len(index) == 50_000 and index.label.tolist() == [7] * 50_000
    assert 100_000 / taken > 20_000  # members a second; about 100,000 on an idle machine, tarfile 20,000
