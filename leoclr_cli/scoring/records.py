"""The JSON records of scores and features: how they name an encoder and data, and that they outlive what is printed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leoclr.cli.run.encoders import LoadedEncoder
from leoclr.cli.terminal import print_json, say
from leoclr.datasets.errors import NotKept, RunError
from leoclr.datasets.files import write_atomic
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.locate import absolute


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


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON; RunError where that cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}") from error


def keep_and_show(path: Path | None, record: Mapping[str, Any], text: str | None) -> None:
    """Write a record where it belongs, then print it: as `text`, or as JSON where that is None. In this order, because
    a pipe whose reader has gone must not lose a figure; what cannot be written is printed nevertheless.

    Raises:
        NotKept: It cannot be written.
    """
    problem = ""
    if path is not None:
        try:
            write_record(path, record)
        except RunError as error:
            problem = str(error)
    if text is None:
        print_json(record)
    else:
        print(text)
    if problem:
        raise NotKept(problem)
    if path is not None:
        say(f"written to {path}")
