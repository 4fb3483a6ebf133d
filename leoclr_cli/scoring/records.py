"""JSON records of scores and features: built by `new_record`, stored by `kept`, printed by `show`."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from leoclr.cli.run.encoders import LoadedEncoder
from leoclr.cli.run.folder import RunFolder
from leoclr.cli.run.versions import versions
from leoclr.cli.terminal import print_json, say, warn
from leoclr.datasets.errors import NotKept, RunError
from leoclr.datasets.files import writable
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.locate import absolute
from leoclr.evals.tables import results_table

FORMAT = 1
Record = dict[str, Any]


def new_record(kind: str, encoder: LoadedEncoder, began: float, content: Mapping[str, Any]) -> Record:
    """What was found about an encoder, with all that is needed to find it again.

    Args:
        kind: Of the score.
        began: When, by `time.monotonic`.
        content: What is particular to the kind.
    """
    return {
        "format": FORMAT,
        "kind": kind,
        **content,
        "checkpoint": described_encoder(encoder),
        "versions": versions(),
        "command": sys.argv,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seconds": round(time.monotonic() - began, 3),
    }


def described_encoder(encoder: LoadedEncoder) -> Record:
    """Where it lies, what it is, and the digest of its weights."""
    return {
        "path": os.path.abspath(encoder.source) if os.path.exists(encoder.source) else encoder.source,
        "digest": encoder.digest,
        "backbone": encoder.name,
        "stem": encoder.stem,
        "width": encoder.width,
        "image_size": encoder.image_size,
    }


def described_data(index: Index, source: Sequence[str]) -> Record:
    """Where it lies, and its digest."""
    return {"source": list(absolute(source)), "digest": index.digest, "samples": len(index)}


def path_in_run(record: Mapping[str, Any], run: Path | None) -> Path | None:
    """The file of a record in its run, None where there is no run. Its name is the same for the same encoder, data and
    protocol, so that a repetition replaces what was there."""
    if run is None:
        return None
    same = [record[key] for key in ("kind", "protocol", "seed")]
    same += [record["checkpoint"]["digest"], *(record["data"][split]["digest"] for split in ("train", "test"))]
    short = hashlib.sha256(json.dumps(same).encode()).hexdigest()[:10]
    return RunFolder(run).evals / f"{record['kind']}-{short}.json"


@contextmanager
def kept(record: Mapping[str, Any], path: Path | None) -> Iterator[None]:
    """Write a record to `path`, if there is one, before the block shows it: a pipe whose reader has gone must not lose
    a figure. What cannot be written is shown nevertheless.

    Raises:
        NotKept: It could not be written; after the block.
    """
    problem = ""
    try:
        if path is not None:
            write_record(path, record)
    except RunError as error:
        problem = str(error)
    yield
    if problem:
        raise NotKept(problem)
    if path is not None:
        say(f"written to {path}")


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON; RunError where that cannot be done."""
    with writable(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def as_table(record: Mapping[str, Any]) -> str:
    """The text of a score: what was scored, the figures, the protocol."""
    checkpoint, data = record["checkpoint"], record["data"]
    return "\n".join(
        [
            f"{checkpoint['path']} ({checkpoint['backbone']}, weights {checkpoint['digest'][:12]})",
            f"{data['train']['samples']:,} training and {data['test']['samples']:,} test images of {data['classes']} "
            "classes",
            "",
            results_table({"": record}),
            "",
            *record["protocol"],
        ]
    )


def show(record: Mapping[str, Any], as_json: bool, text: Callable[[Mapping[str, Any]], str] = as_table) -> None:
    """Print a record as JSON or as `text`, and its notes as warnings."""
    for note in record["notes"]:
        warn(note)
    if as_json:
        print_json(record)
    else:
        print(text(record))
