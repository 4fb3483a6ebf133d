"""32-bit checksums of images, to detect changed images and find equal ones.

CRC-32, which older indexes have, is worth 16 bits for PNG: each part of such a file ends in its own CRC-32, in
big-endian order, behind which that of the file depends on no more than the exclusive or of that CRC and its reverse. Of
ten thousand small PNGs of one length seven hundred have the CRC-32 of another.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import BinaryIO, Literal

from leoclr.datasets.files import CHUNK_BYTES

ChecksumKind = Literal["crc32", "blake2b"]
NO_CHECKSUM = 0
_BYTES = 4


def checksum(data: bytes, kind: ChecksumKind = "blake2b") -> int:
    """The checksum of an image's bytes; never `NO_CHECKSUM` by BLAKE2b."""
    if kind == "crc32":
        return zlib.crc32(data)
    return _number(hashlib.blake2b(data, digest_size=_BYTES).digest())


def checksum_of(file: BinaryIO, length: int) -> int:
    """The same of the next bytes of a file, read in chunks: a member of a shard may be as large as the shard."""
    digest = hashlib.blake2b(digest_size=_BYTES)
    while length > 0 and (chunk := file.read(min(length, CHUNK_BYTES))):
        digest.update(chunk)
        length -= len(chunk)
    return _number(digest.digest())


def _number(digest: bytes) -> int:
    return int.from_bytes(digest, "big") or 1
