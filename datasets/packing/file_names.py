"""File names in archives and file systems whose bytes are text in some encoding."""

from __future__ import annotations

import codecs
import os
import struct
import zipfile
import zlib

from leoclr.datasets.errors import DataError

_UTF8_FLAG = 0x800
_UNICODE_PATH = 0x7075  # an extra field of Info-ZIP's: the name in UTF-8


def check_encoding(encoding: str | None) -> None:
    """Raise DataError for what is no encoding of text."""
    try:
        if encoding is not None:
            codecs.lookup(encoding)
            b"a".decode(encoding)
    except (LookupError, ValueError):
        raise DataError(f"--encoding {encoding!r}: expected an encoding, such as gbk, shift_jis or cp437") from None


def decoded(raw: bytes, encoding: str | None) -> str:
    """A name in `encoding`, or where that is None in UTF-8; bytes that are not become lone surrogates.

    Raises:
        DataError: The name is not in the encoding that was given.
    """
    if encoding is None or raw.isascii():
        return raw.decode("utf-8", "surrogateescape")
    try:
        return raw.decode(encoding)
    except ValueError:
        raise DataError(f"the name {raw!r} is not in --encoding {encoding}") from None


def recoded(name: str, encoding: str | None) -> str:
    """A name that was decoded from UTF-8, as it is in the encoding that was given."""
    return name if encoding is None else decoded(name.encode("utf-8", "surrogateescape"), encoding)


def file_name(name: str, encoding: str | None) -> str:
    """A name as the operating system gave it, whose bytes mean the same in every locale: UTF-8, or the encoding that
    was given."""
    return name if name.isascii() else decoded(os.fsencode(name), encoding)


def zip_name(member: zipfile.ZipInfo, encoding: str | None) -> str:
    """The name of a zip's member. Where it is not declared to be UTF-8 the standard says code page 437, and most
    programs write something else: UTF-8 on most systems, else the code page of their country."""
    if member.flag_bits & _UTF8_FLAG:
        return member.orig_filename
    try:
        raw = member.orig_filename.encode("cp437")  # which is how zipfile decoded it
    except UnicodeEncodeError:
        return member.orig_filename  # newer versions of Python have read the extra field
    return _unicode_path(member.extra, raw) or decoded(raw, encoding)


def is_text(name: str) -> bool:
    """Whether all bytes of a name could be decoded."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _unicode_path(extra: bytes, raw: bytes) -> str | None:
    while len(extra) >= 4:
        kind, size = struct.unpack("<HH", extra[:4])
        field, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == _UNICODE_PATH and len(field) > 5 and field[0] == 1:
            if struct.unpack("<I", field[1:5])[0] != zlib.crc32(raw):
                return None
            try:
                return field[5:].decode("utf-8")
            except UnicodeDecodeError:
                return None
    return None
