"""The steps of `leoclr quickstart`, on small images that need no download.

The parts of the output folder are made in order, each from those before it. Results of an earlier run are reused:
images and shards as they are, training from its last checkpoint. Scores, pictures and the exported encoder take seconds
and are made again.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from leoclr.cli.config.augmentation import augmentation_spec
from leoclr.cli.config.resolve import differences
from leoclr.cli.config.settings import Settings
from leoclr.cli.exporting.export import ExportReport, export_encoder
from leoclr.cli.exporting.formats import ExportFormat
from leoclr.cli.packing import pack_source
from leoclr.cli.plotting.drawing import save_picture
from leoclr.cli.plotting.pictures import neighbours_picture, views_picture
from leoclr.cli.quickstart.comparison import FITS, ScoreLine, of_encoder, of_pixels, score, table
from leoclr.cli.quickstart.digits import write_digits
from leoclr.cli.run.checkpoint import newest_checkpoint
from leoclr.cli.run.encoders import LoadedEncoder, fresh_encoder, load_encoder
from leoclr.cli.run.folder import RunFolder
from leoclr.cli.scoring.records import write_record
from leoclr.cli.terminal import progress, say
from leoclr.cli.training.monitoring.progress_line import duration
from leoclr.cli.training.trainer import train
from leoclr.datasets.errors import DataError, RunError
from leoclr.datasets.packing.pack import PackingRecipe
from leoclr.datasets.shards.index import SUFFIX, Index
from leoclr.datasets.shards.locate import open_data
from leoclr.datasets.shards.reader import SampleReader
from leoclr.evals.features.extract import Features
from leoclr.evals.probes.knn import nearest_neighbours

_NAME = "digits"
_SPLITS = ("train", "test")
_PICTURED = 4
_NEIGHBOURS = 8


@dataclass(frozen=True)
class Folder:
    """Where the parts of a quickstart lie."""

    path: Path

    @property
    def images(self) -> Path:
        return self.path / _NAME

    @property
    def shards(self) -> Path:
        return self.path / "shards"

    @property
    def run(self) -> Path:
        return self.path / "run"

    @property
    def views(self) -> Path:
        return self.path / "views.png"

    @property
    def neighbours(self) -> Path:
        return self.path / "neighbours.png"

    @property
    def encoder(self) -> Path:
        return self.path / "encoder.safetensors"

    @property
    def scores(self) -> Path:
        return self.path / "scores.json"

    def specs(self, split: str) -> tuple[str, ...]:
        """What to open a split's shards by."""
        return (str(self.shards / split),)


@dataclass(frozen=True)
class Outcome:
    """What a quickstart found, and where it put it. `seconds` are those of this command, not of all that came before
    it in the same folder."""

    folder: Folder
    epochs: int
    test_images: int
    lines: tuple[ScoreLine, ...]
    export: ExportReport
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        folder = self.folder
        return {
            "accuracy": {line.key: line.accuracy for line in self.lines},
            "epochs": self.epochs,
            "test_images": self.test_images,
            "largest_difference": self.export.largest_difference,
            "seconds": round(self.seconds, 1),
            "paths": {
                "images": str(folder.images),
                "shards": str(folder.shards),
                "run": str(folder.run),
                "encoder": str(folder.encoder),
                "views": str(folder.views),
                "neighbours": str(folder.neighbours),
                "scores": str(folder.scores),
            },
            "next": self.next_command,
        }

    def as_text(self) -> str:
        """The table, the paths and the next command."""
        folder = self.folder
        paths = {
            "images": f"{folder.images}, packed in {folder.shards}",
            "views": str(folder.views),
            "neighbours": str(folder.neighbours),
            "scores": str(folder.scores),
            "encoder": str(folder.encoder),
            "run": f"{folder.run}, with checkpoints, metrics.jsonl and tensorboard",
        }
        return "\n".join(
            [
                "",
                table(self.lines, f"right of {self.test_images} test images, %"),
                "",
                *(f"{name:<12}{place}" for name, place in paths.items()),
                "",
                f"done in {duration(self.seconds)}. Next, what random crops cost this encoder:",
                f"  {self.next_command}",
                "and with images of your own:",
                "  leoclr shard FOLDER shards && leoclr train --preset auto --data shards",
            ]
        )

    @property
    def next_command(self) -> str:
        return f"leoclr eval robustness {shlex.quote(str(self.folder.run))}"


