"""Folders and archives as people have them: odd files, names in other encodings, copies, lists of what to leave out."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from leoclr.cli.commands.app import main
from leoclr.datasets.errors import DataError
from leoclr.datasets.packing.arrangement import arrange
from leoclr.datasets.packing.sources import open_source
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.locate import open_data

Run = Callable[..., tuple[str, str]]


def png(number: int, format: str = "PNG") -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(data, format)
    return data.getvalue()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def shard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """`leoclr shard` of `tmp_path / "in"` to `tmp_path / "out"` with options; both streams."""

    def run(*options: str, source: str = "in", code: int = 0) -> tuple[str, str]:
        with pytest.raises(SystemExit) as exit:
            main(["shard", str(tmp_path / source), str(tmp_path / "out"), "--overwrite", *options])
        found = capsys.readouterr()
        assert exit.value.code == code, found.err
        return found.out, found.err

    return run


def members(out: Path) -> dict[str, bytes]:
    found = {}
    for path in out.glob("*.tar"):
        with tarfile.open(path) as archive:
            for member in archive:
                content = archive.extractfile(member)
                assert content is not None
                found[member.name] = content.read()
    return found


def test_what_is_no_regular_file_is_passed_over(tmp_path: Path, shard: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "in", {"cat/1.png": png(1), "dog/2.png": png(2)})
    os.mkfifo(folder / "cat" / "pipe.png")
    (folder / "dog" / "link.png").symlink_to(folder / "cat" / "pipe.png")
    (folder / "dog" / "null.png").symlink_to("/dev/null")
    (folder / "dog" / "itself").symlink_to(folder / "dog" / "itself")
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.png")
        _, errors = shard()
    assert "passed over, no regular files: 4 (" in errors
    assert len(open_data([str(tmp_path / "out")])) == 2


def tarred(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.type, info.size = (tarfile.DIRTYPE, 0) if name.endswith("/") else (tarfile.REGTYPE, len(data))
            archive.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_hidden_images_and_folders_without_images_are_told(kind: str, tmp_path: Path) -> None:
    files = {"cat/1.png": b"-", "dog/2.png": b"-", "elk/3.heic": b"-", "a/b/c.csv": b"-", "cat/.4.png": b"-"}
    files |= {"cat/._1.png": b"-", "__MACOSX/cat/._1.png": b"-", ".DS_Store": b"-", "cat/.note": b"-"}
    place = tmp_path / f"in.{kind}"
    if kind == "folder":
        write(place, files)
        (place / "empty").mkdir()
    elif kind == "tar":
        tarred(place, {"cat/": b"", "empty/": b""} | files)
    else:
        with zipfile.ZipFile(place, "w") as archive:
            for name, data in ({"cat/": b"", "empty/": b""} | files).items():
                archive.writestr(name, data)
    with open_source(str(place), tmp_path) as source:
        assert sorted(source.paths) == ["cat/1.png", "dog/2.png"]
        assert source.other_files == {".heic": 1, ".csv": 1} and source.other_files.first == "a/b/c.csv"
        assert sorted(source.notes.lines()) == [
            "folders without an image: 3 (a first)",
            "passed over, hidden images (a name that begins with a dot): 1 (cat/.4.png)",
        ]


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_thumbnails_and_waste_bins_are_passed_over(kind: str, tmp_path: Path) -> None:
    waste = ("$RECYCLE.BIN/S-1/0.jpg", "System Volume Information/0.jpg", "lost+found/1.jpg", "#recycle/cat/2.jpg")
    names = ("cat/1.png", "dog/2.png", "cat/@eaDir/1.png/SYNOPHOTO_THUMB_XL.jpg", *waste, "recycle/3.png")
    place = tmp_path / f"in.{kind}"
    if kind == "folder":
        write(place, dict.fromkeys(names, b"-"))
    else:
        with zipfile.ZipFile(place, "w") as archive:
            for name in names:
                archive.writestr(name, b"-")
    with open_source(str(place), tmp_path) as source:
        assert sorted(source.paths) == ["cat/1.png", "dog/2.png", "recycle/3.png"]
        (line,) = source.notes.lines()
    assert line.startswith("passed over, ") and "systems make (thumbnails, waste): 5 (" in line


def test_a_text_file_that_cannot_be_read_costs_no_image(tmp_path: Path, shard: Run) -> None:
    files = write(tmp_path / "in", {"cat/1.png": png(1), "dog/2.png": png(2), "dog/2.txt": b"a dog"})
    (files / "cat/1.txt").symlink_to("gone")
    _, errors = shard("--max-bad", "0")
    assert "skipped" not in errors and "left out, text files that cannot be read: 1 (cat/1.txt)" in errors
    assert set(members(tmp_path / "out")) == {"cat/1.png", "cat/1.cls", "dog/2.png", "dog/2.txt", "dog/2.cls"}


def test_odd_names_stay_on_one_line(tmp_path: Path, shard: Run) -> None:
    write(tmp_path / "in", {"cat/a\nb.png": b"-", "cat/1.png": png(1), "dog/\x1b[2J.csv": b"-", "dog/1.png": png(2)})
    write(tmp_path / "in", {"dog/\x85.\u2028.png": png(2), ".x\n/y.png": png(3)})
    out, errors = shard()
    assert all(line.startswith(("warning: ", "next: ")) for line in errors.split("\n") if line)
    assert "skipped cat/a\\nb.png: " in errors and "hidden folders: 1 (.x\\n)" in errors and "\x1b" not in errors


def test_a_pipe_for_a_shard_or_index_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "a.tar")
    for command in ("index", "check"):
        with pytest.raises(SystemExit, match="2"):
            main([command, str(tmp_path)])
        assert "a.tar" in capsys.readouterr().err
    os.mkfifo(tmp_path / "a.index.json")
    with pytest.raises(SystemExit, match="2"):
        main(["check", str(tmp_path)])
    assert "a.index.json: not an index (it is no regular file)" in capsys.readouterr().err


def test_what_an_image_is_its_bytes_say(tmp_path: Path, shard: Run) -> None:
    write(tmp_path / "in", {"1.jpg": png(1), "2.png": png(2, "JPEG"), "3.JPEG": png(3, "JPEG"), "4.gif": png(4)})
    _, errors = shard()
    assert sorted(members(tmp_path / "out")) == ["1.png", "2.jpg", "3.jpg", "4.png"]
    assert "stored under the suffix of what their bytes are: 3 (" in errors
    shard("--format", "jpg")
    stored = members(tmp_path / "out")
    assert sorted(stored) == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    assert all(data.startswith(b"\xff\xd8") for data in stored.values())


def zipped(path: Path, names: list[bytes]) -> Path:
    """A zip whose names have these bytes, without a word on their encoding."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, name in enumerate(names):
            archive.writestr(zipfile.ZipInfo(chr(ord("a") + number) * len(name)), png(number))
    data = path.read_bytes()
    for number, name in enumerate(names):
        data = data.replace(bytes([ord("a") + number]) * len(name), name)
    path.write_bytes(data)
    return path


