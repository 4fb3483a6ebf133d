"""What the names of folders mean: nothing is guessed in silence."""

from __future__ import annotations

import pytest

from leoclr.datasets.errors import DataError
from leoclr.datasets.notes import Notes
from leoclr.datasets.packing.arrangement import Collection, arrange
from leoclr.datasets.packing.file_kinds import OtherFiles
from leoclr.datasets.packing.layouts import Layout, LayoutKind
from leoclr.datasets.packing.split_names import parse_split_names, splits_of


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


def read(*folders: str, extra: tuple[str, ...] = (), kind: LayoutKind | None = None, splits: str = "") -> Collection:
    """A collection of eleven images in each folder, and those of `extra`."""
    paths = [f"{folder}/{number}.png" for folder in folders for number in range(11)]
    return arrange(Names(*paths, *extra), Layout(kind, parse_split_names(splits)))


def shape(collection: Collection) -> dict[str, set[int]]:
    """The labels that occur in each split."""
    return {split: {picture.label for picture in pictures} for split, pictures in collection.splits.items()}


def lines(collection: Collection) -> str:
    return "\n".join(collection.notes.lines())


@pytest.mark.parametrize(
    ("train", "held_out", "split"),
    [
        ("Training", "Testing", "test"),
        ("training_set", "test_set", "test"),
        ("train2017", "val2017", "val"),
        ("train", "dev", "val"),
        ("TRAIN", "eval", "val"),
        ("train", "holdout", "val"),
        ("Train Data", "Validation Data", "val"),
        ("mnist_train", "mnist_test", "test"),
        ("train_32x32", "test_32x32", "test"),
        ("trainval", "test", "test"),
    ],
)
def test_names_of_splits(train: str, held_out: str, split: str) -> None:
    collection = read(*(f"data/{folder}/{name}" for folder in (train, held_out) for name in ("cat", "dog")))
    assert shape(collection) == {"train": {0, 1}, split: {0, 1}}
    assert collection.classes == ("cat", "dog") and collection.kind == "splits"
    assert dict(collection.split_names) == {train: "train", held_out: split}
    assert f"{train} as train" in lines(collection) and "--layout classes" in lines(collection)


def test_backslashes_are_told() -> None:
    images = [f"cat\\{number}.png" for number in range(3)]
    assert "names with a backslash, which separates no folders here" in lines(arrange(Names(*images)))


