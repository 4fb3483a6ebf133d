"""Write the features of a data set, piece by piece: `leoclr embed`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from leoclr.cli.image_folders import as_shards, open_with_progress, shards_of_run
from leoclr.cli.run.devices import check_precision, choose_device
from leoclr.cli.run.encoders import LoadedEncoder, load_encoder
from leoclr.cli.run.folder import RunFolder
from leoclr.cli.run.lock import RunLock
from leoclr.cli.scoring.records import described_data, new_record, write_record
from leoclr.cli.scoring.request import Request
from leoclr.cli.terminal import progress, say, warn
from leoclr.datasets.errors import EvaluationError
from leoclr.datasets.files import refused_in_a_line
from leoclr.datasets.json_text import parse_json_text
from leoclr.datasets.shards.index import Index
from leoclr.evals.features.extract import Features, extract_features
from leoclr.evals.features.files import writer_for
from leoclr.evals.features.pieces import PieceFolder, extract_pieces

FORMAT = 1
_SHOWN_SKIPPED = 1000


class Embedding:
    """The features of one data set on their way into one file.

    Args:
        request: As of `opened`.
        output: A .npy or .parquet file.

    Raises:
        LeoclrError: Encoder, data or device cannot be had, or work that was begun is of others.
    """

    def __init__(self, request: Request, output: Path) -> None:
        self._began = time.monotonic()
        self._output, self._write = output, writer_for(output)
        self._record_file = output.with_name(f"{output.name}.json")
        self._request = request
        self._device, self._encoder, self._source, self._index = opened(request)
        self._plan = {
            "format": FORMAT,
            "weights": self._encoder.identity,
            "data": self._index.content_digest,
            "images": self._encoder.preprocessing.protocol,
            "arithmetic": f"{request.precision} on {self._device.type}",
        }
        self.pieces = PieceFolder(output.with_name(f"{output.name}.parts"), self._plan)

    def run(self) -> dict[str, Any]:
        """Compute what is missing, write the file, and return its record. What is complete already is left alone.

        Raises:
            LeoclrError: Images or features are unusable, or the disk is.
        """
        if (before := self._finished()) is not None:
            say(f"{self._output} is there already, of the same weights, data and protocol")
            return before
        with refused_in_a_line(self._output):
            self._output.parent.mkdir(parents=True, exist_ok=True)
            with RunLock(self.pieces.path):
                fill(self.pieces, self._encoder, self._index, self._request, self._device)
                record = self._finish()
            self.pieces.remove()
        return record

    def _finish(self) -> dict[str, Any]:
        rows, dimension = 0, 0
        skipped: list[str] = []
        for piece in self.pieces.read(self._index):
            rows, dimension = rows + len(piece.features), piece.features.shape[1]
            skipped += piece.skipped
        files = self._write(self._output, self.pieces.read(self._index), self._index, rows, dimension)
        if skipped:
            warn(f"{len(skipped):,} of {len(self._index):,} images left out, {skipped[0]}")
        encoder = self._encoder
        content = {
            "files": [path.name for path in files],
            "bytes": self._output.stat().st_size,
            "rows": rows,
            "dimension": dimension,
            "labelled": self._index.labelled,
            "classes": list(self._index.classes),
            "skipped": len(skipped),
            "skipped_images": skipped[:_SHOWN_SKIPPED],
            "protocol": [
                f"pooled features of {encoder.name}, before the projector, not normalised, "
                f"{self._plan['arithmetic']}, batches of {self._request.batch_size}",
                f"images: {encoder.preprocessing.protocol}",
            ],
            "plan": self._plan,
            "data": described_data(self._index, self._source),
        }
        record = new_record("embed", encoder, self._began, content)
        write_record(self._record_file, record)
        return record

    def _finished(self) -> dict[str, Any] | None:
        """The record of an earlier command that did all of this."""
        try:
            record = dict(parse_json_text(self._record_file.read_bytes()))
            same = record["plan"] == self._plan and record["bytes"] == self._output.stat().st_size
            there = all((self._output.parent / name).is_file() for name in record["files"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return record if same and there else None


def opened(request: Request) -> tuple[torch.device, LoadedEncoder, tuple[str, ...], Index]:
    """The device, the encoder, where the data lies, and its index.

    Args:
        request: Of its data, `data` alone counts; None is the training data of the run.

    Raises:
        LeoclrError: One of them cannot be had, or the device does not compute in the precision.
    """
    device = choose_device(request.device)
    check_precision(request.precision, device)
    encoder = load_encoder(request.checkpoint, request.backbone).at_size(request.image_size)
    source = tuple(request.data or _data_of_run(encoder))
    shards = as_shards(source) if request.data else shards_of_run(source, "--data")
    return device, encoder, source, open_with_progress(shards)


def fill(folder: PieceFolder, encoder: LoadedEncoder, index: Index, request: Request, device: torch.device) -> None:
    """Extract the features that a folder of pieces lacks, with a progress bar."""
    backbone = encoder.backbone.to(device).to(memory_format=torch.channels_last)
    if folder.done:
        say(f"{folder.done:,} of {len(index):,} images are done already")
    with progress("features", len(index) - folder.done, "images") as advance:

        def extract(part: Index, max_bad_share: float) -> Features:
            return extract_features(
                backbone,
                part,
                encoder.preprocessing,
                batch_size=request.batch_size,
                device=device,
                precision=request.precision,
                workers=request.workers,
                max_bad_share=max_bad_share,
                advance=advance,
            )

        extract_pieces(folder, index, extract, batch_size=request.batch_size, dimension=encoder.backbone.feature_dim)


def _data_of_run(encoder: LoadedEncoder) -> Sequence[str]:
    if encoder.run is None:
        raise EvaluationError(f"{encoder.source} does not say which data it goes with; name some with --data")
    return RunFolder(encoder.run).data()[0]
