"""Where images come from, and what their names are taken to mean."""

from __future__ import annotations

import gzip
import io
import pickle
import stat
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10, STL10

from leoclr.datasets.errors import BadImage, DataError
from leoclr.datasets.images.decode import MAX_BYTES, decode_image
from leoclr.datasets.notes import Notes
from leoclr.datasets.packing.arrangement import NO_SPLIT, Collection, arrange, make_keys
from leoclr.datasets.packing.file_kinds import OtherFiles
from leoclr.datasets.packing.hold_out import hold_out
from leoclr.datasets.packing.parquet_source import Columns
from leoclr.datasets.packing.sources import open_source

LABELLED = {"cat/1.png": b"c1", "cat/2.JPEG": b"c2", "dog/1.png": b"d1", "dog/notes.md": b"-", ".hidden/3.png": b"h"}


class Names:
    """A source that is nothing but names."""

    name = "names"
    other_files = OtherFiles()
    repeated = ()
    reading = None

    def __init__(self, *paths: str) -> None:
        self.paths = paths
        self.notes = Notes()

    def read(self, path: str) -> bytes:
        return path.encode()

    def size(self, path: str) -> int | None:
        return len(path)

    def stamp(self, path: str) -> tuple[int, int] | None:
        return None


def write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)


def write_tar(path: Path, files: Mapping[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def write_gzipped(path: Path, files: Mapping[str, bytes]) -> None:
    write_tar(path, files, "w:gz")


def write_zip(path: Path, files: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def shape(collection: Collection) -> dict[str, dict[str, int]]:
    """Label by key, of every split."""
    return {split: {p.key: p.label for p in pictures} for split, pictures in collection.splits.items()}


Writer = Callable[[Path, Mapping[str, bytes]], None]
KINDS: list[tuple[str, Writer]] = [
    ("images", write_folder),
    ("images.tar", write_tar),
    ("images.tar.gz", write_gzipped),
    ("images.TGZ", write_gzipped),
    ("images.zip", write_zip),
]


@pytest.mark.parametrize(("name", "write"), KINDS)
def test_columns_of_what_has_none_are_refused(name: str, write: Writer, tmp_path: Path) -> None:
    write(tmp_path / name, LABELLED)
    for columns, options in (
        (Columns(label="kind"), "--label-member"),
        (Columns("a", "b"), "--image-member and --label-member"),
    ):
        with pytest.raises(DataError, match=f" {options}: for Parquet files only"):
            with open_source(str(tmp_path / name), tmp_path, columns=columns):
                pass
    with pytest.raises(DataError, match="cifar10: --label-member: for Parquet files only"):
        with open_source("cifar10", tmp_path, tmp_path, columns=Columns(label="kind")):
            pass


@pytest.mark.parametrize(("name", "write"), KINDS)
def test_every_kind_of_source_lists_and_reads_the_same_files(name: str, write: Writer, tmp_path: Path) -> None:
    write(tmp_path / name, LABELLED)
    with open_source(str(tmp_path / name), tmp_path) as source:
        assert sorted(source.paths) == ["cat/1.png", "cat/2.JPEG", "dog/1.png"]
        assert [source.read(path) for path in sorted(source.paths)] == [b"c1", b"c2", b"d1"]
    assert [path.name for path in tmp_path.iterdir()] == [name]  # no spool file is left


@pytest.mark.parametrize(("name", "write"), KINDS[1:])
@pytest.mark.parametrize("wrong", ["x.tar", "x.TAR.GZ", "x.tgz", "x.zip"])
def test_an_archive_is_what_its_bytes_are(name: str, write: Writer, wrong: str, tmp_path: Path) -> None:
    write(tmp_path / name, LABELLED)
    (tmp_path / name).rename(tmp_path / wrong)
    with open_source(str(tmp_path / wrong), tmp_path) as source:
        assert {path: source.read(path) for path in source.paths} == {
            "cat/1.png": b"c1",
            "cat/2.JPEG": b"c2",
            "dog/1.png": b"d1",
        }


@pytest.mark.parametrize(
    ("start", "kind"), [(b"Rar!\x1a\x07", "RAR"), (b"7z\xbc\xaf\x27\x1c", "7-Zip"), (b"BZh9", "bzip2")]
)
def test_other_archives_under_known_names_are_named(start: bytes, kind: str, tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(start + bytes(600))
    with pytest.raises(DataError, match=f"x.zip: an archive of {kind}, which is not read: unpack it"):
        with open_source(str(tmp_path / "x.zip"), tmp_path):
            pass


def test_a_zip_of_a_method_that_is_not_read_is_refused_as_a_whole(tmp_path: Path) -> None:
    write_zip(tmp_path / "x.zip", LABELLED)
    data = bytearray((tmp_path / "x.zip").read_bytes())
    data[data.index(b"PK\x01\x02") + 10] = 9  # in the directory at the end: deflate64
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(DataError, match=r"'cat/1.png' is compressed by a method that is not read \(9; Windows"):
        with open_source(str(tmp_path / "x.zip"), tmp_path):
            pass


@pytest.mark.parametrize(("name", "write"), KINDS[1:])
@pytest.mark.parametrize("member", ["/etc/1.png", "../1.png", "a/../../1.png"])
def test_names_that_leave_the_archive_are_refused(name: str, write: Writer, member: str, tmp_path: Path) -> None:
    write(tmp_path / name, {"a.png": b"", member: b"x"})
    with pytest.raises(DataError, match="refused the member name"), open_source(str(tmp_path / name), tmp_path):
        pass


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(kind: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        member = tarfile.TarInfo("secret.png")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(DataError, match="'secret.png' is a link or device"):
        with open_source(str(tmp_path / "x.tar"), tmp_path):
            pass


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        member = zipfile.ZipInfo("secret.png")
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(member, "/etc/passwd")
    with pytest.raises(DataError, match="'secret.png' is a link"), open_source(str(tmp_path / "x.zip"), tmp_path):
        pass


@pytest.mark.parametrize(("start", "cut"), [(b"", 0), (b"", 30), (b"#!/bin/sh\n", 0)])
@pytest.mark.parametrize("gap", [b"", bytes(512)])
def test_zips_joined_in_one_file_are_refused(start: bytes, cut: int, gap: bytes, tmp_path: Path) -> None:
    """zipfile takes the last end, and whatever lies before its first entry or behind it for no part of the archive."""
    for name in "ab":
        write_zip(tmp_path / f"{name}.zip", {f"{name}/{number}.png": b"-" for number in range(3)})
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        archive.comment = b"the first one"
    second = (tmp_path / "b.zip").read_bytes()
    content = start + (tmp_path / "a.zip").read_bytes() + gap + second[: len(second) - cut]
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(DataError, match="x.zip: several zip archives in one file, of which only one could be read"):
        with open_source(str(tmp_path / "x.zip"), tmp_path):
            pass


@pytest.mark.parametrize("kind", ["program", "deleted", "filled", "empty"])
def test_a_zip_with_more_around_it_is_read(kind: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for number in range(3):
            archive.writestr(f"{number}.png", b"-")
        if kind == "deleted":  # from the list only
            del archive.filelist[0]
        if kind == "empty":
            archive.filelist.clear()
    content = (tmp_path / "x.zip").read_bytes()
    around = {"program": b"#!/bin/sh\nunzip $0; exit\n" + content, "filled": content + bytes(700)}
    (tmp_path / "x.zip").write_bytes(around.get(kind, content))
    with open_source(str(tmp_path / "x.zip"), tmp_path) as source:
        assert len(source.paths) == {"deleted": 2, "empty": 0}.get(kind, 3)


def test_a_zip_with_backslashes_has_folders(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("cat/", "cat/1.png", "empty/"):
            archive.writestr(name, b"-" if name.endswith("png") else b"")
    (tmp_path / "x.zip").write_bytes(
        (tmp_path / "x.zip").read_bytes().replace(b"cat/", b"cat\\").replace(b"empty/", b"empty\\")
    )
    with open_source(str(tmp_path / "x.zip"), tmp_path) as source:
        assert source.paths == ["cat/1.png"] and not source.other_files
        assert source.notes.counts() == {"folders without an image": 1}


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_member_beyond_the_limit_is_not_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"huge.{suffix}"
    member = tarfile.TarInfo("huge.png")
    member.size = MAX_BYTES + 1
    with gzip.open(path, "wb", compresslevel=1) if suffix == "tar.gz" else path.open("wb") as file:
        file.write(member.tobuf())
        for _ in range(MAX_BYTES // 2**20):
            file.write(bytes(2**20))
        file.write(bytes(3 * 512))  # the last byte with its padding, and the end mark
    with open_source(str(path), tmp_path) as source, pytest.raises(BadImage, match="the limit is"):
        source.read("huge.png")


@pytest.mark.parametrize(("name", "write"), KINDS[1:])
def test_a_truncated_archive_is_refused(name: str, write: Writer, tmp_path: Path) -> None:
    path = tmp_path / name
    write(path, {f"{number}.png": np.random.default_rng(number).bytes(3000) for number in range(8)})
    whole = path.read_bytes()
    for length in (0, 100, 4096, 2 * 3584, 16_000):  # 3584: a tar member of 3000 bytes with its header
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="truncated|damaged"), open_source(str(path), tmp_path):
            pass


@pytest.mark.parametrize("damage", ["two archives", "header", "cut at a member", "cut in a header"])
@pytest.mark.parametrize("gzipped", [False, True])
def test_an_archive_that_goes_on_behind_its_end_or_lacks_one_is_refused(
    damage: str, gzipped: bool, tmp_path: Path
) -> None:
    """tarfile takes the first end mark, and any header that it cannot read, for the end."""
    write_tar(tmp_path / "x.tar", {f"{name}/{number}.png": b"-" for name in "ab" for number in range(3)})
    content = bytearray((tmp_path / "x.tar").read_bytes())
    third = 2 * 1024  # a header and a block of data each
    if damage == "two archives":
        content *= 2
    elif damage == "header":
        content[third] ^= 1
    else:
        del content[third + (100 if damage == "cut in a header" else 0) :]
    path = tmp_path / ("y.tar.gz" if gzipped else "y.tar")
    path.write_bytes(gzip.compress(content) if gzipped else content)
    with pytest.raises(DataError, match="behind the end|checksum is wrong|end-of-archive mark"):
        with open_source(str(path), tmp_path):
            pass


def test_headers_of_an_archive_take_no_memory(tmp_path: Path) -> None:
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 1 << 28
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(member.tobuf() + bytes(1 << 22), 1))
    with pytest.raises(DataError, match="x.tar.gz"), open_source(str(tmp_path / "x.tar.gz"), tmp_path):
        pass


@pytest.mark.parametrize("name", ["caf\udce9", "red\x1b[31m"])
def test_a_class_whose_name_cannot_be_written_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="names: rename the folder"):
        arrange(Names(f"{name}/1.png", "dog/2.png"))


def test_an_unknown_source_names_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder or archive.*cifar10, cifar100, stl10"):
        with open_source(str(tmp_path / "imagenet"), tmp_path):
            pass
    (tmp_path / "x.rar").write_bytes(b"")
    with pytest.raises(DataError, match="neither a folder nor an archive"):
        with open_source(str(tmp_path / "x.rar"), tmp_path):
            pass


def test_a_folder_that_links_to_itself_is_listed_once(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a/1.png": b"1", "b/2.png": b"2"})
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "b" / "3.png").symlink_to(tmp_path / "a" / "1.png")
    with open_source(str(tmp_path), tmp_path) as source:
        assert sorted(source.paths) == ["a/1.png", "b/2.png", "b/3.png"]
        assert source.read("b/3.png") == b"1"


def test_classes_are_the_sorted_folders() -> None:
    collection = arrange(Names("zebra/1.png", "ant/1.png", "ant/deep/2.png"))
    assert collection.classes == ("ant", "zebra")
    assert shape(collection) == {NO_SPLIT: {"ant/1": 0, "ant/deep/2": 0, "zebra/1": 1}}


@pytest.mark.parametrize(
    "paths",
    [
        ("b.png", "a.png"),
        ("b.png", "x/a.png", "y/c.png"),  # folders, but images beside them
        ("photos/b.png", "photos/a.png"),  # one folder around everything
        ("data/photos/b.png", "data/photos/x/a.png"),
    ],
)
def test_images_at_the_top_have_no_classes(paths: tuple[str, ...]) -> None:
    collection = arrange(Names(*paths))
    assert collection.classes == ()
    assert list(collection.splits) == [NO_SPLIT]
    assert {picture.label for picture in collection.splits[NO_SPLIT]} == {-1}
    assert {picture.key.rpartition("/")[2] for picture in collection.splits[NO_SPLIT]} <= {"a", "b", "c"}


def test_split_folders_stay_splits_and_share_their_classes() -> None:
    names = ["w/train/cat/1.png", "w/train/dog/1.png", "w/train/elk/1.png", "w/valid/elk/2.png", "w/unlabeled/a/3.png"]
    collection = arrange(Names(*names, "w/unlabeled/b/4.png", "w/test/5.png"))
    assert collection.classes == ("cat", "dog", "elk")
    assert shape(collection) == {
        "train": {"cat/1": 0, "dog/1": 1, "elk/1": 2},
        "val": {"elk/2": 2},
        "test": {"5": -1},
        "unlabeled": {"a/3": -1, "b/4": -1},
    }


def test_train_beside_other_vehicles_is_a_class() -> None:
    assert arrange(Names("car/1.png", "train/1.png")).classes == ("car", "train")


def test_folders_that_can_be_understood_in_two_ways_are_refused() -> None:
    with pytest.raises(DataError, match="extra lies beside the split folders test, train"):
        arrange(Names("train/1.png", "test/1.png", "extra/1.png"))
    with pytest.raises(DataError, match="two of the folders val, valid are the same split"):
        arrange(Names("val/1.png", "valid/1.png"))


def test_no_images_is_one_clear_line() -> None:
    with pytest.raises(DataError, match="names: it is empty; expected images"):
        arrange(Names())
    with pytest.raises(DataError, match="names: no images among 2 files"):
        arrange(Names("a.txt", "b.json"))


def test_keys_are_safe_and_unique() -> None:
    names = [
        "a.v1.0.png",
        "a.v1.1.png",
        "a_v1_0.png",
        "b.png",
        "b.jpg",
        "tab\there.png",
        "__meta__/c.png",
        "größe/é.png",
    ]
    assert make_keys(names) == ["a_v1_0", "a_v1_1", "a_v1_0-2", "b", "b-2", "tab_here", "x__meta__/c", "größe/é"]


def test_hold_out_is_stratified_seeded_and_complete() -> None:
    paths = [f"{name}/{number}.png" for name, count in (("a", 100), ("b", 40), ("c", 3)) for number in range(count)]
    collection = arrange(Names(*paths))
    held = hold_out(collection, 0.2, seed=5)
    assert list(held.splits) == ["train", "val"]
    assert Counter(picture.label for picture in held.splits["val"]) == {0: 20, 1: 8, 2: 1}
    assert sorted(p.path for split in held.splits.values() for p in split) == sorted(paths)
    assert held == hold_out(collection, 0.2, seed=5)
    assert held != hold_out(collection, 0.2, seed=6)


def test_hold_out_of_many_small_classes_takes_the_share_of_the_whole() -> None:
    collection = arrange(Names(*(f"{label}/{number}.png" for label in range(50) for number in range(4))))
    assert len(hold_out(collection, 0.1, seed=0).splits["val"]) == 20


def test_hold_out_leaves_an_image_of_each_class() -> None:
    single = [f"a{number}/1.png" for number in range(40)]
    collection = arrange(Names(*single, *(f"b/{number}.png" for number in range(40))))
    held = hold_out(collection, 0.25, seed=0)
    assert {picture.label for picture in held.splits["train"]} == set(range(41))
    assert len(held.splits["val"]) == 11  # no class makes up for all others
    assert any(line.startswith("classes of one image, which stays in train: ") for line in held.notes.lines())
    pairs = arrange(Names(*(f"{label}/{number}.png" for label in range(9) for number in range(2))))
    copies = {f"{label}/1.png": f"{label}/0.png" for label in range(8)}
    assert {picture.path for picture in hold_out(pairs, 0.5, 0, copies).splits["val"]} < {"8/0.png", "8/1.png"}
    with pytest.raises(DataError, match="splits empty: one image of each class stays in train"):
        hold_out(arrange(Names(*single)), 0.25, seed=0)
    with pytest.raises(DataError, match="splits empty: one image of each class stays in train$"):
        hold_out(arrange(Names(*single)), 0.99, seed=0)


@pytest.mark.parametrize(
    ("paths", "different", "said"),
    [
        (("1.png", "2.png", "3.png", "4.png"), 1, "equal images stay together in one split, and without copies "),
        (("a/1.png", "a/2.png", "a/3.png", "b/4.png", "b/5.png"), 1, "equal images stay together in one split, and"),
        (
            ("a/1.png", "a/2.png", "b/3.png", "b/4.png"),
            2,
            "one image of each class stays in train; equal images stay together in one split, and without copies ",
        ),
    ],
)
def test_hold_out_says_where_copies_leave_a_split_empty(paths: tuple[str, ...], different: int, said: str) -> None:
    size = len(paths) // different
    copies = {path: paths[number // size * size] for number, path in enumerate(paths) if number % size}
    left = "there is only 1 image" if different == 1 else "there are only 2 images"
    for seed in range(4):
        with pytest.raises(DataError, match=f"leaves one of the two splits empty: {said}.*{left}$"):
            hold_out(arrange(Names(*paths)), 0.25, seed, copies)


def test_hold_out_tells_of_a_class_of_copies() -> None:
    """Copies of images of another class go where these go."""
    collection = arrange(Names(*(f"{name}/{number}.png" for name in "ab" for number in range(8))))
    copies = {f"b/{number}.png": "a/0.png" for number in range(8)}
    for seed in range(8):
        held = hold_out(collection, 0.4, seed, copies)
        if "a/0.png" in {picture.path for picture in held.splits["val"]}:
            break
    assert "classes of the split val that train lacks: 1 (b)" in list(held.notes.lines())


def test_hold_out_refuses_what_it_cannot_do() -> None:
    with pytest.raises(DataError, match="splits train, val; leave --val out"):
        hold_out(arrange(Names("train/1.png", "val/2.png")), 0.5, seed=0)
    with pytest.raises(DataError, match="leaves one of the two splits empty: the share comes to all of them"):
        hold_out(arrange(Names("1.png", "2.png")), 0.9, seed=0)
    with pytest.raises(DataError, match="leaves one of the two splits empty: the share comes to none of them"):
        hold_out(arrange(Names("1.png", "2.png")), 0.1, seed=0)


def sums(folder: Path) -> list[list[str]]:
    return [[path.name, md5(path.read_bytes()).hexdigest()] for path in sorted(folder.iterdir())]


def test_stl10_gives_lossless_images_with_its_unlabelled_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / STL10.base_folder
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 96, 96), dtype=np.uint8)
    for split in ("train", "test", "unlabeled"):
        pixels.tofile(folder / f"{split}_X.bin")
    for split in ("train", "test"):
        np.array([2, 1, 2], np.uint8).tofile(folder / f"{split}_y.bin")
    (folder / "class_names.txt").write_text("airplane\nbird\n")
    summed = dict(sums(folder))
    for name in ("train_list", "test_list"):
        files = [entry[0] for entry in getattr(STL10, name)]
        monkeypatch.setattr(STL10, name, [[file, summed[file]] for file in files])
    with open_source("stl10", tmp_path, root=tmp_path) as source:
        collection = arrange(source)
        assert collection.classes == ("airplane", "bird")
        assert shape(collection)["test"] == {"airplane/000001": 0, "bird/000000": 1, "bird/000002": 1}
        assert shape(collection)["unlabeled"] == {"000000": -1, "000001": -1, "000002": -1}
        decoded = np.asarray(decode_image(source.read("unlabeled/000002.png")))
    np.testing.assert_array_equal(decoded, pixels[2].transpose(2, 1, 0))  # STL-10 stores columns first


def test_cifar10_is_loaded_only_when_its_checksums_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    pixels = np.arange(2 * 3072, dtype=np.int64).astype(np.uint8).reshape(2, 3072)
    for name in ("train", "test"):
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [1, 0]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["airplane", "automobile"]}))
    meta, test, train = sums(folder)
    monkeypatch.setattr(CIFAR10, "train_list", [train])
    monkeypatch.setattr(CIFAR10, "test_list", [test])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    with open_source("cifar10", tmp_path, root=tmp_path) as source:
        expected = {"airplane/000001": 0, "automobile/000000": 1}
        assert shape(arrange(source)) == {"train": expected, "test": expected}
    (folder / "train").write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")
    with pytest.raises(DataError, match="cifar10: not found or damaged"):
        with open_source("cifar10", tmp_path, root=tmp_path):
            pass


def test_a_torchvision_set_that_is_not_there_names_the_flags(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cifar100: not found or damaged in .*; --download fetches it, --root"):
        with open_source("cifar100", tmp_path, root=tmp_path):
            pass


def test_a_damaged_zip_member_is_a_bad_image(tmp_path: Path) -> None:
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "PNG")
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", data.getvalue())
    damaged = bytearray(path.read_bytes())
    damaged[60] ^= 255
    path.write_bytes(damaged)
    with open_source(str(path), tmp_path) as source, pytest.raises(BadImage, match="damaged"):
        source.read("a.png")
