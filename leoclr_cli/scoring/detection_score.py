"""Score an encoder by object detection: AP50, AP and AP75."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from leoclr.backends.settings import STANDARD_WIDTH
from leoclr.cli.run.devices import choose_device
from leoclr.cli.run.encoders import LoadedEncoder, fresh_encoder, load_encoder
from leoclr.cli.run.folder import work_folder
from leoclr.cli.scoring.records import Record, kept, new_record, path_in_run, show
from leoclr.cli.terminal import progress, say, warn
from leoclr.datasets.errors import EvaluationError
from leoclr.datasets.files import cache_root
from leoclr.datasets.voc import BoxedImages, read_voc, unpack_voc
from leoclr.datasets.wording import aligned
from leoclr.evals.detection.detector import (
    PAPER,
    SMALL,
    DetectionRecipe,
    average_precision,
    detect,
    require_pycocotools,
    shortened,
    train_detector,
)
from leoclr.evals.detection.model import build_detector
from leoclr.evals.work import Work

_METRICS = {"ap50": "AP50", "ap": "AP", "ap75": "AP75"}
_STATES = 20  # in a training


@dataclass(frozen=True)
class Wanted:
    """What the options say; None leaves the preset's value."""

    preset: Literal["paper", "small"]
    random: bool
    train_split: str
    test_split: str
    iterations: int | None
    batch_size: int | None
    lr: float | None
    seed: int

    @property
    def recipe(self) -> DetectionRecipe:
        recipe = {"paper": PAPER, "small": SMALL}[self.preset]
        recipe = shortened(recipe, self.iterations) if self.iterations is not None else recipe
        lr = recipe.lr if self.lr is None else self.lr
        return replace(recipe, batch_size=self.batch_size or recipe.batch_size, lr=lr)


