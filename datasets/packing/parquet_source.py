"""Parquet files with a column of encoded images, as on the Hugging Face hub, as sources.

Rows can only be read front to back at a reasonable price, so their images are copied to one file first. The column of
images is a binary one, or a struct with a field `bytes`; that of labels holds class numbers (their names are in the
file's metadata, or else they are the names) or class names.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

from leoclr.datasets.errors import DataError
from leoclr.datasets.images.decode import MAX_BYTES
from leoclr.datasets.json_text import parse_json_text
from leoclr.datasets.packing.archives import PlacesSource
from leoclr.datasets.packing.layouts import NO_SPLIT, LayoutKind, Named, Reading
from leoclr.datasets.packing.parquet_names import file_splits, note_folders
from leoclr.datasets.packing.split_names import SPLITS
from leoclr.datasets.shards.labels import parse_text, truth
from leoclr.datasets.wording import first_line

PARQUET = ".parquet"
_WITHOUT_BYTES = "left out, rows without the bytes of an image (a path is not followed)"
_SHOWN_VALUE = 40
_SHOWN = 8  # columns that a note names
_ROWS = 64  # in memory at a time
_LABEL_NAMES = ("label", "labels", "cls", "class")
_BEGINNINGS = {b"\xff\xd8": "jpg", b"\x89PNG": "png", b"RIFF": "webp", b"GIF8": "gif", b"BM": "bmp", b"II*": "tif"}
_OTHER_NAME = "-"  # stands for a slash in a class name


@dataclass(frozen=True)
class Columns:
    """The columns to read; None where the file's schema tells."""

    image: str | None = None
    label: str | None = None


BY_SCHEMA = Columns()


@dataclass(frozen=True)
class _Schema:
    image: str
    nested: bool
    label: str | None
    names: tuple[str, ...]


