"""How an encoder and data are named in the JSON records of scores and features."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from leoclr.cli.encoders import LoadedEncoder
from leoclr.datasets.index import Index
from leoclr.datasets.locate import absolute


def described_encoder(encoder: LoadedEncoder) -> dict[str, Any]:
    """Where it lies, what it is, and the digest of its weights."""
    return {
        "path": os.path.abspath(encoder.source),
        "digest": encoder.digest,
        "backbone": encoder.name,
        "stem": encoder.stem,
        "width": encoder.width,
        "image_size": encoder.image_size,
    }


def described_data(index: Index, source: Sequence[str]) -> dict[str, Any]:
    """Where it lies, and its digest."""
    return {"source": list(absolute(source)), "digest": index.digest, "samples": len(index)}