def names_in(path: Path, encoding: str | None = None) -> list[str]:
    with open_source(str(path), path.parent, encoding=encoding) as source:
        return sorted(source.paths)


@pytest.mark.parametrize(
    ("names", "encoding"),
    [
        (["été/1.png", "日本/2.png"], "utf-8"),
        (["猫/1.png", "狗狗/2.png"], "gbk"),
        (["表/1.png", "ソ/2.png"], "shift_jis"),  # whose second byte is a backslash
        (["été/1.png", "niño/2.png"], "cp437"),
    ],
)
def test_zips_without_a_word_on_their_encoding(names: list[str], encoding: str, tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", [name.encode(encoding) for name in names])
    if encoding == "utf-8":
        assert names_in(path) == sorted(names)
    else:
        with pytest.raises(DataError, match="is not UTF-8, and the archive does not say what it is; give --encoding"):
            names_in(path)
    assert names_in(path, encoding) == sorted(names)


def test_a_unicode_name_beside_the_name_counts(tmp_path: Path) -> None:
    raw = "été.png".encode("cp850")
    text = b"\x01" + zlib.crc32(raw).to_bytes(4, "little") + "été.png".encode()
    member = zipfile.ZipInfo("a" * len(raw))
    member.extra = b"\x75\x70" + len(text).to_bytes(2, "little") + text
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(member, png(1))
    (tmp_path / "x.zip").write_bytes((tmp_path / "x.zip").read_bytes().replace(b"a" * len(raw), raw))
    assert names_in(tmp_path / "x.zip") == ["été.png"]


@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_the_encoding_of_names_in_a_tar_or_folder(kind: str, tmp_path: Path) -> None:
    raw = [name.encode("gbk") for name in ("猫/1.png", "狗/2.png")]
    path = tmp_path / ("x.tar" if kind == "tar" else "x")
    if kind == "tar":
        with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="gbk") as archive:
            for name in raw:
                info = tarfile.TarInfo(name.decode("gbk"))
                info.size = 1
                archive.addfile(info, io.BytesIO(b"-"))
    else:
        for name in raw:
            os.makedirs(os.path.dirname(os.fsencode(path) + b"/" + name))
            Path(os.fsdecode(os.fsencode(path) + b"/" + name)).write_bytes(b"-")
    with open_source(str(path), tmp_path) as source, pytest.raises(DataError, match="give the --encoding"):
        arrange(source)
    with open_source(str(path), tmp_path, encoding="gbk") as source:
        assert arrange(source).classes == ("狗", "猫")
        assert [source.read(name) for name in source.paths] == [b"-", b"-"]


