"""Which files are images, by their names."""

from __future__ import annotations

IMAGE_SUFFIXES = frozenset(
    {
        "jpg",
        "jpeg",
        "jpe",
        "jfif",
        "png",
        "webp",
        "bmp",
        "gif",
        "tif",
        "tiff",
        "ppm",
        "pgm",
        "pbm",
        "pnm",
        "mpo",
        "avif",
    }
)


def suffix_of(path: str) -> str:
    """The suffix in lower case without its dot; empty where there is none."""
    stem, _, suffix = path.rpartition("/")[2].rpartition(".")
    return suffix.lower() if stem else ""


def is_image(path: str) -> bool:
    """Whether the name says that this is an image."""
    return suffix_of(path) in IMAGE_SUFFIXES
