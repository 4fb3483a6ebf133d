"""Boxes in the layout of PASCAL VOC, from files that are not trusted."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from xml.parsers import expat

import numpy as np
import pytest
from PIL import ExifTags, Image

from leoclr.datasets.errors import DataError
from leoclr.datasets.voc import read_voc, unpack_voc
from leoclr.datasets.voc_annotation import read_annotation

Box = tuple[str, tuple[float, float, float, float], bool]


def annotation(boxes: Sequence[Box]) -> str:
    objects = "".join(
        f"<object><name>{name}</name><difficult>{int(hard)}</difficult><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>"
        f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
        "</object>"
        for name, (x0, y0, x1, y1), hard in boxes
    )
    return f"<annotation><filename>other.jpg</filename>{objects}</annotation>"


def write_voc(root: Path, splits: dict[str, dict[str, Sequence[Box]]]) -> Path:
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for split, images in splits.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{key} 1\n" for key in images))
        for key, boxes in images.items():
            Image.new("RGB", (30, 20)).save(root / "JPEGImages" / f"{key}.jpg")
            (root / "Annotations" / f"{key}.xml").write_text(annotation(boxes))
    return root


CAT: Box = ("cat", (1, 1, 10, 20), False)
DOG: Box = ("dog", (5, 6, 30, 20), True)
FLAT: Box = ("dog", (9, 9, 8, 9), False)


def test_boxes_and_classes_are_read(tmp_path: Path) -> None:
    root = write_voc(tmp_path, {"trainval": {"a": [DOG, CAT], "b": [FLAT]}, "test": {"c": [CAT]}})
    train, test = read_voc([root], "trainval", "test")
    assert train.classes == test.classes == ("cat", "dog")
    assert train.images[0].boxes.tolist() == [[4, 5, 30, 20], [0, 0, 10, 20]]  # pixels from 0
    assert train.images[0].labels.tolist() == [1, 0] and train.images[0].difficult.tolist() == [True, False]
    assert train.remarks == ("boxes without extent in their image, left out: 1 (b)",)
    assert train.images[1].boxes.shape == (0, 4)
    assert test.images[0].pixels().shape == (20, 30, 3) and len(test) == 1
    assert train.digest != test.digest


def test_sets_lie_beside_each_other_as_in_vocdevkit(tmp_path: Path) -> None:
    write_voc(tmp_path / "VOCdevkit" / "VOC2007", {"trainval": {"a": [CAT]}, "test": {"c": [CAT]}})
    write_voc(tmp_path / "VOCdevkit" / "VOC2012", {"trainval": {"a": [DOG]}})
    train, test = read_voc([tmp_path], "trainval", "test")
    assert [image.path.parts[-3] for image in train.images] == ["VOC2007", "VOC2012"] and len(test) == 1
    twice = read_voc([tmp_path, tmp_path / "VOCdevkit" / "VOC2007"], "trainval", "test")
    assert [len(images) for images in twice] == [2, 1]


def test_a_test_split_without_objects_has_no_precision(tmp_path: Path) -> None:
    root = write_voc(tmp_path, {"trainval": {"a": [CAT]}, "test": {"c": []}})
    with pytest.raises(DataError, match="test: there is no object in its images"):
        read_voc([root], "trainval", "test")


def test_a_tar_file_gives_the_same(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "set", {"trainval": {"a": [DOG, CAT]}, "test": {"c": [CAT]}})
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as tar:
        tar.add(root, "set")
        for name in ("../Annotations/out.xml", "/JPEGImages/root.jpg", "set/Annotations/../../x.xml"):
            member = tarfile.TarInfo(name)
            member.size = 2
            tar.addfile(member, io.BytesIO(b"no"))
        link = tarfile.TarInfo("set/Annotations/link.xml")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    unpack_voc(tmp_path / "set.tar.gz", tmp_path / "out")
    before, after = (read_voc([folder], "trainval", "test") for folder in (root, tmp_path / "out"))
    assert [one.digest for one in before] == [one.digest for one in after]
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert not [name for name in found if "out.xml" in name or "x.xml" in name or "link" in name]
    assert not (tmp_path / "Annotations").exists() and not (tmp_path / "x.xml").exists()


def test_what_an_earlier_version_left_half_unpacked_is_replaced(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "set", {"trainval": {"a": [DOG, CAT]}, "test": {"c": [CAT]}})
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        tar.add(root, "set")
    (tmp_path / "out" / "Annotations").mkdir(parents=True)
    (tmp_path / "out" / "Annotations" / "half.xml").touch()
    unpack_voc(tmp_path / "set.tar", tmp_path / "out")
    assert (tmp_path / "out" / "complete").exists() and not (tmp_path / "out" / "Annotations" / "half.xml").exists()
    read_voc([tmp_path / "out"], "trainval", "test")


def test_half_a_tar_file_is_one_line(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "set", {"trainval": {str(number): [CAT] for number in range(30)}, "test": {"c": [CAT]}})
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as tar:
        tar.add(root, "set")
    whole = (tmp_path / "set.tar.gz").read_bytes()
    for length in range(len(whole) // 2, len(whole) // 2 + 60):  # some of them end where a member does
        (tmp_path / "set.tar.gz").write_bytes(whole[:length])
        with pytest.raises(DataError, match="cannot be unpacked"):
            unpack_voc(tmp_path / "set.tar.gz", tmp_path / "out")
        assert not (tmp_path / "out" / "complete").exists()


@pytest.mark.parametrize("kind", ["gz", "xz", "bz2"])
def test_damage_within_a_tar_file_is_one_line(kind: str, tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(50_000)  # cannot be compressed: damage lies in the image, not in a header
    member = tarfile.TarInfo("set/JPEGImages/a.jpg")
    member.size = len(content)
    archive = tmp_path / f"set.tar.{kind}"
    with tarfile.open(archive, f"w:{kind}") as tar:  # type: ignore[call-overload]
        tar.addfile(member, io.BytesIO(content))
    damaged = bytearray(archive.read_bytes())
    damaged[25_000] ^= 1
    archive.write_bytes(damaged)
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack_voc(archive, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [archive]


ENTITIES = (
    '<!DOCTYPE x [<!ENTITY a "{}"><!ENTITY b "&a;&a;">]><annotation><object><name>&b;</name></object></annotation>'
)
EXTERNAL = (
    '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation><object><name>&a;</name></object></annotation>'
)


@pytest.mark.parametrize(
    "text",
    [
        ENTITIES,
        EXTERNAL,
        "<annotation>",
        "no xml",
        "<annotation>" + "<a>" * 10_000,
        annotation([("cat", (1, 1, 10, 20), False)] * 10_001),
        annotation([("cat", (1, 1, float("nan"), 20), False)]),
        annotation([("cat", (1, 1, 10, 20), False)]).replace("<ymax>20</ymax>", ""),
        annotation([("cat", (1, 1, 10, 20), False)]).replace("20", "twenty"),
        annotation([("cat", (1, 1, 10, 20), False)]).replace("<name>cat", "<name>dog</name><name>cat", 1),
        annotation([("cat", (1, 1, 10, 20), False)]).replace("<bndbox>", "<bndbox></bndbox><bndbox>", 1),
    ],
    ids=["entities", "external", "open", "text", "deep", "many", "nan", "side", "word", "names", "boxes"],
)
def test_annotations_that_do_harm_are_refused(text: str) -> None:
    with pytest.raises((expat.ExpatError, ValueError)):
        read_annotation(text.encode())


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "set", {"trainval": {"a": [CAT]}, "test": {"c": [CAT]}, "dogs": {"d": [DOG]}})
    for train, test, expected in (
        ("trainval", "val", "there is no ImageSets/Main/val.txt"),
        ("trainval", "../../x", "there is no ImageSets/Main"),
        ("trainval", "trainval", "1 images are in trainval and in trainval, such as a.jpg"),
        ("trainval", "dogs", "'dog' of dogs is not in the training images"),
    ):
        with pytest.raises(DataError, match=expected):
            read_voc([root], train, test)
    with pytest.raises(DataError, match="not in the layout of PASCAL VOC"):
        read_voc([tmp_path / "set" / "JPEGImages"], "trainval", "test")
    (root / "Annotations" / "a.xml").write_text(EXTERNAL)
    with pytest.raises(DataError, match="a.xml is no annotation of PASCAL VOC: it has a document type"):
        read_voc([root], "trainval", "test")
    (root / "Annotations" / "a.xml").unlink()
    with pytest.raises(DataError, match="a.xml: No such file"):
        read_voc([root], "trainval", "test")


def test_coordinates_are_floats(tmp_path: Path) -> None:
    ((name, sides, hard),) = read_annotation(annotation([("cat", (1.5, 2, 3, 4), False)]).encode()).objects
    assert (name, hard) == ("cat", False) and np.allclose(sides, [1.5, 2, 3, 4])


@pytest.mark.parametrize(
    ("written", "hard"),
    [("0", False), ("1", True), ("", False), ("0.0", False), ("False", False), ("TRUE", True), ("Unspecified", False)],
)
def test_difficult_is_a_truth_value(written: str, hard: bool) -> None:
    text = annotation([CAT]).replace("<difficult>0", f"<difficult>{written}")
    assert [one.difficult for one in read_annotation(text.encode()).objects] == [hard]
    with pytest.raises(ValueError, match="<difficult> is 0 or 1, not '00'"):
        read_annotation(text.replace(f"<difficult>{written}", "<difficult>00").encode())


def test_a_test_split_of_difficult_objects_has_no_precision(tmp_path: Path) -> None:
    root = write_voc(tmp_path, {"trainval": {"a": [DOG]}, "test": {"c": [DOG], "d": []}})
    with pytest.raises(DataError, match="test: there is no object that is not marked as difficult"):
        read_voc([root], "trainval", "test")


@pytest.mark.parametrize(
    ("sides", "size", "fault"),
    [
        ((1, 1, 10, 100), "", "the box of 'cat' (1, 1, 10, 100) lies far outside of its image of 30 x 20 pixels"),
        ((-9, 1, 10, 20), "", "lies far outside"),
        ((40, 1, 50, 20), "", "lies far outside"),
        ((0.1, 0.2, 0.5, 1), "", "the box of 'cat' (0.1, 0.2, 0.5, 1) is in parts of the image; VOC counts pixels"),
        ((1, 1, 10, 20), "<width>60</width><height>40</height>", "its <size> is 60 x 40 and its image, upright, 30 x"),
        ((1, 1, 10, 20), "<width>20</width><height>30</height>", "its <size> is 20 x 30"),
        ((0, 0, 31, 20), "", ""),
        ((1, 1, 10, 20), "<width>0</width><height>0</height>", ""),
        ((1, 1, 10, 20), "<width>31</width><height>20</height>", ""),
    ],
)
def test_boxes_of_another_image_are_refused(
    sides: tuple[float, float, float, float], size: str, fault: str, tmp_path: Path
) -> None:
    root = write_voc(tmp_path, {"trainval": {key: [CAT] for key in "abcdef"}, "test": {"t": [CAT]}})
    for key in "bcdef":
        text = annotation([("cat", sides, False)]).replace("<object>", f"<size>{size}</size><object>", 1)
        (root / "Annotations" / f"{key}.xml").write_text(text)
    if not fault:
        assert read_voc([root], "trainval", "test")[0].remarks == ()
        return
    with pytest.raises(DataError) as caught:
        read_voc([root], "trainval", "test")
    message = str(caught.value)
    assert message.startswith(f"{root}/Annotations/b.xml: ") and fault in message
    assert message.endswith(" (4 further images with a fault: c, d, e and 1 more)")


def test_size_is_that_of_the_upright_image(tmp_path: Path) -> None:
    root = write_voc(tmp_path, {"trainval": {"a": [("cat", (1, 1, 20, 30), False)]}, "test": {"c": [CAT]}})
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (30, 20)).save(root / "JPEGImages" / "a.jpg", exif=exif)
    size = "<size><width>20</width><height>30</height></size><object>"
    file = root / "Annotations" / "a.xml"
    file.write_text(file.read_text().replace("<object>", size, 1))
    train, _ = read_voc([root], "trainval", "test")
    assert train.images[0].pixels().shape == (30, 20, 3)


def test_oddities_are_counted(tmp_path: Path) -> None:
    boxes: list[Box] = [CAT, ("Cat", (1, 1, 33, 20), False), ("cat", (0, 0, 0, 0), False), FLAT]
    root = write_voc(tmp_path, {"trainval": {"a": boxes, "b": [DOG]}, "test": {"c": [CAT]}})
    listed = root / "ImageSets" / "Main" / "trainval.txt"
    listed.write_text("a\nb\na\n")
    train, test = read_voc([root], "trainval", "test")
    assert [image.key for image in train.images] == ["a", "b"] and len(train.images[0].boxes) == 2
    assert train.remarks == (
        "class names that differ only by case, Unicode form, spaces or leading zeros are classes of their own: "
        "'Cat' and 'cat'",
        "images named more than once in trainval.txt, used once: 1 (a)",
        "boxes without extent in their image, left out: 2 (a first)",
        "boxes that reach beyond their image, used as they are: 1 (a)",
    )
    assert test.remarks == ()