@pytest.mark.parametrize("encoding", ["klingon", "hex", "base64"])
def test_what_is_no_encoding_is_refused(encoding: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected an encoding, such as gbk"):
        names_in(tmp_path, encoding)


def test_names_that_stand_twice_are_told(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for data in (b"old", b"new"):
            info = tarfile.TarInfo("a/1.png")
            info.size = 3
            archive.addfile(info, io.BytesIO(data))
    with open_source(str(tmp_path / "x.tar"), tmp_path) as source:
        assert source.read("a/1.png") == b"new"
        assert list(source.notes.lines()) == [
            "names that stand twice in the archive, of which the last counts: 1 (a/1.png)"
        ]


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("clip.MP4", "videos are not read"),
        ("x.7z", "archives are packed from"),
        ("inner.tar", "those within a source"),
        ("metadata.jsonl", "labels in tables and annotation files are not read"),
        ("brain.nii.gz", "arrays and volumes are not read"),
        ("labels.csv.gz", "labels in tables and annotation files are not read"),
        ("a-00000.tfrecord", "record files of other tools and pickles are not read"),
    ],
)
def test_videos_and_nested_archives_are_refused_in_words(name: str, advice: str, tmp_path: Path, shard: Run) -> None:
    write(tmp_path / "in", {name: b"-"})
    assert "no images among 1 files; expected images" in shard(code=2)[1]
    refusal = shard(code=2)[1]
    assert advice in refusal and ("archives" in refusal) == name.endswith(("7z", "tar"))
    if not name.endswith("tar"):
        assert advice in shard(source=f"in/{name}", code=2)[1]
    write(tmp_path / "in", {"1.png": png(1)})
    assert advice in shard()[1]


# Copies and lists


def test_copies_stay_on_one_side_and_are_counted(tmp_path: Path, shard: Run) -> None:
    write(tmp_path / "in", {f"{name}/{n}.png": png(n % 10 + 10 * ord(name)) for name in "ab" for n in range(20)})
    out, errors = shard("--val", "0.2", "--json")
    train, val = (open_data([str(tmp_path / "out" / split)]) for split in ("train", "val"))
    assert len(train) + len(val) == 40 and 4 <= len(val) <= 12
    assert val.shared_with(train) == 0
    assert "byte for byte: " in errors and "leoclr shard --dedupe leaves them out" in errors
    assert sum(split["copies"] for split in json.loads(out)["splits"]) == 20


def test_dedupe_drops_copies_those_of_train_first(tmp_path: Path, shard: Run) -> None:
    files = {f"train/a/{n}.png": png(n % 6) for n in range(8)} | {f"train/b/{n}.png": png(20 + n) for n in range(3)}
    write(tmp_path / "in", files | {"test/a/x.png": png(5), "test/b/y.png": png(0)})
    _, errors = shard()
    assert "images of the split test that are in train too, byte for byte: 2" in errors
    _, errors = shard("--dedupe")
    assert len(open_data([str(tmp_path / "out/train")])) == 7 and len(open_data([str(tmp_path / "out/test")])) == 2
    assert "left out, copies of other images (--dedupe): 4 (train/a/0.png first)" in errors
    assert "copies of an image of another class: 2 (train/a/0.png and test/b/y.png first)" in errors


