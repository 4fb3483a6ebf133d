"""Parquet files with a column of images: columns, labels, splits, and what is refused."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from leoclr.cli.commands.app import main
from leoclr.datasets.errors import DataError
from leoclr.datasets.packing.arrangement import Collection, arrange
from leoclr.datasets.packing.parquet_source import Columns
from leoclr.datasets.packing.sources import open_source
from leoclr.datasets.shards.locate import open_data
from leoclr.datasets.shards.reader import SampleReader

STRUCT = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def png(number: int) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(data, "PNG")
    return data.getvalue()


def write(path: Path, names: Sequence[str] = (), **columns: Sequence[Any]) -> Path:
    """A file as `datasets` writes it: a struct of bytes and path, and class names in the metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = len(next(iter(columns.values())))
    images = [{"bytes": png(number), "path": None} for number in range(count)]
    table = pyarrow.table({"image": images} | {name: list(values) for name, values in columns.items()})
    if names:
        info = {"info": {"features": {"label": {"names": list(names), "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    parquet.write_table(table, path, row_group_size=7)
    return path


def collected(path: Path, scratch: Path, columns: Columns | None = None) -> Collection:
    with open_source(str(path), scratch, columns=columns or Columns()) as source:
        return arrange(source)


def labels(collection: Collection) -> dict[str, list[int]]:
    return {split: [picture.label for picture in pictures] for split, pictures in collection.splits.items()}


def test_a_data_set_of_the_hub_is_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("zebra", "ant/bee")  # their order is that of the numbers
    write(tmp_path / "in/data/train-00000-of-00002.parquet", names, label=[0, 1] * 10)
    write(tmp_path / "in/data/train-00001-of-00002.parquet", names, label=[1] * 5)
    write(tmp_path / "in/data/validation-00000-of-00001.parquet", names, label=[0, 1, None])
    with pytest.raises(SystemExit, match="0"):
        main(["shard", str(tmp_path / "in"), str(tmp_path / "out")])
    train, val = (open_data([str(tmp_path / "out" / split)]) for split in ("train", "val"))
    assert train.classes == val.classes == names and sorted(train.label.tolist()) == [0] * 10 + [1] * 15
    assert sorted(val.label.tolist()) == [-1, 0, 1]
    assert {SampleReader(val).read(number) for number in range(3)} == {png(number) for number in range(3)}
    assert "classes: zebra, ant/bee" in capsys.readouterr().out
    assert not list(tmp_path.rglob(".packing"))


@pytest.mark.parametrize(
    ("values", "classes", "numbers"),
    [
        ([7, 52_000, 734_298_112, 7], ("7", "52000", "734298112"), [0, 1, 2, 0]),
        (["dog", "cat", None, "dog"], ("cat", "dog"), [1, 0, -1, 1]),
        ([True, False, None, True], ("false", "true"), [1, 0, -1, 1]),
        ([-1, -1, -1, -1], (), [-1] * 4),
        ([0.5, 1.0, 2.0, 3.0], (), [-1] * 4),
        ([[0], [1], [0, 1], []], (), [-1] * 4),
    ],
)
def test_labels_of_any_type(values: list[Any], classes: tuple[str, ...], numbers: list[int], tmp_path: Path) -> None:
    collection = collected(write(tmp_path / "x.parquet", label=values), tmp_path)
    assert collection.classes == classes and labels(collection) == {"": numbers}


@pytest.mark.parametrize(
    ("declared", "values", "classes", "numbers", "note"),
    [
        (("a", "b"), [1, 7, 0, None], ("a", "b"), [1, -1, 0, -1], "no number of the 2 class names: 1 (7 in row 2 of"),
        (("a", "b"), [1, -1, 0, 0], ("a", "b"), [1, -1, 0, 0], "no class number or name: 1 ('-1' in row 2 of"),
        (("a", "a"), [0, 1, 1, 0], ("0", "1"), [0, 1, 1, 0], "several classes have the same one: 1 (a)"),
        (("a/b", "a-b", ""), [0, 1, 2, 0], ("a/b", "a-b", ""), [0, 1, 2, 0], ""),
        (("a-b-2", "a-b", "a/b"), [0, 1, 2, 0], ("a-b-2", "a-b", "a/b"), [0, 1, 2, 0], ""),
        ((), ["x", "1", None, "x"], ("1", "x"), [1, 0, -1, 1], "beside class numbers, each a class of its own: 1 (x)"),
        ((), ["x", "1", None, "x"], ("1", "x"), [1, 0, -1, 1], "rows without a label: 1 (row 3 of x.parquet)"),
    ],
)
def test_no_label_is_lost_or_merged_in_silence(
    declared: tuple[str, ...],
    values: list[Any],
    classes: tuple[str, ...],
    numbers: list[int],
    note: str,
    tmp_path: Path,
) -> None:
    with open_source(str(write(tmp_path / "x.parquet", declared, label=values)), tmp_path) as source:
        collection = arrange(source)
        assert collection.classes == classes and labels(collection) == {"": numbers}
        assert note in "\n".join(source.notes.lines())
        assert len({picture.key for picture in collection.splits[""]}) == 4


@pytest.mark.parametrize(
    "kind",
    [pyarrow.binary(), pyarrow.large_binary(), pyarrow.binary_view(), pyarrow.dictionary("i4", pyarrow.binary())],
)
def test_encoded_images_of_any_binary_type(kind: Any, tmp_path: Path) -> None:
    images = pyarrow.array([png(0), png(1), png(0)], pyarrow.binary()).cast(kind)
    parquet.write_table(pyarrow.table({"jpg": images, "fine_label": [0, 1, 0]}), tmp_path / "x.parquet")
    with open_source(str(tmp_path / "x.parquet"), tmp_path) as source:
        assert [source.read(path) for path in source.paths] == [png(0), png(1), png(0)]
        assert list(source.notes.lines()) == [
            "no labels (--label-member takes them from another column): 1 (fine_label)"
        ]


def test_hidden_files_are_no_data_and_rows_without_bytes_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "in/A.PARQUET", label=[0, 1])
    for hidden in ("in/._A.parquet", "in/.cache/b.parquet"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).write_bytes(b"-")
    assert labels(collected(tmp_path / "in", tmp_path)) == {"": [0, 1]}
    parquet.write_table(pyarrow.table({"image": pyarrow.array([{"bytes": None, "path": "a.png"}] * 3, STRUCT)}), path)
    with pytest.raises(DataError, match="no images; .*rows without the bytes of an image .a path is not followed.: 3"):
        collected(path, tmp_path)


def test_columns_are_chosen_or_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", mask=[png(n) for n in range(3)], label=[0, 1, 0], cls=[1, 1, 0])
    with pytest.raises(DataError, match="mask, image may hold images; --image-member"):
        collected(path, tmp_path)
    chosen = collected(path, tmp_path, Columns("image", "cls"))
    assert labels(chosen) == {"": [1, 1, 0]}
    with open_source(str(path), tmp_path, columns=Columns("mask")) as source:
        assert "several columns may hold them" in next(source.notes.lines())
        assert labels(arrange(source)) == {"": [-1] * 3}
    with pytest.raises(DataError, match="no column 'kind'; there are image, mask, label, cls"):
        collected(path, tmp_path, Columns("image", "kind"))


def test_damaged_files_and_those_without_images_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", label=[0, 1] * 20)
    content = path.read_bytes()
    for damaged in (b"", b"PAR1", content[:-9], content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="no Parquet file, or damaged"):
            collected(path, tmp_path)
    parquet.write_table(pyarrow.table({"text": ["a"]}), path)
    with pytest.raises(DataError, match="no column holds encoded images"):
        collected(path, tmp_path)


def test_what_lies_beside_tables_without_images_is_named(tmp_path: Path) -> None:
    """As img2dataset writes it."""
    (tmp_path / "in").mkdir()
    parquet.write_table(pyarrow.table({"url": ["a"], "key": ["000000000"]}), tmp_path / "in/00000.parquet")
    with pytest.raises(DataError, match="00000.parquet: no column holds encoded images; [^;]*$"):
        collected(tmp_path / "in", tmp_path)
    (tmp_path / "in/00000.tar").write_bytes(b"-")
    (tmp_path / "in/00000_stats.json").write_bytes(b"{}")
    with pytest.raises(DataError, match="no column holds .*; shards need no packing: `leoclr train --data` takes them"):
        collected(tmp_path / "in", tmp_path)


def test_what_was_put_together_is_told(tmp_path: Path) -> None:
    def notes(folder: Path) -> str:
        with open_source(str(folder), tmp_path) as source:
            return "\n".join(source.notes.lines())

    write(tmp_path / "in/small/train/0.parquet", label=[0, 1])
    write(tmp_path / "in/small/test/0.parquet", label=[0, 1])
    assert notes(tmp_path / "in") == ""
    write(tmp_path / "in/large/train/0.parquet", label=[0, 1])
    (line,) = notes(tmp_path / "in").splitlines()
    assert "were put together (name one to have it alone): 2" in line and "in/large/train" in line
    write(tmp_path / "in/small/train/1.parquet", other=[0.5, 1.5])
    assert "files without a column of labels, beside others that have one: 1 (1.parquet" in notes(tmp_path / "in/small")
    write(tmp_path / "hive/label=cat/0.parquet", other=[0.5, 1.5])
    assert "values in the names of folders, which are not read (make them a column): 1 (label=cat)" in notes(
        tmp_path / "hive"
    )
    for place in ("label=dog/split=train/0", "label=cat/split=train/0", "label=cat/split=test/0"):
        write(tmp_path / f"both/{place}.parquet", other=[0.5, 1.5])
    found = notes(tmp_path / "both")
    assert "make them a column): 2 (label=cat first)" in found and "were put together" not in found


def splits_of(folder: Path, scratch: Path, *names: str) -> dict[str, int]:
    """Images by split, of files with one, two, four, ... rows."""
    for number, name in enumerate(names):
        write(folder / name, label=[0] * 2**number)
    return {split: len(found) for split, found in labels(collected(folder, scratch)).items()}


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (
            ["data/train-00000-of-00001-3f0e5bd3a1c29ab7.parquet", "data/test-00000-of-00001-90abcdef12345678.parquet"],
            {"train": 1, "test": 2},
        ),
        (["default/partial-train/0000.parquet", "default/test/0000.parquet"], {"train": 1, "test": 2}),
        (["train/cifar10/0000.parquet", "test/cifar10/0000.parquet"], {"train": 1, "test": 2}),
        (["split=train/part-0.parquet", "split=test/part-0.parquet"], {"train": 1, "test": 2}),
        (["train.parquet", "train/extra-0.parquet", "test/0.parquet"], {"train": 3, "test": 4}),
        (["mnist_train.parquet", "mnist_test.parquet"], {"train": 1, "test": 2}),
        (["part-0.parquet", "part-1-3f0e5bd3a1c29ab7.parquet", "deadbeefdeadbeef.parquet"], {"": 7}),
        (["label=train/0.parquet", "label=bus/0.parquet"], {"": 3}),
    ],
)
def test_names_that_mean_splits(names: list[str], splits: dict[str, int], tmp_path: Path) -> None:
    assert splits_of(tmp_path / "in", tmp_path, *names) == splits


def test_the_name_of_the_folder_alone_tells_the_split(tmp_path: Path) -> None:
    assert splits_of(tmp_path / "test", tmp_path, "0000.parquet", "0001.parquet") == {"test": 3}


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (["train-0.parquet", "test-0.parquet", "extra-0.parquet"], "not clear to which split extra-0.parquet belongs"),
        (
            ["train.parquet", "test.parquet", "train_extra.parquet"],
            "not clear to which split train_extra.parquet belongs",
        ),
        (["a/train/0.parquet", "a/query/0.parquet"], "not clear to which split a/query/0.parquet belongs"),
        (["x/0.parquet", "train/test-0/x.parquet"], "not clear to which split train/test-0/x.parquet belongs"),
        (["trainA-0.parquet", "testA-0.parquet"], "the names testA, trainA may be those of splits"),
    ],
)
def test_splits_are_not_put_together_where_a_name_is_not_clear(names: list[str], named: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=named):
        splits_of(tmp_path / "in", tmp_path, *names)
