"""Common parts of every score: encoder, labelled data, features, record."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from leoclr.cli.image_folders import as_shards, open_with_progress, shards_of_run
from leoclr.cli.run.devices import check_precision, choose_device
from leoclr.cli.run.encoders import LoadedEncoder, load_encoder
from leoclr.cli.run.folder import RunFolder, feature_folder, work_folder
from leoclr.cli.scoring.predictions import write_predictions
from leoclr.cli.scoring.records import Record, described_data, kept, new_record, path_in_run, show
from leoclr.cli.scoring.request import Outputs, Request
from leoclr.cli.terminal import progress, say
from leoclr.datasets.errors import EvaluationError
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.locate import sibling_split
from leoclr.evals.accuracy import TOP_FIVE_CLASSES
from leoclr.evals.classes import check_labels, match_classes, own_classes, stratified_holdout
from leoclr.evals.features.cache import FeatureCache, feature_key
from leoclr.evals.features.extract import Features, check_features, extract_features
from leoclr.evals.features.preprocessing import Preprocessing, TestView
from leoclr.evals.finetuning.labelled_crops import LabelledCrops
from leoclr.evals.scores import Score
from leoclr.evals.work import Work

POOLED = "pooled features of {}, before the projector"  # what of the encoder was scored, most often
_HOLDOUT_SHARE = 0.2
_WORTH_A_NOTE = 0.01  # of the test images


@dataclass(frozen=True)
class LabelledData:
    """Training and test data of a score.

    Attributes:
        train_source, test_source: What they were opened from.
        protocol: One line on how the test data was found, where the user did not name it.
    """

    train: Index
    test: Index
    train_source: tuple[str, ...]
    test_source: tuple[str, ...]
    protocol: tuple[str, ...]


class Evaluation:
    """An encoder on a device, and the data it is scored on.

    Attributes:
        backbone: On the device, frozen.
        test_numbers: Training's class numbers (see `own_classes`) for the labels of the test data.
        notes: Lines about what makes the scores less than they seem.

    Raises:
        EvaluationError: The data has no usable labels.
        LeoclrError: Encoder, data or device cannot be had.
    """

    def __init__(self, request: Request) -> None:
        self.began = time.monotonic()
        self.request = request
        self.device = choose_device(request.device)
        check_precision(request.precision, self.device)
        self.encoder = load_encoder(request.checkpoint, request.backbone).at_size(request.image_size)
        self.data = _labelled_data(self.encoder, request)
        self.test_numbers = match_classes(self.data.train, self.data.test)
        self.backbone = self.encoder.backbone.to(self.device).to(memory_format=torch.channels_last)
        self._cache = FeatureCache(feature_folder(self.encoder.run))
        self.notes: list[str] = []
        if bool(self.data.train.classes) != bool(self.data.test.classes):
            self.notes.append("only one of training and test data names its classes, which are matched by number")
        self._shared = self.data.test.shared_with(self.data.train)
        if self.data.train.digest == self.data.test.digest:
            self.notes.append("training and test data are the same samples: the figures say nothing about new images")
        elif self._shared and self._shared >= _WORTH_A_NOTE * len(self.data.test):
            self.notes.append(
                f"{self._shared:,} of {len(self.data.test):,} test images are training images too, byte for byte: the "
                "figures are better than they would be for new images"
            )

    def train_features(self, view: TestView) -> Features:
        """Features of the training data, its classes numbered from 0."""
        features = self.features(self.data.train, view, "training data")
        return replace(features, labels=own_classes(self.data.train)(features.labels))

    def test_features(self, view: TestView) -> Features:
        """Features of the test data, their labels in training's numbering."""
        features = self.features(self.data.test, view, "test data")
        return replace(features, labels=self.test_numbers(features.labels))

    def _without_trivial(self, score: Score) -> Score:
        """Every image of less than five classes is among the five best, also where numbers of classes are left out."""
        if self.data.train.class_count >= TOP_FIVE_CLASSES:
            return score
        rows = []
        for row in score.rows:
            kept, halves, image_halves = (
                {k: v for k, v in d.items() if k != "top5"}
                for d in (row.values, row.half_widths, row.image_half_widths)
            )
            rows.append(replace(row, values=kept, half_widths=halves, image_half_widths=image_halves))
        return replace(score, rows=tuple(rows))

    def features(self, index: Index, view: TestView, name: str) -> Features:
        """Features of any part of the data, called `name` in messages."""
        preprocessing = Preprocessing(view, self.encoder.mean, self.encoder.std)
        key = feature_key(self.encoder.identity, index.content_digest, preprocessing, self.arithmetic)
        features = self._cache.load(key, index) if not self.request.no_cache else None
        if features is None:
            with progress(f"features of the {name}", len(index), "images") as advance:
                features = extract_features(
                    self.backbone,
                    index,
                    preprocessing,
                    batch_size=self.request.batch_size,
                    device=self.device,
                    precision=self.request.precision,
                    workers=self.request.workers,
                    advance=advance,
                )
            check_features(features, index, name)
            if not self.request.no_cache:
                self._cache.store(key, features)
        self.note_skipped(features.skipped, len(index), name)
        return features

    def note_skipped(self, skipped: Sequence[str], images: int, name: str) -> None:
        """Note, once, that some images could not be decoded and are left out; `skipped` has a line for each."""
        if skipped:
            note = f"{name}: {len(skipped):,} of {images:,} images left out, {skipped[0]}"
            self.notes += [] if note in self.notes else [note]

    def holdout_features(self, index: Index, numbers: NDArray[np.int64], view: TestView) -> Features:
        """Features of the samples of `index` that are held out of the training, numbered as there."""
        features = self.features(index.subset(numbers), view, "hold-out of the training data")
        return replace(features, numbers=numbers[features.numbers])

    def crops(self, train: Index, batch_size: int) -> LabelledCrops:
        """Crops to train a classifier on, normalised as the encoder is used to."""
        encoder = self.encoder
        return LabelledCrops(train, encoder.image_size, encoder.mean, encoder.std, batch_size, self.request.seed)

    @property
    def arithmetic(self) -> str:
        """Precision and kind of device."""
        return f"{self.request.precision} on {self.device.type}"

    def work(self, train: Index, test: Index, **identity: Any) -> Work:
        """A long computation with this encoder, trained on `train` and scored on `test`; `identity` is all else that
        decides its result, as JSON."""
        common = {
            "encoder": self.encoder.identity,
            "train": train.content_digest,
            "test": test.content_digest,
            "image_size": self.encoder.image_size,
            "normalisation": [self.encoder.mean, self.encoder.std],
            "arithmetic": self.arithmetic,
            "seed": self.request.seed,
        }
        return Work(None if self.request.no_cache else work_folder(self.encoder.run), common | identity)

    def report(
        self, kind: str, score: Score, images: Sequence[str], outputs: Outputs, scored: str = POOLED
    ) -> tuple[Record, Path | None]:
        """Build the record of a score, keep it and show it; the record, and where it lies if anywhere.

        Raises:
            NotKept, RunError: The record, or the file of predictions, cannot be written; the score is printed.
        """
        record = self.record(kind, score, images, scored)
        path = outputs.record or path_in_run(record, self.encoder.run)
        try:
            with kept(record, path):
                show(record, outputs.as_json)
        finally:  # also where the record cannot be kept
            if outputs.predictions is not None:
                write_predictions(outputs.predictions, score.predictions, self.data.train, self.data.test)
                say(f"written to {outputs.predictions}")
        return record, path

    def record(self, kind: str, score: Score, images: Sequence[str], scored: str = POOLED) -> Record:
        """The record of a score.

        Args:
            images: How the test images were preprocessed, in lines for a person.
            scored: What of the encoder was scored; {} is its name.
        """
        encoder, data, score = self.encoder, self.data, self._without_trivial(score.with_intervals())
        mean, std = ("/".join(f"{value:g}" for value in values) for values in (encoder.mean, encoder.std))
        content = {
            "results": {
                row.key: row.values
                | {f"{metric}_half_width": half for metric, half in row.half_widths.items()}
                | {f"{metric}_image_half_width": half for metric, half in row.image_half_widths.items()}
                for row in score.rows
            },
            "rows": {row.key: row.label for row in score.rows},
            "details": score.details,
            "protocol": [
                *score.protocol,
                *images,
                f"{scored.format(encoder.name)}, {self.arithmetic}; mean {mean}, std {std}",
                *data.protocol,
            ],
            "notes": [*self.notes, *score.notes],
            "seed": self.request.seed,
            "data": {
                "train": described_data(data.train, data.train_source),
                "test": described_data(data.test, data.test_source) | {"also_in_training": self._shared},
                "classes": data.train.class_count,
            },
        }
        return new_record(kind, encoder, self.began, content)


