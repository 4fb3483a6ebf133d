"""Export an encoder: write the file, open it as its user would, and compare the features."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError

from leoclr.cli.exporting.formats import ExportFormat
from leoclr.cli.exporting.target import DEFAULTS, ExportOptions, Network, Target, Transform
from leoclr.cli.exporting.targets import TARGETS
from leoclr.cli.run.encoders import LoadedEncoder
from leoclr.datasets.errors import CheckpointError
from leoclr.datasets.files import atomic_path, filled_folder
from leoclr.datasets.images.normalise import normalise

TOLERANCE = 1e-5  # of the largest feature where that is above 1: float32 has seven digits
_BATCHES = (1, 3)
_PICTURES = ((320, 240), (240, 320), (97, 61), (32, 32))  # width and height


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        files: Of the folder, or the file alone.
        largest_difference: Between the file's features and the encoder's, absolute, on the same random input.
        preprocessing_difference: Between pixels that the preprocessing of the file or of its library gives and the
            encoder's, absolute, after normalisation; None where they bring none.
        usage: Lines of Python that open the file as `path`.
    """

    path: Path
    format: ExportFormat
    files: tuple[Path, ...]
    largest_difference: float
    preprocessing_difference: float | None
    usage: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """On the disk."""
        return sum(file.stat().st_size for file in self.files)


def export_encoder(
    encoder: LoadedEncoder, format: ExportFormat, path: Path, options: ExportOptions = DEFAULTS
) -> ExportReport:
    """Write `encoder` to `path` in `format`, unless the file computes something else.

    Raises:
        CheckpointError: The format cannot hold this architecture, the file cannot be written, or its features differ
            by more than `TOLERANCE`. A file that lay at `path` before is then as it was.
        SettingsError: The format needs an extra that is not installed.
    """
    target = TARGETS[format](encoder, options)
    target.check()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _staged(path, format, target.stale(path)) as temporary:
            target.write(temporary)
            names = [file.name for file in sorted(temporary.iterdir())] if format.is_folder else []
            difference, largest = _largest_difference(target, target.open(temporary))
            accepted = TOLERANCE * max(1.0, largest)
            if not difference <= accepted:  # also when it is NaN
                raise CheckpointError(
                    f"{path} was not written: its features differ by {difference:.1e} from those of {encoder.source};"
                    f" at most {accepted:.0e} is accepted"
                )
            transform = target.preprocessing(temporary)
            pixels = preprocessing_difference(encoder, transform) if transform is not None else None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error
    files = tuple(path / name for name in names) if format.is_folder else (path,)
    return ExportReport(path, format, files, difference, pixels, target.usage(path.absolute()))


def preprocessing_difference(encoder: LoadedEncoder, transform: Transform) -> float:
    """The largest difference of a normalised pixel between `transform` and the encoder's own preprocessing, over
    pictures of several shapes."""
    view, generator, largest = encoder.view, np.random.default_rng(0), 0.0
    for width, height in _PICTURES:
        coarse = Image.fromarray(generator.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        picture = coarse.resize((width, height), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(view(picture, 0).copy()).permute(2, 0, 1)[None]
        own = normalise(pixels, encoder.mean, encoder.std)
        largest = max(largest, float((transform(picture)[None] - own).abs().max()))
    return largest


def _staged(path: Path, format: ExportFormat, stale: Sequence[str]) -> AbstractContextManager[Path]:
    return filled_folder(path, stale) if format.is_folder else atomic_path(path)


@torch.no_grad()
def _largest_difference(target: Target, exported: Network) -> tuple[float, float]:
    """Between what the encoder and the file compute, and the largest value."""
    original, size = target.reference(), target.encoder.image_size
    generator = torch.Generator().manual_seed(0)
    differences, sizes = [], []
    for batch in _BATCHES:
        images = torch.randn(batch, 3, size, size, generator=generator)
        features = original(images)
        differences.append((features - exported(images)).abs().max())
        sizes.append(features.abs().max())
    return torch.stack(differences).max().item(), torch.stack(sizes).max().item()
