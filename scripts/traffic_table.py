"""Write the table of docs/speed.md of what processes exchange in a step of MoCo, from the formulae here.

With --check nothing is written, and the exit code is 1 where the table is not current.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from page_section import write_section

from leoclr.backends.networks.backbones import build_backbone
from leoclr.backends.networks.encoder import contrastive_encoder
from leoclr.datasets.wording import in_bytes

PAGE = Path(__file__).parents[1] / "docs" / "speed.md"
SIDE, IMAGES, DIM, NUMBER = 224, 32, 128, 4  # of float32, as the images are normalised before they travel
KEY_VIEWS, QUEUED = 2, 1  # LeOCLR: X1 and X2; `moco.enqueue` first


class Traffic(NamedTuple):
    """Bytes that one process receives from the others in a step, on average over shuffles."""

    all_images: float
    images: float
    keys: float
    gradients: float


def traffic(
    ranks: int, images: int, image_bytes: int, key_views: int, queued: int, key_bytes: int, gradient_bytes: int
) -> Traffic:
    """Of a step of MoCo with shuffling BatchNorm.

    Args:
        images: Of each process.
        key_views: Views with keys. The keys of `queued` of them travel once more, into the queue.
        gradient_bytes: All trained parameters; a ring adds up and distributes them in 2 (ranks - 1) / ranks parts.
    """
    others = ranks - 1
    return Traffic(
        all_images=key_views * others * images * image_bytes,
        images=key_views * others / ranks * images * image_bytes,
        keys=(key_views + queued) * others * images * key_bytes,
        gradients=2 * others / ranks * gradient_bytes,
    )


def section() -> Iterator[str]:
    """The table."""
    encoder = contrastive_encoder(build_backbone("resnet50"), 2, 0, DIM)
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    yield "| processes | images, to where they are needed | keys | gradients | images, all to all processes |\n"
    yield "|---|---|---|---|---|\n"
    for ranks in (8, 64):
        found = traffic(ranks, IMAGES, 3 * SIDE**2 * NUMBER, KEY_VIEWS, QUEUED, DIM * NUMBER, parameters * NUMBER)
        cells = (found.images, found.keys, found.gradients, found.all_images)
        yield f"| {ranks} | {' | '.join(map(in_bytes, cells))} |\n"


def main() -> None:
    """Write the table, or check it."""
    write_section(PAGE, "traffic", "".join(section()))


if __name__ == "__main__":
    main()