def score_detection(
    checkpoint: Path | None,
    roots: Sequence[Path],
    wanted: Wanted,
    backbone: str | None,
    device_name: str,
    workers: int,
    no_cache: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Train, score, print and keep the record.

    Raises:
        LeoclrError: Encoder, data, device or pycocotools cannot be had; the training diverges.
    """
    began = time.monotonic()
    require_pycocotools()
    device = choose_device(device_name)
    encoder = load_encoder(checkpoint, backbone)
    run = encoder.run
    if wanted.random:
        encoder = fresh_encoder(encoder, wanted.seed)
    if not roots:
        raise EvaluationError("name the boxes: --data FOLDER in the layout of PASCAL VOC")
    train, test = read_voc([_folder_of(root) for root in roots], wanted.train_split, wanted.test_split)
    identity = {
        "encoder": encoder.identity,
        "normalisation": [encoder.mean, encoder.std],
        "train": train.digest,
        "test": test.digest,
        "recipe": asdict(wanted.recipe),
        "seed": wanted.seed,
        "device": device.type,
    }
    work = Work(None if no_cache else work_folder(run), {"kind": "detection", **identity})
    found = work.result()
    if found is None:
        for remark in _remarks((train, test), wanted):  # before hours of training; its record repeats them
            warn(remark)
        found = work.finish(_train_and_score(encoder, train, test, wanted, device, workers, work))
    record = _record(encoder, roots, (train, test), wanted, device, found, began)
    with kept(record, output or path_in_run(record, run)):
        show(record, as_json, _text)


def _train_and_score(
    encoder: LoadedEncoder,
    train: BoxedImages,
    test: BoxedImages,
    wanted: Wanted,
    device: torch.device,
    workers: int,
    work: Work,
) -> dict[str, Any]:
    recipe = wanted.recipe
    with progress("decoding every image once", len(train) + len(test), "images") as advance:
        for image in (*train.images, *test.images):  # a test image is not needed before hours of training have passed
            image.pixels()
            advance(1)
    detector = build_detector(
        encoder.backbone,
        len(train.classes),
        mean=encoder.mean,
        std=encoder.std,
        short_sides=recipe.short_sides,
        regions=recipe.regions,
        candidates=recipe.candidates,
        proposals=recipe.proposals,
        seed=wanted.seed,
    ).to(device)
    if work.state is not None and work.state.exists():
        say("going on from the last state of this training")
    with progress("training the detector", recipe.iterations, "iterations") as advance:
        train_detector(
            detector,
            train,
            recipe,
            seed=wanted.seed,
            device=device,
            workers=min(4, (os.cpu_count() or 1) - 1) if workers < 0 else workers,
            state=work.state,
            steps_between_states=max(1, recipe.iterations // _STATES),
            advance=advance,
        )
    with progress("detecting", len(test), "images") as advance:
        return average_precision(test, detect(detector, test, device, advance))


def _folder_of(root: Path) -> Path:
    """The folder itself, or where a tar file was unpacked to."""
    if not root.is_file():
        return root
    status = root.stat()
    name = hashlib.sha256(f"{root.resolve()}\0{status.st_size}\0{status.st_mtime_ns}".encode()).hexdigest()[:16]
    folder = cache_root() / "voc" / name
    with progress(f"unpacking {root.name}", None, "files") as advance:
        unpack_voc(root, folder, advance)
    return folder


def _remarks(splits: tuple[BoxedImages, BoxedImages], wanted: Wanted) -> list[str]:
    names = (wanted.train_split, wanted.test_split)
    return [f"{name}: {remark}" for name, split in zip(names, splits, strict=True) for remark in split.remarks]


def _record(
    encoder: LoadedEncoder,
    roots: Sequence[Path],
    splits: tuple[BoxedImages, BoxedImages],
    wanted: Wanted,
    device: torch.device,
    found: dict[str, Any],
    began: float,
) -> Record:
    names = (wanted.train_split, wanted.test_split)
    source = [os.path.abspath(root) for root in roots]
    start = "random weights" if wanted.random else "the encoder's weights"
    notes = _remarks(splits, wanted)
    if (encoder.name, encoder.width) != ("resnet50", STANDARD_WIDTH):
        notes.append(f"the body is {encoder.name} of width {encoder.width}, not the paper's ResNet-50")
    content = {
        "results": {"detection": {metric: found[metric] for metric in _METRICS}},
        "rows": {"detection": "all classes"},
        "details": {
            "ap50_of_classes": found["classes"],
            "recipe": asdict(wanted.recipe),
            "random": wanted.random,
        },
        "protocol": [
            f"Faster R-CNN with the C4 body of {encoder.name} from {start}, a BatchNorm behind the fourth stage; "
            f"float32 on {device.type}",
            wanted.recipe.protocol,
            f"trained on {names[0]}, scored on {names[1]}, by pycocotools: precision at 101 recalls, at most 100 boxes "
            "an image, difficult objects ignored. The paper's figures are by VOC's own rules (2007: 11 recalls), which "
            "differ by about a point",
        ],
        "notes": notes,
        "seed": wanted.seed,
        "data": {
            split: {"source": source, "split": name, "digest": images.digest, "samples": len(images)}
            for split, name, images in zip(("train", "test"), names, splits, strict=True)
        }
        | {"classes": len(splits[0].classes)},
    }
    return new_record("detection", encoder, began, content)


def _text(record: Mapping[str, Any]) -> str:
    checkpoint, data = record["checkpoint"], record["data"]
    classes = record["details"]["ap50_of_classes"]
    rows = [["", *_METRICS.values()]]
    rows.append(["all classes", *(f"{100 * record['results']['detection'][metric]:.2f}" for metric in _METRICS)])
    rows += [[name, f"{100 * value:.2f}", "", ""] for name, value in classes.items()]
    return "\n".join(
        [
            f"{checkpoint['path']} ({checkpoint['backbone']}, weights {checkpoint['digest'][:12]})",
            f"{data['train']['samples']:,} training and {data['test']['samples']:,} test images",
            "",
            aligned(rows),
            "",
            *record["protocol"],
        ]
    )