def test_a_list_of_images_is_left_out(tmp_path: Path, shard: Run) -> None:
    write(tmp_path / "in", {f"{name}/{n}.png": png(n + 10 * ord(name)) for name in "ab" for n in range(4)})
    listed = tmp_path / "list.txt"
    listed.write_bytes("\ufeffa/0.png\r\na/1\r\n\r\nb/9.png\r\n".encode())
    _, errors = shard("--without", str(listed))
    assert sorted(Index.load(tmp_path / "out/in.index.json").keys()) == ["a/2", "a/3", "b/0", "b/1", "b/2", "b/3"]
    assert f"left out, listed in {listed}: 2 (a/0.png first)" in errors
    assert f"names in {listed} that match no image: 1 (b/9.png)" in errors
    listed.write_text("nothing\n")
    assert "none of its 1 names is one of" in shard("--without", str(listed), code=2)[1]


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("cat/1", {"cat/1-2": "PNG", "cat/2": "PNG"}),  # the key of the JPEG
        ("cat/1-2", {"cat/1": "JPEG", "cat/2": "PNG"}),
        ("cat/1.png", {"cat/1": "JPEG", "cat/2": "PNG"}),
        ("cat/2", {"cat/1": "JPEG", "cat/1-2": "PNG"}),
    ],
)
@pytest.mark.parametrize("split", ["", "train/"])
def test_a_line_leaves_out_one_image(split: str, line: str, left: dict[str, str], tmp_path: Path, shard: Run) -> None:
    files = {"cat/1.jpg": png(1, "JPEG"), "cat/1.png": png(1), "cat/2.png": png(2), "dog/1.png": png(3)}
    write(tmp_path / "in", {split + name: data for name, data in files.items()})
    (tmp_path / "list.txt").write_text(f"{split}{line}\n")
    _, errors = shard("--without", str(tmp_path / "list.txt"))
    kept = members(tmp_path / "out" / split)
    assert {name.removesuffix(".cls") for name in kept if name.endswith(".cls")} == {*left, "dog/1"}
    for key, format in left.items():
        assert f"{key}.{'jpg' if format == 'JPEG' else 'png'}" in kept
    assert "that match several images" not in errors


def test_a_line_for_several_images_is_told(tmp_path: Path, shard: Run) -> None:
    files = {f"{split}/cat/{n}.png": png(n + ord(split[1])) for split in ("train", "test") for n in range(2)}
    write(tmp_path / "in", files | {"train/cat/0.5.png": png(5), "train/cat/0.5.jpg": png(6, "JPEG")})
    (tmp_path / "list.txt").write_text("cat/1\ntrain/cat/0.5\n")
    _, errors = shard("--without", str(tmp_path / "list.txt"))
    assert [len(open_data([str(tmp_path / "out" / split)])) for split in ("train", "test")] == [1, 1]
    assert "list.txt that match several images, all left out: 2 (cat/1 first)" in errors


def test_the_index_records_how_the_data_were_made(tmp_path: Path, shard: Run) -> None:
    write(tmp_path / "in", {f"{name}/{n}.png": png(n + 10 * ord(name)) for name in "ab" for n in range(8)})
    shard("--val", "0.25", "--seed", "3", "--format", "webp")
    made = json.loads((tmp_path / "out/val/in.index.json").read_text())["made"]
    assert made == {"layout": "classes", "val": 0.25, "format": "webp", "seed": 3}


def test_a_locale_changes_no_name_and_costs_no_traceback(tmp_path: Path) -> None:
    """One without letters beyond ASCII, which Python would take for a reason to use UTF-8 if it were let."""
    write(tmp_path / "in", {"été/1.png": png(1), "日本/é2.png": png(2), "日本/bad.png": b"-"})
    locale = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PATH": os.environ["PATH"]}
    for command in (["shard", "in", "out"], ["check", "out"]):
        done = subprocess.run(
            [sys.executable, "-m", "leoclr.cli", *command], cwd=tmp_path, env=locale, capture_output=True, text=True
        )
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
        assert "classes: \\xe9t\\xe9, \\u65e5\\u672c" in done.stdout
    index = Index.load(tmp_path / "out/in.index.json")
    assert index.classes == ("été", "日本") and sorted(index.keys()) == ["été/1", "日本/é2"]