def _labelled_data(encoder: LoadedEncoder, request: Request) -> LabelledData:
    train_source, test_source, protocol = tuple(request.train_data or ()), tuple(request.data or ()), ""
    of_run = not train_source
    if train_source:
        train_shards = as_shards(train_source, announce=bool(test_source))
    else:
        if encoder.run is None:
            raise EvaluationError(f"{encoder.source} does not say which data it goes with; name it with --train-data")
        train_source, val_source = RunFolder(encoder.run).data()
        train_shards = shards_of_run(train_source, "--train-data")
        if not test_source and val_source:
            test_source, protocol = val_source, "test data: the run's validation data"
            shards_of_run(test_source, "--data")
    if not test_source:
        test_source = sibling_split(train_shards)
        protocol = f"test data: {', '.join(test_source)}, beside the training data"
    train = open_with_progress(train_shards)
    if of_run and not len(train.occurring):
        raise EvaluationError(
            f"the run's training data {', '.join(train_source)} has no labels; give labelled images with --train-data"
        )
    if test_source:
        named = request.data or not protocol
        test = open_with_progress(as_shards(test_source))
        return LabelledData(train, test, train_source, test_source, () if named else (protocol,))
    check_labels(train, "training data")
    kept, held = stratified_holdout(train.label, _HOLDOUT_SHARE, request.seed, "test split")
    protocol = (
        f"test data: a stratified {_HOLDOUT_SHARE:.0%} of the labelled data (seed {request.seed}), as there is no "
        "test split beside it; a run that trained on all of it has seen these images, without their labels"
    )
    return LabelledData(train.subset(kept), train.subset(held), train_source, train_source, (protocol,))