class Quickstart:
    """The digits of scikit-learn through all of leoclr.

    Args:
        settings: Of the training; where the data lies is filled in here.
        preset, command: For the record.
    """

    def __init__(self, path: Path, settings: Settings, preset: str, command: list[str]) -> None:
        self._began = time.monotonic()
        self._folder = Folder(path)
        data = settings.data.model_copy(update={"train": self._folder.specs("train")})
        self._settings = settings.model_copy(update={"data": data})
        self._preset, self._command = preset, command

    def pretrain(self) -> int:
        """Write, pack and draw the images and train the encoder, or take up what is there of that.

        Returns:
            0, or the number of the signal that stopped the training; the same command resumes it.

        Raises:
            DataError: The folder holds something else.
            RunError: It holds a quickstart with other settings.
        """
        folder = self._folder
        self._refuse_other_content()
        if not folder.images.exists():
            folder.path.mkdir(parents=True, exist_ok=True)
            write_digits(folder.images)
        say(f"[1/5] images: scikit-learn's handwritten digits, in {folder.images}")
        if not all((folder.shards / split / f"{_NAME}{SUFFIX}").exists() for split in _SPLITS):
            pack_source(str(folder.images), folder.shards, PackingRecipe(_NAME), overwrite=True)
        index = open_data(folder.specs("train"))
        self._draw_views(index)
        say(f"[2/5] shards: {len(index):,} images to train on, in {folder.shards}; what training sees: {folder.views}")
        say(f"[3/5] training, without labels: {folder.run}")
        with _one_thread():
            begun = RunFolder(folder.run).settings_file.exists()
            result = train(self._settings, folder.run, self._preset, self._command, resume=begun)
        if result.stopped_by:
            say(f"saved after step {result.step:,} of {result.steps:,}; the same command goes on from there")
        return result.stopped_by

    def report(self) -> Outcome:
        """Score the trained encoder beside the untrained and the pixels, draw neighbours, export it."""
        folder = self._folder
        encoder = load_encoder(folder.run)
        train_index, test_index = (open_data(folder.specs(split)) for split in _SPLITS)
        with _one_thread():
            lines = self._scores(encoder, train_index, test_index)
        say(f"[5/5] encoder: {folder.encoder}")
        report = export_encoder(encoder, ExportFormat.safetensors, folder.encoder)
        seconds = time.monotonic() - self._began
        outcome = Outcome(folder, self._settings.train.epochs, len(test_index), lines, report, seconds)
        write_record(folder.scores, outcome.as_json())
        return outcome

    def _refuse_other_content(self) -> None:
        """DataError for a folder of something else, RunError for a run that these settings cannot resume."""
        folder = self._folder
        if folder.path.exists() and not folder.images.exists() and not _is_empty(folder.path):
            raise DataError(f"{folder.path} holds something else than a quickstart; choose another --output")
        if newest_checkpoint(RunFolder(folder.run).checkpoints)[0] is None:
            return
        try:
            before = Settings.model_validate(RunFolder(folder.run).read()["settings"])
        except (KeyError, ValidationError):
            raise RunError(f"{folder.run} was trained by another version of leoclr; choose another --output") from None
        if changed := differences(before, self._settings):
            raise RunError(
                f"{folder.run} was trained with other settings ({'; '.join(changed)}); leave them as they were, or "
                "choose another --output"
            )

    def _draw_views(self, index: Index) -> None:
        settings, reader = self._settings, SampleReader(index)
        images = [reader.image(number) for number in range(_PICTURED)]
        names = [f"{index.key(number)}.png" for number in range(_PICTURED)]
        spec, policy = augmentation_spec(settings), settings.view_policy
        save_picture(views_picture(images, names, spec, policy, settings.train.seed), self._folder.views)

    def _scores(self, encoder: LoadedEncoder, train_index: Index, test_index: Index) -> tuple[ScoreLine, ...]:
        epochs = self._settings.train.epochs
        representations = (
            of_encoder(encoder, "trained", f"LeOCLR, {epochs} epoch{'s' if epochs > 1 else ''}"),
            of_pixels(encoder.image_size),
            of_encoder(fresh_encoder(encoder, self._settings.train.seed), "untrained", "the same encoder, untrained"),
        )
        images = len(representations) * (len(train_index) + len(test_index))
        with progress("features", images, "images") as advance:
            features = [one.features(train_index, test_index, advance) for one in representations]
        with progress("linear probes", len(representations) * FITS, "fits") as advance:
            lines = tuple(score(one, found, advance) for one, found in zip(representations, features, strict=True))
        self._draw_neighbours(*features[0], train_index, test_index)
        say(f"[4/5] scores: {self._folder.scores}; nearest neighbours: {self._folder.neighbours}")
        return lines

    def _draw_neighbours(self, train: Features, test: Features, train_index: Index, test_index: Index) -> None:
        """One test image of each class with the training images that the encoder finds most like it."""
        queries = np.unique(test.labels, return_index=True)[1]
        similarity, rows = nearest_neighbours(
            torch.from_numpy(train.features), torch.from_numpy(test.features[queries]), _NEIGHBOURS
        )
        neighbours = train.numbers[rows.numpy()]
        train_reader, test_reader = SampleReader(train_index), SampleReader(test_index)
        picture = neighbours_picture(
            [test_reader.image(number) for number in test.numbers[queries]],
            [[train_reader.image(number) for number in row] for row in neighbours],
            [test_index.classes[label] for label in test.labels[queries]],
            [[train_index.classes[label] for label in row] for row in train_index.label[neighbours]],
            similarity.tolist(),
            title="Test images, and the training images that the encoder finds most like them",
        )
        save_picture(picture, self._folder.neighbours)


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


@contextmanager
def _one_thread() -> Iterator[None]:
    """The operations are so small that threads would wait for each other, on a busy machine nearly all of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
