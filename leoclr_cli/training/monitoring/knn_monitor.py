"""k-NN score during training. Labels are used for the score only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from leoclr.backends.networks.backbones import Backbone
from leoclr.cli.config.settings import Settings
from leoclr.cli.run.devices import without_algorithm_search
from leoclr.cli.terminal import say, warn
from leoclr.cli.training.data import resident_images, worker_count
from leoclr.datasets.errors import DataError, LeoclrError, RunError
from leoclr.datasets.loading.resident import ResidentImages
from leoclr.datasets.randomness import Permutation
from leoclr.datasets.shards.index import NO_LABEL, Index
from leoclr.datasets.wording import counted
from leoclr.evals.features.extract import extract_features, shown_whole
from leoclr.evals.features.preprocessing import Preprocessing, standard_view
from leoclr.evals.probes.knn import TEMPERATURE, WEIGHTED_K, knn_accuracy

_MOST_NEIGHBOURS_FROM = 50_000  # samples of the bank, so that a score stays minutes on ImageNet
_MOST_QUERIES = 10_000


@dataclass(frozen=True)
class KnnMonitor:
    """Scores a backbone on a bank of labelled images and labelled queries.

    Attributes:
        source: Where the bank is from, and which classes of the queries it lacks.
        resident: Whether to keep decoded images on the device, as training does and the encoder sees them.
        images: Those, by index; None where they cannot be kept.
    """

    bank: Index
    queries: Index
    preprocessing: Preprocessing
    workers: int
    source: str
    every: int = 1
    resident: bool = False
    images: dict[int, ResidentImages | None] = field(default_factory=dict)

    def due(self, epoch: int) -> bool:
        """Whether an epoch that is over is one to score after."""
        return epoch % self.every == 0

    @staticmethod
    def of(
        settings: Settings, train: Index, val: Index | None, images: ResidentImages | None = None
    ) -> KnnMonitor | None:
        """The monitor for the data of a run, or None where there are no labels to score with.

        The queries are `val`, the bank is the training data; where that has no labels, `val` is halved. Images without
        a label are left out.

        Args:
            images: Those to train on, where they are resident.
        """
        val = None if val is None else _labelled_part(val)
        if val is None or not len(val) or settings.run.knn_epochs == 0:
            return None
        labelled = _labelled_part(train)
        if len(labelled) and labelled.classes == val.classes:
            bank, queries, source = labelled, val, "bank from the training data"
        elif len(val) < 2:
            return None
        else:
            order = Permutation(len(val), 0)(np.arange(len(val)))
            bank, queries = val.subset(np.sort(order[::2])), val.subset(np.sort(order[1::2]))
            source = "bank is half of the labelled data"
        bank, queries = _at_most(bank, _MOST_NEIGHBOURS_FROM), _at_most(queries, _MOST_QUERIES)
        if absent := len(np.setdiff1d(queries.occurring, bank.occurring)):
            source += f", without {absent:,} of the queries' {counted(queries.class_count, 'class', 'classes')}"
        augmentation, view = settings.augmentation, standard_view(settings.data.image_size)
        resident = images is not None and shown_whole(view, images)
        return KnnMonitor(
            bank,
            queries,
            Preprocessing(view, augmentation.mean, augmentation.std),
            settings.run.workers,
            source,
            settings.run.knn_epochs,
            resident,
            {id(train): images} if resident else {},
        )

    def report(
        self, epoch: int, backbone: Backbone, device: torch.device, asked_to_stop: Callable[[], int] = lambda: 0
    ) -> dict[str, float]:
        """The score after an epoch as `knn`, told to the person; a score that fails, or that is given up on a request
        to stop, is a warning and no score."""

        def advance(images: int) -> None:
            if asked_to_stop():
                raise RunError("the run is asked to stop")

        try:
            found, protocol = self.score(backbone, device, advance)
        except Exception as error:  # whatever it is, memory included: the weights are as they were
            warn(f"epoch {epoch}: no k-NN score: {self.explain(error, device)}")
            return {}
        say(f"epoch {epoch}: k-NN top-1 {found:.2%} ({protocol})")
        return {"knn": found}

    def score(self, backbone: Backbone, device: torch.device, advance: Callable[[int], None]) -> tuple[float, str]:
        """Top-1 accuracy in [0, 1], and in words how it was found; `advance` is called as by `extract_features`."""
        with without_algorithm_search():
            found = [
                extract_features(
                    backbone,
                    index,
                    self.preprocessing,
                    batch_size=1024 if self.resident and device.type == "cuda" else 256,  # less leaves a GPU idle
                    device=device,
                    workers=self.workers,
                    max_bad_share=1.0,  # the run has its own limit for images that cannot be decoded
                    advance=advance,
                    resident=self._resident(index, device),
                )
                for index in (self.bank, self.queries)
            ]
        if empty := [one for one in found if not len(one.numbers)]:
            raise DataError(f"none of the {len(empty[0].skipped)} images can be decoded; {empty[0].skipped[0]}")
        skipped = sum(len(one.skipped) for one in found)
        protocol = (
            f"k={min(WEIGHTED_K, len(found[0].numbers))}, tau={TEMPERATURE}, {len(found[1].numbers):,} queries, "
            f"{len(found[0].numbers):,} in the bank, {self.source}"
            + (f"; left out: {counted(skipped, 'image')} that cannot be decoded" if skipped else "")
        )
        (bank, bank_labels), (queries, labels) = (
            (torch.from_numpy(one.features).to(device), torch.from_numpy(one.labels).to(device)) for one in found
        )
        return knn_accuracy(bank, bank_labels, queries, labels)["top1"], protocol

    def _resident(self, index: Index, device: torch.device) -> ResidentImages | None:
        """The images of an index on the device, decoded the first time; None where the encoder sees them resized."""
        if not self.resident:
            return None
        if id(index) not in self.images:
            workers = worker_count(self.workers, device.type)
            self.images[id(index)] = resident_images(index, device, workers, must=False)
        found = self.images[id(index)]
        return found if found is not None and shown_whole(self.preprocessing.view, found) else None

    def explain(self, error: Exception, device: torch.device) -> str:
        """Why there is no score, in one line. Memory of a GPU that the score held is given back."""
        if device.type == "cuda":
            torch.cuda.empty_cache()
        reason = " ".join(str(error).split())[:300]
        return reason if isinstance(error, LeoclrError) else f"{type(error).__name__} {reason}".strip()


def _labelled_part(index: Index) -> Index:
    """The samples that have a label."""
    return index if index.labelled else index.subset(np.flatnonzero(index.label != NO_LABEL))


def _at_most(index: Index, count: int) -> Index:
    """A fixed random part of the data where there is more than `count`."""
    if len(index) <= count:
        return index
    return index.subset(np.sort(Permutation(len(index), 1)(np.arange(count))))
