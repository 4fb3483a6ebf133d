"""Kinds of files by name: images, their sidecars, and other files, which are skipped and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from leoclr.datasets.images.file_names import is_image, suffix_of
from leoclr.datasets.notes import Notes

SIDECAR_SUFFIXES = ("json", "txt")
_SYSTEM_FILES = ("thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r")
# Of NAS (thumbnails, waste bins), Windows and Linux, in lower case; a Mac's are passed over without a word.
_MAC_FOLDER = "__MACOSX"
_SYSTEM_FOLDERS = frozenset(
    "@eadir,#recycle,@recycle,#snapshot,@recently-snapshot,$recycle.bin,system volume information,lost+found".split(",")
)
_DOTTED_IMAGES = "passed over, hidden images (a name that begins with a dot)"
_SYSTEM_IMAGES = "passed over, images in folders that systems make (thumbnails, waste)"
_SYSTEM_NOTE = "passed over, folders that systems make (thumbnails, waste)"
_ARCHIVES = frozenset("tar gz tgz bz2 tbz xz txz zst zip rar 7z lz4".split())
_VIDEOS = frozenset("mp4 m4v mov avi mkv webm mpg mpeg wmv flv mts m2ts 3gp".split())
_TABLES = frozenset("csv tsv xls xlsx xml mat jsonl ndjson".split())
_RECORDS = frozenset("tfrecord tfrecords mdb lmdb rec beton arrow feather pkl pickle pt pth".split())
_ARRAYS = frozenset("npy npz nii h5 hdf5 mha mhd nrrd zarr dcm".split())
_COMPRESSED = frozenset("gz bz2 xz zst lz4".split())  # a single file each
_OTHER_IMAGES = frozenset(
    "heic heif jp2 j2k jpx jxl cr2 cr3 nef arw dng raf orf rw2 psd svg eps exr hdr ico pam tga pcx dds xcf".split()
)


def kind_suffix(path: str) -> str:
    """The suffix in lower case that tells what a file is, with that of its compression, as in `nii.gz`."""
    suffix = suffix_of(path)
    inner = suffix_of(path.rpartition(".")[0]) if suffix in _COMPRESSED else ""
    return f"{inner}.{suffix}" if inner in _TABLES | _ARRAYS | _RECORDS | _VIDEOS | _OTHER_IMAGES else suffix


def is_wanted(path: str) -> bool:
    """Whether a file matters: an image or possible sidecar, not hidden, and not a Mac's resource fork."""
    if suffix_of(path) not in SIDECAR_SUFFIXES and not is_image(path):
        return False
    return not is_hidden(path)


def is_hidden(path: str) -> bool:
    """Whether a name or a folder of it begins with a dot, or is one that systems make."""
    return any(part.startswith(".") or is_of_system(part) for part in path.split("/"))


def is_of_system(folder: str) -> bool:
    """Whether a system makes folders of this name beside a user's own: for waste, thumbnails, or what a Mac adds."""
    return folder == _MAC_FOLDER or folder.lower() in _SYSTEM_FOLDERS


def note_hidden_folder(path: str, notes: Notes) -> None:
    """Note a folder that is passed over because of its name; one of a Mac needs no word."""
    name = path.rpartition("/")[2]
    if name.startswith("."):
        notes.add("passed over, hidden folders", path)
    elif name != _MAC_FOLDER:
        notes.add(_SYSTEM_NOTE, path)


def _is_of_mac(path: str) -> bool:
    """Whether it is the part of a file in which a Mac keeps what other systems have no place for."""
    return path.rpartition("/")[2].startswith("._") or path.startswith("__MACOSX/") or "/__MACOSX/" in path


class OtherFiles(Counter[str]):
    """How many files were passed over because their names are neither those of images nor of sidecars, by suffix.
    What systems put beside images does not count."""

    first = ""  # of all their names

    def note(self, path: str, notes: Notes) -> None:
        """Count a file; a hidden image goes to the notes."""
        if path.rpartition("/")[2].lower() in _SYSTEM_FILES or _is_of_mac(path):
            return
        if is_hidden(path):
            if is_image(path):
                dotted = any(part.startswith(".") for part in path.split("/"))
                notes.add(_DOTTED_IMAGES if dotted else _SYSTEM_IMAGES, path)
            return
        suffix = kind_suffix(path)
        self[f".{suffix}" if suffix else "without suffix"] += 1
        self.first = min(self.first or path, path)


def note_bare_folders(notes: Notes, folders: Iterable[str], images: Iterable[str]) -> None:
    """Note the folders that hold no image, neither themselves nor below: a class may be lost with one."""
    holding = {""}
    for path in images:
        folder = path.rpartition("/")[0]
        while folder not in holding:
            holding.add(folder)
            folder = folder.rpartition("/")[0]
    if len(holding) > 1:
        bare = set()
        for folder in set(folders) - holding:
            while (above := folder.rpartition("/")[0]) not in holding:
                folder = above
            bare.add(folder)
        for folder in sorted(bare):
            if not is_hidden(folder):
                notes.add("folders without an image", folder)


def advice(suffixes: Iterable[str]) -> Iterator[str]:
    """What to do about files of these suffixes, which are not read; each line once."""
    found = {suffix.lower().removeprefix(".").partition(".")[0] for suffix in suffixes}
    if "cls" in found:
        yield "these are shards already: `leoclr index` and `leoclr train` read them as they are"
    if found & _ARCHIVES:
        yield "archives are packed from .tar, .tar.gz and .zip, and those within a source are not opened: unpack them"
    if "tar" in found:
        yield "shards need no packing: `leoclr train --data` takes them"
    if "parquet" in found:
        yield "Parquet files are read where no images lie beside them: name their folder"
    if found & _TABLES:
        yield "labels in tables and annotation files are not read: put the images into a folder for each class"
    if found & _ARRAYS:
        yield "arrays and volumes are not read: store their images as PNG or TIFF, of 16 bits where they need them"
    if found & _RECORDS:
        yield "record files of other tools and pickles are not read: extract their images into files first"
    if found & _VIDEOS:
        yield "videos are not read: extract their frames first, as in `ffmpeg -i clip.mp4 clip/%06d.jpg`"
    if found & _OTHER_IMAGES:
        yield "images of other formats are not read: convert them to JPEG or PNG first"
