"""Exporting an encoder: write the file, open it as its user would, and compare the features before it is kept."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError

from leoclr.cli.exporting.formats import ExportFormat
from leoclr.cli.exporting.targets import TARGETS, Network
from leoclr.cli.run.encoders import LoadedEncoder
from leoclr.datasets.errors import CheckpointError
from leoclr.datasets.files import atomic_path

TOLERANCE = 1e-5  # of the largest feature where that is above 1: float32 has seven digits
_BATCHES = (1, 3)


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        largest_difference: Between the file's features and the encoder's, absolute, on the same random input.
        usage: Lines of Python that open the file as `path`.
    """

    path: Path
    format: ExportFormat
    largest_difference: float
    usage: tuple[str, ...]


def export_encoder(encoder: LoadedEncoder, format: ExportFormat, path: Path) -> ExportReport:
    """Write `encoder` to `path` in `format`, unless the file computes something else.

    Raises:
        CheckpointError: The format cannot hold this architecture, the file cannot be written, or its features differ
            by more than `TOLERANCE`. A file that lay at `path` before is then as it was.
        SettingsError: The format needs an extra that is not installed.
    """
    target = TARGETS[format](encoder)
    target.check()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            target.write(temporary)
            difference, largest = _largest_difference(encoder, target.open(temporary))
            accepted = TOLERANCE * max(1.0, largest)
            if not difference <= accepted:  # also when it is NaN
                raise CheckpointError(
                    f"{path} was not written: its features differ by {difference:.1e} from those of {encoder.source};"
                    f" at most {accepted:.0e} is accepted"
                )
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error
    return ExportReport(path, format, difference, target.usage(path))


@torch.no_grad()
def _largest_difference(encoder: LoadedEncoder, exported: Network) -> tuple[float, float]:
    """Between features of the two, and the largest feature."""
    original = copy.deepcopy(encoder.backbone).cpu().eval()
    generator = torch.Generator().manual_seed(0)
    differences, sizes = [], []
    for batch in _BATCHES:
        images = torch.randn(batch, 3, encoder.image_size, encoder.image_size, generator=generator)
        features = original(images)
        differences.append((features - exported(images)).abs().max())
        sizes.append(features.abs().max())
    return torch.stack(differences).max().item(), torch.stack(sizes).max().item()
