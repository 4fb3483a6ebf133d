"""Labels are a set of values: any class numbers, names, missing ones, and what is none."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from leoclr.cli.commands.app import main
from leoclr.datasets.errors import DataError
from leoclr.datasets.shards.check import difference_of_members
from leoclr.datasets.shards.description import class_line, contents, look_alikes, remarks
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.locate import open_data
from leoclr.datasets.shards.reindex import read_classes
from leoclr.datasets.shards.sample_members import Members
from leoclr.datasets.shards.scan import build_index

Samples = Sequence[Mapping[str, bytes]]


def write(path: Path, samples: Samples) -> Path:
    """A shard whose samples have these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, members in enumerate(samples):
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"{number:05d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def labelled(path: Path, texts: Sequence[bytes | None]) -> Path:
    return write(path, [{"png": b"-"} | ({} if text is None else {"cls": text}) for text in texts])


@pytest.fixture
def leoclr(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """Standard output and standard error of a command that must succeed."""

    def run(*arguments: object) -> tuple[str, str]:
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        found = capsys.readouterr()
        assert exit.value.code == 0, found.err
        return found.out, found.err

    return run


@pytest.mark.parametrize(
    "text",
    [b"-1", b"-7", b"1.0", b"0.0", b"1e3", b"nan", b"", b"\n", b"1 2", b"0,1", b"9" * 20, b"7" * 5000, b"\xff\xfe"]
    + [
        "٣".encode(),
        b"None",
        b"a caption\nof two lines",
        b"x" * 2000,
        b"[1]",
        b"red\x1b[2J",
        b'{"label": "cat", "id": 7}',
        b'["cat"]',
    ],
)
def test_what_is_no_label_is_counted_and_the_image_stays(text: bytes, tmp_path: Path) -> None:
    index = build_index([labelled(tmp_path / "s.tar", [b"3", text])])
    assert index.label.tolist() == [3, -1] and not index.labelled and index.class_count == 1
    (line,) = remarks(index)
    assert line.startswith("1 of 2 images has no label that is a class number or a class name, '00001' first: ")
    assert line.isprintable() and len(line) < 200


@pytest.mark.parametrize("text", [b"12", b" 12\n", b"12\r\n", b"\xef\xbb\xbf12", b"12\0", b"+12", b"0012"])
def test_spellings_of_a_class_number(text: bytes, tmp_path: Path) -> None:
    assert build_index([labelled(tmp_path / "s.tar", [text])]).label.tolist() == [12]


def test_class_numbers_of_any_size(tmp_path: Path) -> None:
    index = build_index([labelled(tmp_path / "s.tar", [b"7", b"9223372036854775807", b"734298112", b"7"])])
    assert index.occurring.tolist() == [7, 734298112, 2**63 - 1] and index.labelled
    assert contents(index) == "4 images, 3 classes, 1 shard"
    assert class_line(index) == "class numbers: 7, 734298112, 9223372036854775807"
    index.save(tmp_path / "s.index.json")
    assert open_data([str(tmp_path)]).occurring.tolist() == index.occurring.tolist()


def test_class_names_are_numbered_over_all_shards(tmp_path: Path) -> None:
    shards = [
        labelled(tmp_path / "s-0.tar", ["été".encode(), b"dog\n"]),
        labelled(tmp_path / "s-1.tar", [b"ant", None, b"dog"]),
    ]
    index = build_index(shards)
    assert index.classes == ("ant", "dog", "été") and index.label.tolist() == [2, 1, 0, -1, 1]
    assert all(difference_of_members(index, number) is None for number in range(2))
    labelled(shards[1], [b"ant", None, b"cat"])
    assert "holds other samples" in str(difference_of_members(index, 1))


def test_class_names_are_found_among_those_that_are_given(tmp_path: Path) -> None:
    shard = labelled(tmp_path / "s.tar", [b"dog", b"cat"])
    assert build_index([shard], ["cat", "cow", "dog"]).label.tolist() == [2, 0]
    with pytest.raises(DataError, match="sample 00000 has class dog, but there are 2 names, 'cat' first"):
        build_index([shard], ["cat", "cow"])


@pytest.mark.parametrize("together", [True, False])
def test_names_beside_numbers_are_no_labels(together: bool, tmp_path: Path) -> None:
    texts = [b"3", b"cat", b"cat", b"5"]
    parts = [texts] if together else [texts[::3], texts[1:3]]
    index = build_index([labelled(tmp_path / f"{number}.tar", part) for number, part in enumerate(parts)])
    assert sorted(index.label.tolist()) == [-1, -1, 3, 5] and index.classes == ()
    assert "2 of 4 images have no label" in next(remarks(index)) and "'cat' (2)" in next(remarks(index))


def test_what_train_index_and_check_say_of_labels_is_the_same(
    tmp_path: Path, leoclr: Callable[..., tuple[str, str]]
) -> None:
    labelled(tmp_path / "data/s.tar", [b"1", None, b"1", b"4"])
    line = "1 of 4 images has no label, '00001' first"
    out, errors = leoclr("index", tmp_path / "data")
    assert "4 images, 2 classes, 1 shard\n    class numbers: 1, 4" in out and line in errors
    out, errors = leoclr("check", tmp_path / "data", "--no-decode")
    assert "4 images, 2 classes, 1 shard\n    class numbers: 1, 4" in out and line in errors
    (report,) = json.loads(leoclr("index", tmp_path / "data", "--json")[0])
    assert (report["without_label"], report["classes"], report["class_names"]) == (1, 2, ["1", "4"])


def test_a_byte_order_mark_is_no_part_of_the_first_class(
    tmp_path: Path, leoclr: Callable[..., tuple[str, str]]
) -> None:
    labelled(tmp_path / "data/s.tar", [b"0", b"1"])
    (tmp_path / "names.txt").write_bytes("\ufeffcat\r\ndog\r\n".encode())
    leoclr("index", tmp_path / "data", "--classes", tmp_path / "names.txt")
    assert open_data([str(tmp_path / "data")]).classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat\n\ndog", "one class name a line, .* but name 2 is empty"),
        ("cat\ndog\ncat", "but name 3, 'cat', is name 1 again"),
        ("", "one class name a line, .* but there is none"),
        ('{"cat": 0, "dog": 1}', "one class name a line, or a JSON list"),
        ("[0, 1]", "one class name a line, or a JSON list"),
        ('["cat", "cat"]', "each different"),
        ('["cat", " "]', "none empty"),
        ('["c\\u001bt"]', "without control characters"),
        ("cat\x1b[31m\ndog", "without control characters"),
        ("cat\x0bdog\nelk", "without control characters"),
    ],
)
def test_class_names_that_no_index_can_hold_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_classes(tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text("a\u2028b\r\nc\x85d\n")  # no ends of lines but for Unicode
    assert read_classes(tmp_path / "names.txt") == ("a\u2028b", "c\x85d")


def test_a_file_without_end_is_no_list_of_class_names() -> None:
    with pytest.raises(DataError, match="/dev/zero: has more than"):
        read_classes(Path("/dev/zero"))


def test_class_names_in_a_json_list(tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text('\n[\n  "cat",\n  "d\\u00f6g, hot"\n]\n')
    assert read_classes(tmp_path / "names.json") == ("cat", "d\u00f6g, hot")
    (tmp_path / "names.txt").write_text("[unknown]\ncat\n")  # which is no JSON
    assert read_classes(tmp_path / "names.txt") == ("[unknown]", "cat")


def test_a_shard_whose_name_no_index_can_hold_is_refused(tmp_path: Path) -> None:
    path = labelled(tmp_path / "a\\b.tar", [b"1"])
    with pytest.raises(DataError, match="must not hold a backslash"):
        build_index([path])


def test_a_damaged_index_is_made_anew(tmp_path: Path, leoclr: Callable[..., tuple[str, str]]) -> None:
    labelled(tmp_path / "data/s.tar", [b"0", b"1"])
    (tmp_path / "data/s.index.json").write_text("{")
    with pytest.raises(DataError, match="run `leoclr index` again"):
        open_data([str(tmp_path / "data")])
    leoclr("index", tmp_path / "data")
    assert len(open_data([str(tmp_path / "data")])) == 2


def test_an_index_that_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    index = build_index([labelled(tmp_path / "s.tar", [b"0", b"1"])])
    index.save(tmp_path / "s.index.json")
    with pytest.raises(DataError, match="not an index"):
        replace(index, classes=("cat\n", "dog")).save(tmp_path / "s.index.json")
    assert len(Index.load(tmp_path / "s.index.json")) == 2


def test_class_names_that_look_alike_are_told() -> None:
    assert list(look_alikes(["cat", "Dog", "ant"])) == []
    (line,) = look_alikes(["cat", "Cat", "e\u0301te\u0301", "\u00e9t\u00e9", "a  b", "a b ", "dog"])
    assert all(pair in line for pair in ("'cat' and 'Cat'", "'a  b' and 'a b '", "é"))
    (line,) = look_alikes(["0", "1", "01", "10", "100", "1a", "01a"])
    assert line.endswith(": '1' and '01'")


# Which members


NAMED = [{"image.jpg": b"first", "label.cls": b"4"}]
PAIRS = [
    {
        "jpg": b"photo",
        "mask.png": b"mask",
        "json": b'{"kind": "cat", "id": 7, "far": -1, "is_cat": true}',
        "txt": b"9",
        "cls": b'{"kind": "dog"}',
    }
]


def test_members_with_names_of_their_own_are_taken(tmp_path: Path) -> None:
    index = build_index([write(tmp_path / "s.tar", NAMED)])
    assert index.label.tolist() == [4] and index.length.tolist() == [5]


def test_two_images_are_refused_with_the_option_that_chooses(tmp_path: Path) -> None:
    path = write(tmp_path / "s.tar", PAIRS)
    with pytest.raises(DataError, match=r"two images .*'00000'.*\.jpg and \.mask\.png .*--image-member jpg"):
        build_index([path])
    for name, length in {"jpg": 5, "mask.png": 4, ".JPG": 5, "webp, jpg": 5}.items():
        assert build_index([path], which=Members(name)).length.tolist() == [length]
    assert len(build_index([path], which=Members("png"))) == 0


@pytest.mark.parametrize(
    ("member", "label", "classes"),
    [
        ("cls:kind", 0, ("dog",)),
        ("json:kind", 0, ("cat",)),
        ("json:id", 7, ()),
        ("json:far", -1, ()),
        ("json:is_cat", 0, ("true",)),
        ("txt", 9, ()),
        ("json:none", -1, ()),
    ],
)
def test_labels_of_other_members(member: str, label: int, classes: tuple[str, ...], tmp_path: Path) -> None:
    index = build_index([write(tmp_path / "s.tar", PAIRS)], which=Members("jpg", member))
    assert index.label.tolist() == [label] and index.classes == classes


@pytest.mark.parametrize("data", [b"", b"[" * 100_000, b"[1]", b'{"kind": [1]}', b'{"kind": 1e400}'])
def test_odd_json_is_no_label(data: bytes, tmp_path: Path) -> None:
    index = build_index([write(tmp_path / "s.tar", [{"jpg": b"-", "json": data}])], which=Members(None, "json:kind"))
    assert index.label.tolist() == [-1]


def test_the_members_are_recorded_and_taken_again(tmp_path: Path, leoclr: Callable[..., tuple[str, str]]) -> None:
    write(tmp_path / "data/s.tar", PAIRS)
    _, errors = leoclr("index", tmp_path / "data", "--image-member", "jpg")
    assert "no labels; --label-member takes them from another member (.json, .mask.png, .txt)" in errors
    leoclr("index", tmp_path / "data", "--image-member", "jpg", "--label-member", "json:kind")
    leoclr("index", tmp_path / "data")
    stored = json.loads((tmp_path / "data/s.index.json").read_text())
    assert stored["made"] == {"image_member": "jpg", "label_member": "json:kind"}
    index = open_data([str(tmp_path / "data")])
    assert index.classes == ("cat",) and difference_of_members(index, 0) is None


def test_an_index_from_before_is_read_and_one_without_choices_is_as_before(tmp_path: Path) -> None:
    build_index([labelled(tmp_path / "s.tar", [b"1"])]).save(tmp_path / "s.index.json")
    stored = json.loads((tmp_path / "s.index.json").read_text())
    assert "made" not in stored and set(stored["shards"][0]) == {"name", "bytes", "samples", "sha256", "without_image"}
    assert Index.load(tmp_path / "s.index.json").made == {}


def test_samples_of_unknown_formats_are_told(tmp_path: Path, leoclr: Callable[..., tuple[str, str]]) -> None:
    write(tmp_path / "data/s.tar", [{"png" if n % 2 else "jp2": b"-", "cls": b"0"} for n in range(6)])
    line = "3 samples hold no image of a known format and are left out, in {} first: .jp2 (3)"
    for command in (("index",), ("check", "--no-decode"), ("index", "--json")):
        _, errors = leoclr(*command, tmp_path / "data")
        assert line.format(tmp_path / "data/s.tar") in errors


# What lies beside, and in which folders


def test_what_is_not_read_beside_the_shards_is_told_by_all(
    tmp_path: Path, leoclr: Callable[..., tuple[str, str]]
) -> None:
    labelled(tmp_path / "data/a.tar", [b"1"])
    labelled(tmp_path / "data/B.TAR", [b"2"])
    for name in ("c.tar.gz", "d.tgz", "e.TAR.part", "a.tar.aria2", "notes.gz", ".f.tar.zst"):
        (tmp_path / "data" / name).write_bytes(b"-")
    line = "not read, 4 files beside the shards that may be shards, compressed or incomplete: "
    for command in (("index",), ("check", "--no-decode")):
        out, errors = leoclr(*command, tmp_path / "data")
        assert "2 images, 2 classes, 2 shards" in out and f"{line}{tmp_path / 'data/a.tar.aria2'}, " in errors
    assert any(found.startswith(line) for found in remarks(open_data([str(tmp_path / "data")])))


@pytest.mark.parametrize(
    "names", [("cat/1.png", "dog/2.png"), ("1.png", "2.png"), ("train/cat/1.png", "train/dog/2.png")]
)
def test_images_that_shards_beside_them_were_made_of_are_not_read_and_told(
    names: tuple[str, ...], tmp_path: Path, leoclr: Callable[..., tuple[str, str]]
) -> None:
    """Shards in the folder of their images are what `--data` takes from then on."""
    for name in names:
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "data" / name)
    leoclr("shard", tmp_path / "data", tmp_path / "data")
    place = tmp_path / "data" / ("train" if len(names[0]) > 10 else "")
    first = place / ("cat" if "/" in names[0] else "1.png")
    line = f"not read, images beside the shards, which hold them as they were when packed: {first}, "
    for command in (("index",), ("check", "--no-decode")):
        assert line in leoclr(*command, place)[1]
    assert any(found.startswith(line) for found in remarks(open_data([str(place)])))


def test_shards_in_folders_beside_the_shards_are_told_where_their_folder_was_named(
    tmp_path: Path, leoclr: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    for number, name in enumerate(("0.tar", "x/1.TAR", "x/2.tar", "val/3.tar", ".hidden/4.tar", "x/deep/5.tar")):
        labelled(data / name, [str(number).encode(), b"9"])
    (data / "texts").mkdir()
    (data / "again").symlink_to(data)
    line = "not read, {} beside the shards, to be named too if this is data: "
    two = line.format("3 shards in folders") + f"{data / 'val'}, {data / 'x'}\n"
    for command in (("index",), ("check", "--no-decode")):
        assert two in leoclr(*command, data)[1]
        errors = leoclr(*command, data, f"{data}/x/")[1]
        assert line.format("1 shard in a folder") + f"{data / 'val'}\n" in errors
        assert line.format("1 shard in a folder") + f"{data / 'x/deep'}\n" in errors
        for files in (data / "*.tar", data / "{0..0}.tar", data / "0.tar"):
            assert "not read" not in leoclr(*command, files)[1]
    train = ("train", "--dry-run", "--batch-size", "2", "--set", "moco.bn_splits=1", "--data")
    assert two in leoclr(*train, data)[0]
    named = leoclr(*train, data, "--val-data", data / "val")[0]
    assert line.format("2 shards in a folder") + f"{data / 'x'}\n" in named
    monkeypatch.chdir(data)
    assert line.format("3 shards in folders") + "val, x\n" in leoclr("check", "--no-decode", ".")[1]
    index = open_data([str(data)])
    assert any(found.startswith("not read, 3 shards") for found in remarks(index, [str(data)]))
    assert not list(remarks(index, [str(data / "*.tar")])) and not list(remarks(index))


def test_other_images_beside_shards_are_no_matter(tmp_path: Path) -> None:
    labelled(tmp_path / "data/a.tar", [b"1"])
    Image.new("RGB", (8, 8)).save(tmp_path / "data/views.png")
    (tmp_path / "data/photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "data/photos/1.png")
    assert not list(remarks(open_data([str(tmp_path / "data")])))


def test_keys_in_folders_and_no_labels_are_told(tmp_path: Path, leoclr: Callable[..., tuple[str, str]]) -> None:
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data/s.tar", "w") as tar:
        for name in ("cat/1.png", "cat/2.png", "dog/3.png"):
            tar.addfile(tarfile.TarInfo(name))
    for command in (("index",), ("check", "--no-decode")):
        assert "no labels; if the folders of the keys (cat, dog) are classes" in leoclr(*command, tmp_path / "data")[1]


def test_images_with_dots_in_their_names_are_no_members_of_one_sample(tmp_path: Path) -> None:
    path = write(tmp_path / "s.tar", [{"1.jpg": b"-", "2.jpg": b"-"}])
    with pytest.raises(DataError, match=r"or if they are images of their own, `leoclr shard .*s.tar OUT`"):
        build_index([path])


@pytest.mark.parametrize(
    ("data", "message"),
    [("", "an empty name"), ("  ", "an empty name"), ("~/x.tar", "no shell replaces ~ within quotes")],
)
def test_names_that_name_nothing(data: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("index", "check") if not data.strip() else ("index",):
        with pytest.raises(SystemExit, match="2"):
            main([command, data])
        assert message in capsys.readouterr().err


def test_a_shard_without_a_sample_is_told(tmp_path: Path, leoclr: Callable[..., tuple[str, str]]) -> None:
    labelled(tmp_path / "data" / "a-000000.tar", [b"1"] * 3)
    assert list(remarks(open_data([str(tmp_path / "data")]))) == []
    for number in (1, 2):  # what a failed job leaves: an archive with nothing but its end
        labelled(tmp_path / "data" / f"a-00000{number}.tar", [])
    told = leoclr("index", tmp_path / "data")[1]
    assert "2 shards without a sample: " in told and "a-000001.tar, " in told
