"""Read the members of a tar shard from its headers.

A shard is untrusted, and may hold millions of members. The standard library's tarfile reads an extended header of
any declared size into memory, expands sparse maps, takes a damaged header for the end, and spends 50 us or more on
each member. This walk knows what shards are made of (ustar, GNU long names, PAX), needs a few microseconds a member
and no memory that grows with the file, and names whatever else it meets.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from leoclr.datasets.errors import DataError

BLOCK = 512
MAX_EXTENDED_BYTES = 1 << 20  # a PAX header or a long name; those of real archives take a few hundred bytes
MAX_PADDING_BYTES = 1 << 20  # zeros behind the end mark; tar writes whole records of usually 10 KiB

REFUSED_IN_NAMES = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")  # control characters, and bytes that are not UTF-8
_ZEROS = bytes(BLOCK)
_REGULAR = (b"0", b"\0", b"7")
_KINDS: dict[bytes, Literal["folder", "link"]] = {b"1": "link", b"2": "link", b"5": "folder"}
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes
_PAX, _GLOBAL_PAX, _LONG_NAME, _LONG_LINK = (b"x", b"X"), b"g", b"L", b"K"
_ADLER_MODULUS = 65521


class Member(NamedTuple):
    """A file in a tar: where its bytes lie, how many they are, and whether it is a plain file or something else.

    The name is decoded from UTF-8; other bytes become lone surrogates, as os.fsdecode does it.
    """

    name: str
    offset: int
    size: int
    kind: Literal["file", "folder", "link", "device"]


class _Header(NamedTuple):
    kind: bytes
    name: str
    size: int


def members(file: BinaryIO, path: Path | str) -> Iterator[Member]:
    """Walk over all members. Between two of them the caller may read elsewhere in `file`; `path` names it in errors.

    Raises:
        DataError: It is not a plain tar, is truncated (also where only the end mark is missing), holds a damaged
            header, a sparse member or an oversized name, or there is more behind its end.
    """
    shard_bytes = file.seek(0, os.SEEK_END)
    position = 0
    extended: dict[str, str] = {}
    while (block := _read_at(file, position, BLOCK)) != _ZEROS:
        if len(block) < BLOCK:
            raise DataError(f"{path}: {_cut(file, position + len(block))}")
        try:
            header = _parse_header(block)
            data = position + BLOCK
            if header.kind in (*_PAX, _GLOBAL_PAX, _LONG_NAME, _LONG_LINK):
                extended |= _read_extended(file, header, data)
                position = data + padded(header.size)
                continue
            member = _member(header, extended, data)
        except ValueError as error:
            raise DataError(f"{path}: {_start(file) or f'{error}, at byte {position:,}'}") from None
        stored = 0 if header.kind in _WITHOUT_DATA else member.size
        if data + stored > shard_bytes:
            there = f"of which {shard_bytes - data:,} are there"
            raise DataError(f"{path}: truncated: {member.name!r} declares {stored:,} bytes, {there}")
        yield member
        extended = {}
        position = data + padded(stored)
    _check_end(file, path, position)


def _read_at(file: BinaryIO, position: int, count: int) -> bytes:
    file.seek(position)
    return file.read(count)


def padded(size: int) -> int:
    """Bytes that so many bytes of a member take, in whole blocks."""
    return -(-size // BLOCK) * BLOCK


def _parse_header(block: bytes) -> _Header:
    """The fields that matter; ValueError where the checksum or a number is wrong."""
    if not _checksum_holds(block):
        raise ValueError("not a tar header (its checksum is wrong)")
    name = _text(block[:100])
    if block[345] and block[257:263] == b"ustar\0":  # only POSIX has the start of long names there
        name = f"{_text(block[345:500])}/{name}"
    kind = block[156:157]
    if kind == b"\0" and name.endswith("/"):
        kind = b"5"  # how tars before POSIX marked a folder
    return _Header(kind, name, _number(block[124:136]))


def _checksum_holds(block: bytes) -> bool:
    """Whether the header declares the sum of its bytes, those of the checksum itself counted as spaces."""
    try:
        declared = _number(block[148:156])
    except ValueError:
        return False
    # Adler-32 holds the sum of all bytes plus 1, modulo 65521, in its low half: at a tenth of the cost of sum().
    expected = (declared + sum(block[148:156]) - 8 * ord(" ") + 1) % _ADLER_MODULUS
    return zlib.adler32(block) & 0xFFFF == expected


def _number(field: bytes) -> int:
    """A number in octal digits, or, from 8 GiB on, in base 256 behind a byte 0x80."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if digits.strip(b"01234567"):
        raise ValueError(f"a damaged number {field!r} in a tar header")
    return int(digits or b"0", 8)


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _read_extended(file: BinaryIO, header: _Header, data: int) -> dict[str, str]:
    """What an extended header says of the member behind it: its `path` or `size`."""
    if header.size > MAX_EXTENDED_BYTES:
        raise ValueError(f"an extended header of {header.size:,} bytes (the limit is {MAX_EXTENDED_BYTES:,})")
    body = _read_at(file, data, header.size)
    if len(body) < header.size:
        raise ValueError("truncated inside an extended header")
    if header.kind == _LONG_LINK:
        return {}
    if header.kind == _LONG_NAME:
        return {"path": _text(body)}
    records = dict(_pax_records(body))
    if any(keyword.startswith("GNU.sparse.") for keyword in records):
        raise ValueError("a sparse member (shards hold plain files)")
    told = {keyword: value for keyword, value in records.items() if keyword in ("path", "size")}
    if header.kind == _GLOBAL_PAX and told:
        raise ValueError("a global header that names a member or its size")
    return told