def test_the_usual_names_of_splits_need_no_word() -> None:
    assert lines(read("train/cat", "train/dog", "val/cat", "val/dog")) == ""


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("trainA", "testA", "trainB", "testB"), "testA, testB, trainA, trainB can be read in two ways"),
        (("dev", "testing"), "dev, testing can be read in two ways"),
        (("train/cat", "train/dog", "extra/cow"), "train can be read in two ways: the split train or a class"),
        (("train/a", "test/a", "extra/a"), "extra lies beside the split folders test, train"),
        (("train2014/a", "train2017/a", "val2017/a"), "two of the folders .* are the same split; .*--split-names"),
        (("cat/train", "cat/test", "dog/train", "dog/test"), "--layout classes-splits, --layout classes"),
        (("images/train", "images/val", "masks/train", "masks/val"), "hold folders train, val"),
        (("seg_train", "seg_test", "seg_pred"), "seg_test, seg_train can be read .* test=seg_test,train=seg_train"),
        (("0_train", "1_test"), "0_train, 1_test can be read in two ways"),
        (("images", "masks"), "images, masks can be read in two ways: classes, or images and what belongs to them"),
        (("VOC/JPEGImages", "VOC/SegmentationClass"), "Say --layout classes, or name the folder of images"),
        (("train/images", "train/labels", "val/images", "val/labels"), "Say --layout splits, or name"),
        (("train/img", "train/msk", "val/img", "val/msk"), "img, msk can be read in two ways"),
        (("tr", "te"), "te, tr can be read in two ways: splits or classes"),
        (("imagesTr", "imagesTs"), "imagesTr, imagesTs can be read in two ways"),
        (("训练", "测试", "验证"), "can be read in two ways"),
        (("Entrenamiento", "Validacio\u0301n"), "can be read in two ways"),  # an accent of its own, as macOS has it
        (
            ("photo/cat", "photo/dog", "sketch/cat", "sketch/dog", "sketch/elk"),
            r"of the same names \(cat, dog\); which",
        ),
        (("query/x/cat", "query/x/dog", "gallery/cat", "gallery/dog"), "--split-names train=gallery,test=query"),
        (("train/a/cat", "train/a/dog", "train/b/cat", "train/b/dog", "test/cat"), "Say --layout splits if the former"),
        (("p1/0", "p1/1", "p2/0", "p2/1", "p3/0"), r"of the same names \(0, 1\); which"),
        (("a/ok", "a/ill", "b/ok", "b/ill", "c/ill", "d/ok", "d/ill"), r"of the same names \(ill, ok\); which"),
        (tuple(f"p{number}/{number % 3 % 2}" for number in range(10)), r"of the same names \(0, 1\); which"),
        (("train", "query", "gallery"), "train can be read in two ways: the split train or a class"),
        (("labeled/cat", "labeled/dog", "unlabeled"), "unlabeled can be read in two ways"),
        (("cat", "dog", "unlabeled"), "unlabeled can be read in two ways"),
        (("train", "sketch/cat", "sketch/dog"), "train can be read in two ways"),
        (("box_train", "box_test", "query", "gt_box", "gt_query"), "box_test, box_train can be read in two ways"),
        (("HAM_images_part_1", "HAM_images_part_2"), "two ways: classes, or parts of one .*--layout flat"),
        (("images_001/images", "images_002/images"), "two ways: classes, or parts of one"),
        (("fold0", "fold1"), "two ways: classes, or parts of one"),
        (("train/batch1", "train/batch2", "test"), "--layout splits if the former, else put the images of the split"),
        (("train/cat", "train/dog", "train/val/cat", "train/val/dog"), "val lies among the classes of a split"),
    ],
)
def test_two_readings_are_asked_about(folders: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(*folders)


def test_a_folder_around_all_of_a_split_is_looked_through() -> None:
    collection = read("train/train/cat", "train/train/dog", "test/photos/a/cat", "test/photos/a/dog", "val/cat")
    assert shape(collection) == {"train": {0, 1}, "val": {0}, "test": {0, 1}} and collection.classes == ("cat", "dog")
    assert "looked through: 2 (train/train/ first)" in lines(collection)
    alone = read("train/cat", "train/dog", "test/cat/a", "test/cat/b")  # a class with folders of its own
    assert shape(alone) == {"train": {0, 1}, "test": {0}}


def test_words_of_splits_among_many_classes_are_classes() -> None:
    assert len(read("bullet_train", "test_tube", "cat", "dog", "elk").classes) == 5
    assert read("image", "photo").classes == ("image", "photo") and read("depth", "cat").classes == ("cat", "depth")
    assert len(read("train", "car/old", "car/new", "ship", "bus", "plane").classes) == 5
    assert len(read("tr", "te", "de", "fr").classes) == 4


def test_classes_with_folders_of_their_own_are_classes() -> None:
    assert read("cat/left", "cat/right", "dog/front", "dog/back").classes == ("cat", "dog")
    assert read("cat/images", "dog/images", "elk/images").classes == ("cat", "dog", "elk")
    assert read("cat/a", "cat/b", "dog/a", "dog/b", kind="classes").classes == ("cat", "dog")
    assert read("cat/images", "dog/images", "elk/images", "elk/more").classes == ("cat", "dog", "elk")
    users = ("ann/2020", "ann/2021", "bob/2021", "cat/2021", "dan/phone", "eva/phone")
    assert read(*users).classes == ("ann", "bob", "cat", "dan", "eva")
    assert read("cat/a", "cat/b", "dog/a", "dog/b", "elk").classes == ("cat", "dog", "elk")


@pytest.mark.parametrize("names", ["00012/000120034.jpg 00013/000130001.jpg", "00000/00003.png 01000/01234.png"])
def test_folders_for_every_thousand_images_are_asked_about(names: str) -> None:
    with pytest.raises(DataError, match="two ways: classes, or parts of one collection"):
        arrange(Names(*names.split()))


def test_numbered_classes_are_classes() -> None:
    for folders in (("0", "1", "2"), ("001.Albatross", "002.Auklet"), ("n01440764", "n01443537"), ("cat2", "part1")):
        assert read(*folders).classes == folders
    signs = arrange(Names(*(f"{label:05}/{label:05}_{number:05}.ppm" for label in range(3) for number in range(2))))
    assert signs.classes == ("00000", "00001", "00002") and lines(signs) == ""


def test_levels_above_the_classes_are_told() -> None:
    assert "folders within the class folders, which are looked through: 3 (a/abbey first)" in (
        lines(read("a/abbey", "a/arch", "c/church/indoor"))
    )
    assert lines(read("cat/images", "dog/images")) == "" and lines(read("cat", "dog/a", "dog/b", "elk", "fox")) == ""


def test_options_choose_a_reading() -> None:
    assert read("images", "masks", kind="classes").classes == ("images", "masks")
    pair = ("Training/cat", "Training/dog", "Testing/cat", "Testing/dog")
    assert read(*pair, kind="classes").classes == ("Testing", "Training")
    assert shape(read(*pair, kind="flat")) == {"": {-1}}
    nested = read("cat/train", "cat/test", "dog/train", "dog/test", kind="classes-splits")
    assert nested.classes == ("cat", "dog") and shape(nested) == {"train": {0, 1}, "test": {0, 1}}
    assert {picture.key for picture in nested.splits["train"]} >= {"cat/0", "dog/10"}
    years = read("2019/cat", "2019/dog", "2020/cat", "2020/dog", "2021/cat", splits="train=2019,train=2020,test=2021")
    assert shape(years) == {"train": {0, 1}, "test": {0}} and len(years.splits["train"]) == 44
    assert len({picture.key for picture in years.splits["train"]}) == 44
    with pytest.raises(DataError, match="extra is no split by its name; say which each is, as in --split-names"):
        read("train/cat", "extra/cat", kind="splits")


@pytest.mark.parametrize("images", [("cat/1.png", "cat/2.png"), ("cat/1.png", "x.png"), ("1.png", "2.png")])
def test_classes_that_were_asked_for_and_are_not_there_are_told(images: tuple[str, ...]) -> None:
    collection = arrange(Names(*images), Layout("classes"))
    assert shape(collection) == {"": {-1}}
    assert f"--layout classes finds no classes, as it takes two folders or more: 1 ({images[0]})" in lines(collection)
    assert "finds no classes" not in lines(read("cat", "dog", kind="classes"))


@pytest.mark.parametrize("text", ["train", "train=", "training=a", "train=a/b", "train=a,test=a"])
def test_split_names_that_say_nothing_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="expected SPLIT=FOLDER pairs such as train=Training"):
        parse_split_names(text)


