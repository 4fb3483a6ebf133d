"""Kinds of files by name: images, their sidecars, and other files, which are skipped and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from leoclr.datasets.images.decode import IMAGE_SUFFIXES

SIDECAR_SUFFIXES = ("json", "txt")
_SYSTEM_FILES = ("thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r")
_ARCHIVES = frozenset("tar gz tgz bz2 tbz xz txz zst zip rar 7z lz4".split())
_VIDEOS = frozenset("mp4 m4v mov avi mkv webm mpg mpeg wmv flv mts m2ts 3gp".split())
_OTHER_IMAGES = frozenset("heic heif jp2 j2k jpx jxl cr2 cr3 nef arw dng raf orf rw2 psd svg eps exr hdr dcm".split())


def suffix_of(path: str) -> str:
    """The suffix in lower case without its dot; empty where there is none."""
    stem, _, suffix = path.rpartition("/")[2].rpartition(".")
    return suffix.lower() if stem else ""


def is_image(path: str) -> bool:
    """Whether the name says that this is an image."""
    return suffix_of(path) in IMAGE_SUFFIXES


def is_wanted(path: str) -> bool:
    """Whether a file matters: an image or possible sidecar, not hidden, and not a Mac's resource fork."""
    if suffix_of(path) not in SIDECAR_SUFFIXES and not is_image(path):
        return False
    return not is_hidden(path)


def is_hidden(path: str) -> bool:
    """Whether a name or a folder of it begins with a dot, or is a Mac's."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


def count_other(counter: Counter[str], path: str) -> None:
    """Note a file that is passed over, unless it is hidden, as what systems put beside images is."""
    if path.rpartition("/")[2].lower() not in _SYSTEM_FILES and not is_hidden(path):
        suffix = suffix_of(path)
        counter[f".{suffix}" if suffix else "without suffix"] += 1


def advice(suffixes: Iterator[str] | list[str]) -> Iterator[str]:
    """What to do about files of these suffixes, which are not read; each line once."""
    found = {suffix.lower().removeprefix(".") for suffix in suffixes}
    if "cls" in found:
        yield "these are shards already: `leoclr index` and `leoclr train` read them as they are"
    if found & _ARCHIVES:
        yield "archives are packed from .tar, .tar.gz and .zip, and those within a source are not opened: unpack them"
    if found & _VIDEOS:
        yield "videos are not read: extract their frames first, as in `ffmpeg -i clip.mp4 clip/%06d.jpg`"
    if found & _OTHER_IMAGES:
        yield "images of other formats are not read: convert them to JPEG or PNG first"