def _pax_records(body: bytes) -> Iterator[tuple[str, str]]:
    """The records of a PAX header, each written as `LENGTH KEYWORD=VALUE` and a newline."""
    start = 0
    while start < len(body) and body[start]:
        digits, space, _ = body[start : start + 20].partition(b" ")
        end = start + int(digits) if space and digits.isdigit() else start
        record = body[start + len(digits) + 1 : end]
        keyword, equals, value = record.removesuffix(b"\n").partition(b"=")
        if end > len(body) or not equals or not record.endswith(b"\n"):
            raise ValueError("a damaged extended header")
        yield keyword.decode("utf-8", "surrogateescape"), value.decode("utf-8", "surrogateescape")
        start = end


def _member(header: _Header, extended: dict[str, str], data: int) -> Member:
    name = extended.get("path", header.name)
    if header.kind == b"S":
        raise ValueError(f"{name!r} is a sparse member (shards hold plain files)")
    size = header.size
    if "size" in extended:
        if not extended["size"].isdecimal():
            raise ValueError(f"a damaged size {extended['size'][:40]!r} in an extended header")
        size = int(extended["size"][:40])
    return Member(name, data, size, "file" if header.kind in _REGULAR else _KINDS.get(header.kind, "device"))


def _check_end(file: BinaryIO, path: Path | str, position: int) -> None:
    """Two zero blocks end an archive. Without them it was cut; with more than padding behind them it is two."""
    if _read_at(file, position, 2 * BLOCK) != 2 * _ZEROS:
        raise DataError(f"{path}: {_cut(file, position)}")
    rest = file.read(MAX_PADDING_BYTES + 1)
    if len(rest) > MAX_PADDING_BYTES or rest.count(0) != len(rest):
        raise DataError(f"{path}: there is more behind the end of the archive; are these two tars in one file?")


def _cut(file: BinaryIO, position: int) -> str:
    return _start(file) or f"the end-of-archive mark is missing at byte {position:,}; the shard is truncated"


def _start(file: BinaryIO) -> str:
    """What a file that is no tar is instead, by its first bytes; "" where they do not tell."""
    start = _read_at(file, 0, BLOCK)
    if not start:
        return "the file is empty"
    if start.startswith((b"\x1f\x8b", b"\xfd7zXZ\x00", b"BZh", b"\x28\xb5\x2f\xfd")):
        return "a compressed archive; shards are plain tars (uncompress it first)"
    if start.startswith(b"PK\x03\x04"):
        return "a zip archive, not a tar; `leoclr shard` packs its images into shards"
    if start.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n")):
        return "an image, not a tar; name the folder that it lies in"
    if start.lstrip()[:1] == b"<":
        return "HTML, not a tar; was an error page saved?"
    return "" if len(start) == BLOCK else f"not a tar (it has {len(start)} bytes)"
