"""The chunks of a PNG file: those that say how its pixels are meant, and those that say nothing of them."""

from __future__ import annotations

import struct

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MOST_BYTES = 256  # of a chunk that is looked at
_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")


def chunks_before_pixels(data: bytes) -> dict[bytes, bytes]:
    """The chunks sBIT and tRNS of a PNG."""
    found, place = {}, len(_SIGNATURE)
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"IDAT":
            break
        if kind in (b"sBIT", b"tRNS"):
            found[kind] = data[place + 8 : place + 8 + min(length, _MOST_BYTES)]
        place += length + 12
    return found


def without_texts(data: bytes) -> bytes:
    """A PNG without its texts and its colour profile; what is no PNG as it is."""
    if not data.startswith(_SIGNATURE):
        return data
    kept, place = [_SIGNATURE], len(_SIGNATURE)
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind not in _TEXTS:
            kept.append(data[place : place + length + 12])
        place += length + 12
    return b"".join(kept)
