"""Groups of near copies in a data set, with a list of those to leave out and a picture: `leoclr duplicates`."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from leoclr.cli.image_folders import is_image_folder
from leoclr.cli.plotting.drawing import save_picture
from leoclr.cli.plotting.pictures import copies_picture
from leoclr.cli.run.encoders import LoadedEncoder
from leoclr.cli.run.folder import feature_folder
from leoclr.cli.run.lock import RunLock
from leoclr.cli.scoring.embedding import fill, opened
from leoclr.cli.scoring.records import described_data, new_record
from leoclr.cli.scoring.request import Request
from leoclr.cli.terminal import progress, warn
from leoclr.datasets.errors import BadImage, DataError
from leoclr.datasets.files import refused_in_a_line, writable
from leoclr.datasets.shards.copies import exact_copies
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.reader import SampleReader
from leoclr.datasets.wording import counted
from leoclr.evals.features.cache import DEFAULT_LIMIT, feature_key
from leoclr.evals.features.pieces import PieceFolder
from leoclr.evals.near_copies import near_copies, unit_features

_ROWS, _COLUMNS = 16, 7  # of the picture: groups, and copies of one
_SUSPICIOUS = 0.5  # share of the images in one group that speaks against threshold or encoder
_MANY = 0.1  # share of the images that are copies by their features alone, likewise


@dataclass(frozen=True)
class Copy:
    """An image that another one makes superfluous, by their numbers in the index.

    Attributes:
        similarity: Cosine of the features with those of the image that is kept.
        same_bytes: Whether it is an earlier image byte for byte.
    """

    number: int
    similarity: float
    same_bytes: bool


Groups = dict[int, list[Copy]]  # by the number of the image that is kept


def find_duplicates(request: Request, threshold: float, output: Path, picture: Path | None, memory: int) -> Any:
    """Find the groups, write the list and the picture, and return the record.

    Args:
        request: As of `opened`.
        output: Text file for the keys of the copies, one a line.
        picture: PNG file; None draws none.
        memory: Bytes for the comparison.

    Raises:
        LeoclrError: Encoder, data or device cannot be used, or a file cannot be written.
    """
    began = time.monotonic()
    device, encoder, source, index = opened(request)
    with progress("looking for equal bytes", len(index), "images") as advance:
        exact = exact_copies(index, advance)
    groups, protocol = _groups(encoder, index, exact, request, device, threshold, memory)
    copies = [copy for group in groups.values() for copy in group]
    keys = [_listed(index, copy.number) for copy in sorted(copies, key=lambda copy: copy.number)]
    doubt = _doubt(index, groups)
    if doubt:
        warn(doubt)
    drawn = picture if copies else None
    with writable(output) as temporary:
        temporary.write_bytes("".join(f"{key}\n" for key in keys).encode())
    if drawn is not None:
        _draw(index, groups, threshold, drawn)
    content = {
        "threshold": threshold,
        "images": len(index),
        "copies": len(copies),
        "same_bytes": sum(copy.same_bytes for copy in copies),
        "groups": [_described(index, kept, group) for kept, group in sorted(groups.items())],
        "list": str(output),
        "picture": None if drawn is None else str(drawn),
        "doubtful": bool(doubt),
        "protocol": protocol,
        "data": described_data(index, source),
        "folder": source[0] if len(source) == 1 and is_image_folder(source[0]) else None,
    }
    return new_record("duplicates", encoder, began, content)


def _groups(
    encoder: LoadedEncoder,
    index: Index,
    exact: dict[int, int],
    request: Request,
    device: torch.device,
    threshold: float,
    memory: int,
) -> tuple[Groups, list[str]]:
    """The groups by features, with the copies of equal bytes added to them."""
    arithmetic = f"{request.precision} on {device.type}"
    key = feature_key(encoder.identity, index.content_digest, encoder.preprocessing, arithmetic)
    folder = feature_folder(encoder.run) / f"pieces-{key[:16]}"
    dimension = encoder.backbone.feature_dim
    with refused_in_a_line(folder), RunLock(folder):
        pieces = PieceFolder(folder, {"features": key})
        fill(pieces, encoder, index, request, device)
        readable = np.zeros(len(index), np.bool_)
        for piece in pieces.read(index):
            readable[piece.numbers] = True
        wanted = readable.copy()
        wanted[list(exact)] = False
        order = np.flatnonzero(wanted)
        order = order[np.argsort(-index.length[order], kind="stable")]  # the largest file of a group is kept
        places = np.full(len(index), -1)
        places[order] = np.arange(len(order))
        units = unit_features(lambda: pieces.read(index), places, len(order), dimension, folder)
    if request.no_cache or 4 * len(index) * dimension > DEFAULT_LIMIT:
        pieces.remove()
    if len(order) < 2 and not exact:
        raise DataError(f"{counted(len(order), 'readable image')}: nothing to compare")
    with progress("comparing", len(order) * (len(order) + 1) // 2, "pairs") as advance:
        found = near_copies(units, threshold, device=device, memory=memory, advance=advance)
    groups: Groups = defaultdict(list)
    kept_of = {}
    for place in np.flatnonzero(found.original != np.arange(len(order))).tolist():
        number, kept = int(order[place]), int(order[found.original[place]])
        kept_of[number] = kept, float(found.similarity[place])
        groups[kept].append(Copy(number, float(found.similarity[place]), same_bytes=False))
    for number, first in exact.items():
        kept, similarity = kept_of.get(first, (first, 1.0))
        groups[kept].append(Copy(number, similarity, same_bytes=True))
    protocol = [
        f"cosine of pooled features of {encoder.name} less their mean, before the projector, {arithmetic}",
        f"images: {encoder.preprocessing.protocol}",
        f"a copy has a cosine of {threshold:g} or more with the image that is kept, the largest file; or equal bytes",
    ]
    return dict(groups), protocol


def _listed(index: Index, number: int) -> str:
    """A sample as `leoclr shard --without` takes it: by its key, with its split where the source had splits."""
    key = index.key(number)
    if index.made.get("layout") not in ("splits", "classes-splits"):
        return key
    return f"{Path(index.shards[int(index.shard[number])].path).parent.name}/{key}"


def _doubt(index: Index, groups: Groups) -> str:
    """Why the copies may be none, in a line; empty where nothing speaks against them."""
    largest = max(groups, key=lambda kept: len(groups[kept]), default=None)
    if largest is not None and len(groups[largest]) + 1 > max(2, _SUSPICIOUS * len(index)):
        return (
            f"{len(groups[largest]) + 1:,} of {counted(len(index), 'image')} are in one group, that of "
            f"{index.key(largest)!r}: the threshold is too low for this encoder, or it has collapsed"
        )
    alike = sum(not copy.same_bytes for group in groups.values() for copy in group)
    if alike > max(1, _MANY * len(index)):
        return (
            f"{alike:,} of {counted(len(index), 'image')} are near copies with other bytes, which is much: the encoder "
            "may be barely trained, or the threshold too low for it; look at the picture before leaving any out"
        )
    return ""


def _described(index: Index, kept: int, group: Sequence[Copy]) -> dict[str, Any]:
    copies = [
        {"key": index.key(copy.number), "similarity": round(copy.similarity, 4), "same_bytes": copy.same_bytes}
        for copy in sorted(group, key=lambda copy: (-copy.similarity, copy.number))
    ]
    return {"kept": index.key(kept), "copies": copies}


def _draw(index: Index, groups: Groups, threshold: float, path: Path) -> None:
    """The groups whose copies are least alike, by which a threshold is judged."""
    reader = SampleReader(index)
    doubtful = sorted(groups, key=lambda kept: (min(copy.similarity for copy in groups[kept]), kept))
    shown = []
    for kept in doubtful[:_ROWS]:
        copies = sorted(groups[kept], key=lambda copy: (copy.similarity, copy.number))[:_COLUMNS]
        try:
            row = [(reader.image(kept), index.key(kept), f"{counted(len(groups[kept]), 'copy', 'copies')}")]
            for copy in copies:
                remark = "same bytes" if copy.same_bytes else f"{copy.similarity:.3f}"
                row.append((reader.image(copy.number), index.key(copy.number), remark))
        except BadImage:  # of the same bytes as another that cannot be read
            continue
        shown.append(row)
    if not shown:
        return
    of = f"{len(shown)} of {counted(len(groups), 'group')}, the least alike first"
    picture = copies_picture(shown, f"{of}. Below each copy: cosine with the kept image, at least {threshold:g}")
    save_picture(picture, path)