def test_words_that_are_no_splits() -> None:
    assert splits_of(["training wheels", "testament", "trained", "valley", "cat"]) == {}
    assert read("train", "car").classes == ("car", "train")


@pytest.mark.parametrize("stray", ["logo.png", "data/logo.png", "data/train/logo.png"])
def test_a_stray_image_costs_no_label(stray: str) -> None:
    collection = read("data/train/cat", "data/train/dog", "data/test/cat", "data/test/dog", extra=(stray,))
    assert shape(collection) == {"train": {0, 1}, "test": {0, 1}}
    assert "left out, images beside the" in lines(collection) and stray in lines(collection)


def test_a_stray_image_beside_classes_is_left_out_and_many_are_a_collection() -> None:
    collection = read("cat", "dog", extra=("logo.png",))
    assert shape(collection) == {"": {0, 1}} and "beside the class folders" in lines(collection)
    mixed = tuple(f"{number}.png" for number in range(5))
    collection = read("cat", "dog", extra=mixed)
    assert shape(collection) == {"": {-1}} and len(collection) == 27
    assert "folders that are no classes, since images lie beside them, 0.png first" in lines(collection)
    assert len(read("cat", "dog", extra=mixed, kind="classes")) == 22


def test_folders_of_a_split_that_are_no_classes_are_told() -> None:
    mixed = tuple(f"train/{number}.png" for number in range(5))
    collection = read("train/cat", "train/dog", "test", extra=mixed)
    assert shape(collection) == {"train": {-1}, "test": {-1}}
    assert "folders of the split train that are no classes, since images lie beside them, train/0.png first" in (
        lines(collection)
    )
    assert lines(read("train", "test")) == "" and lines(read("train", "unlabeled/a", extra=("unlabeled/1.png",))) == ""


def test_splits_with_other_classes_are_told() -> None:
    found = lines(read("train/Cat", "train/dog", "test/cat", "test/dog"))
    assert "classes of the split test that train lacks: 1 (cat)" in found
    assert "classes of train that the split test lacks: 1 (Cat)" in found
    found = lines(read("train/cat", "train/dog", "test"))
    assert "images of the split test without a class, as folders are no classes of it: 11" in found


def test_sidecars_in_any_case_and_those_of_no_image() -> None:
    collection = arrange(Names("a.png", "a.TXT", "a.Json", "b.JPG", "b.txt", "b.TXT", "readme.txt"))
    assert collection.sidecars["a.txt"] == "a.TXT" and collection.sidecars["a.json"] == "a.Json"
    assert "text files that belong to no image: 1 (readme.txt)" in lines(collection)
    assert "text files whose names differ by case only: 1 (b.txt)" in lines(collection)