class ParquetSource(PlacesSource):
    """The images of Parquet files, copied to `spool`. A file's name, or its folder's, may say which split it is.

    Raises:
        DataError: pyarrow is missing, a file is damaged, its split is not clear, or no column, or several, may hold
            the images.
    """

    def __init__(
        self,
        name: str,
        files: Sequence[Path],
        spool: BinaryIO,
        columns: Columns,
        advance: Callable[[int], None],
    ) -> None:
        super().__init__(name, spool, files)
        if find_spec("pyarrow") is None:
            raise DataError(f"{name}: Parquet needs pyarrow: pip install 'leoclr-cli[parquet]'")
        root = Path(name) if Path(name).is_dir() else Path(name).parent
        splits = file_splits(name, root, files)
        rows: dict[str, list[tuple[str, str | int | None]]] = defaultdict(list)
        declared: tuple[str, ...] = ()
        position = 0
        unlabelled: list[Path] = []
        for path in files:
            schema = self._schema(path, columns)
            if declared and schema.names and schema.names != declared:
                raise DataError(f"{path}: its classes are not those of the files before it; pack them one by one")
            declared = declared or schema.names
            found = rows[splits.get(path, NO_SPLIT)]
            for data, label in self._rows(path, schema):
                place = f"{splits.get(path, NO_SPLIT)}/{len(found):08d}.{_suffix(data)}".lstrip("/")
                spool.write(data)
                self.add(place, position, len(data))
                position += len(data)
                found.append((place, label))
            if schema.label is None:
                unlabelled.append(path)
            advance(path.stat().st_size)
        spool.flush()
        for path in unlabelled if len(unlabelled) < len(files) else ():
            self.notes.add("files without a column of labels, beside others that have one", path.name)
        note_folders(self.notes, root, files, splits)
        self.reading = self._reading(rows, declared)

    def _schema(self, path: Path, columns: Columns) -> _Schema:
        import pyarrow
        from pyarrow import parquet, types

        try:
            schema = parquet.read_schema(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path}: no Parquet file, or damaged ({first_line(error)[:200]})") from error
        binary = [field.name for field in schema if _is_binary(types, field.type)]
        nested = [
            field.name for field in schema if types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
        ]
        image = _only(path, columns.image, binary + nested)
        named = _class_names(schema.metadata)
        candidates = [name for name in schema.names if name in named] or [
            name for name in schema.names if name in _LABEL_NAMES
        ]
        if columns.label is not None and columns.label not in schema.names:
            raise DataError(f"{path}: no column {columns.label!r}; there are {', '.join(schema.names)}")
        if columns.label is None and len(candidates) > 1:
            self.notes.add(
                "no labels, as several columns may hold them (--label-member says which)", ", ".join(candidates)
            )
        others = [name for name in schema.names if name not in (*binary, *nested)]
        if columns.label is None and not candidates and others:
            self.notes.add("no labels (--label-member takes them from another column)", ", ".join(others[:_SHOWN]))
        label = columns.label or (candidates[0] if len(candidates) == 1 else None)
        return _Schema(image, image in nested, label, named.get(label or "", ()))

    def _rows(self, path: Path, schema: _Schema) -> Iterator[tuple[bytes, str | int | None]]:
        import pyarrow
        from pyarrow import parquet

        wanted = [f"{schema.image}.bytes" if schema.nested else schema.image, *([schema.label] if schema.label else [])]
        number = 0
        try:
            with parquet.ParquetFile(path, pre_buffer=False) as file:
                for batch in file.iter_batches(_ROWS, columns=wanted):
                    for row in batch.to_pylist():
                        number += 1
                        image = row[schema.image]
                        data = image.get("bytes") if schema.nested and image else image
                        place = f"row {number} of {path.name}"
                        if not data or len(data) > MAX_BYTES:
                            self.notes.add(_WITHOUT_BYTES, place)
                        elif schema.label is None:
                            yield data, None
                        else:
                            yield data, self._label(row[schema.label], schema.names, place)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path}: damaged ({first_line(error)[:200]})") from error

    def _label(self, value: Any, names: Sequence[str], place: str) -> str | int | None:
        found: int | str | None = value if isinstance(value, int) else None
        if isinstance(value, bool):
            found = truth(value)
        if isinstance(value, str):
            found = parse_text(value.encode(errors="replace"))
        elif isinstance(value, bytes):
            found = parse_text(value)
        if value is None:
            self.notes.add("rows without a label", place)
        elif found is None or (isinstance(found, int) and found < 0):
            self.notes.add("labels that are no class number or name", f"{str(value)[:_SHOWN_VALUE]!r} in {place}")
            return None
        elif names and isinstance(found, int) and found >= len(names):
            self.notes.add(f"labels that are no number of the {len(names):,} class names", f"{found} in {place}")
            return None
        return found

    def _reading(self, rows: dict[str, list[tuple[str, str | int | None]]], declared: tuple[str, ...]) -> Reading:
        values = {label for found in rows.values() for _, label in found if label is not None}
        texts = sorted(label for label in values if isinstance(label, str))
        if len(set(declared)) < len(declared):
            twice = next(name for name in declared if declared.count(name) > 1)
            self.notes.add("class names that are not used, as several classes have the same one", twice)
            declared = ()
        if declared and not texts:
            names = {label: declared[label] for label in values if isinstance(label, int)}
            classes = declared
        else:
            if 0 < len(texts) < len(values):
                self.notes.add("class names beside class numbers, each a class of its own", texts[0], len(texts))
            ordered = sorted(values, key=lambda label: (isinstance(label, str), label))
            names = {label: str(label) for label in ordered}  # type: ignore[misc]
            classes = tuple(dict.fromkeys(names.values()))
        folders = _folders(classes)
        splits: dict[str, list[Named]] = {
            split: [
                (place, f"{'' if label is None else folders[names[label]] + '/'}{place.rpartition('/')[2]}")  # type: ignore[index]
                for place, label in rows[split]
            ]
            for split in (*SPLITS, NO_SPLIT)
            if rows.get(split)
        }
        kind: LayoutKind = "splits" if NO_SPLIT not in splits else ("classes" if classes else "flat")
        return Reading(kind, splits, classes={folder: name for name, folder in folders.items()})


def _folders(names: Sequence[str]) -> dict[str, str]:
    """A folder for each class, by its name, with no slash and no two alike."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for number, name in enumerate(names):
        folder = plain = name.replace("/", _OTHER_NAME).strip() or f"class-{number}"
        while folder in taken:
            folder, number = f"{plain}-{number}", number + 1
        taken.add(folder)
        found[name] = folder
    return found


def _only(path: Path, asked: str | None, candidates: Sequence[str]) -> str:
    if asked is not None and asked in candidates:
        return asked
    if asked is None and len(candidates) == 1:
        return candidates[0]
    found = f"{', '.join(candidates)} may hold images" if candidates else "no column holds encoded images"
    raise DataError(f"{path}: {found}; --image-member takes the name of such a column")


def _class_names(metadata: dict[bytes, bytes] | None) -> dict[str, tuple[str, ...]]:
    """The names of the classes of each column that holds class numbers, as `datasets` writes them down."""
    try:
        features = parse_json_text((metadata or {})[b"huggingface"])["info"]["features"]
        found = {column: feature.get("names") for column, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
    return {
        column: tuple(names)
        for column, names in found.items()
        if isinstance(names, list) and names and all(isinstance(name, str) for name in names)
    }


def _is_binary(types: Any, kind: Any) -> bool:
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _suffix(data: bytes) -> str:
    return next((suffix for start, suffix in _BEGINNINGS.items() if data.startswith(start)), "jpg")
