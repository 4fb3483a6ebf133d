"""`leoclr check` finds each fault, names its place, and says what train would do."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

from leoclr.cli.commands import check as check_command
from leoclr.cli.commands.app import main
from leoclr.datasets.errors import DataError
from leoclr.datasets.shards.check import _groups
from leoclr.datasets.shards.copies import repeated_shards
from leoclr.datasets.shards.locate import open_data
from leoclr.datasets.shards.reader import SampleReader

MakeShards = Callable[..., Path]
Serve = Callable[[Path], str]


def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, object]]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["check", *arguments, "--json"])
    code = stopped.value.code
    assert isinstance(code, int)
    return code, json.loads(capsys.readouterr().out)


def faults_of(report: dict[str, object]) -> list[dict[str, str]]:
    faults = report["faults"]
    assert isinstance(faults, list)
    return faults


def indexed(data: Path) -> Path:
    with pytest.raises(SystemExit, match="0"):
        main(["index", str(data)])
    return data


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


def test_sound_shards_have_no_faults(make_shards: MakeShards, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = check(capsys, str(indexed(make_shards((5, 7)))))
    data = report.pop("data")[0]  # type: ignore[index]
    assert (code, report) == (
        0,
        {"shards": 2, "samples": 12, "decoded": True, "faults_in_all": 0, "faults": [], "warnings": []},
    )
    assert (data["images"], data["without_label"], data["class_names"]) == (12, 0, ["0", "1", "2", "3"])


def test_each_fault_is_found_and_its_consequence_told(
    make_shards: MakeShards, capsys: pytest.CaptureFixture[str]
) -> None:
    data = indexed(make_shards((4, 4, 4, 4), bad=(13,)))
    shards = sorted(data.glob("*.tar"))
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:-512])
    flip(shards[2], 600)
    code, report = check(capsys, str(data))
    faults = faults_of(report)
    assert code == 1
    found = [(Path(fault["shard"]).name, fault["what"], fault["consequence"]) for fault in faults]
    assert [name for name, _, _ in found] == [shard.name for shard in shards]
    whats = ["is missing", "bytes; the index says", "SHA-256", "00013: the image cannot be decoded"]
    assert all(word in what for word, (_, what, _) in zip(whats, found, strict=True))
    consequences = ["refuses to start", "refuses to start", "stops when", "another image"]
    assert all(word in consequence for word, (_, _, consequence) in zip(consequences, found, strict=True))


def test_images_of_almost_one_value_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """12 bits in a file that declares 16, with a few hot pixels, beside a picture and a real 16 bits."""
    generator = np.random.default_rng(0)
    for name, most in (("dark", 4095), ("full", 65535)):
        numbers = generator.integers(0, most + 1, (64, 64)).astype(np.uint16)
        numbers[0, :2] = 65535
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(numbers).save(tmp_path / "images" / f"{name}.png")
    with pytest.raises(SystemExit, match="0"):
        main(["shard", str(tmp_path / "images"), str(tmp_path / "shards")])
    code, report = check(capsys, str(tmp_path / "shards"))
    assert (code, report["faults"]) == (0, [])
    warnings = report["warnings"]
    assert isinstance(warnings, list)
    (warning,) = (warning["what"] for warning in warnings)
    assert warning.startswith("images of almost one value (") and warning.endswith("): 1 (dark, 0 to 15 of 255)")


def test_without_checksums_the_members_are_compared(
    make_shards: MakeShards, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_shards((4, 4))
    check(capsys, str(data))  # builds an index from the headers alone
    shards = sorted(data.glob("*.tar"))
    shards[0].write_bytes(shards[1].read_bytes())  # as many samples and bytes, but others
    _, report = check(capsys, str(data), "--no-decode")
    assert "other samples than its index lists" in json.dumps(report["faults"])


def test_very_many_faults_are_counted_and_the_first_told(
    make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check_command, "MOST_FAULTS", 3)
    data = indexed(make_shards((8, 8), bad=(1, 2, 3, 9, 10)))
    code, report = check(capsys, str(data))
    assert (code, report["faults_in_all"], len(faults_of(report))) == (1, 5, 3)
    with pytest.raises(SystemExit, match="1"):
        main(["check", str(data)])
    printed = capsys.readouterr().out
    assert "and 2 more faults\n5 images cannot be used: 31.25%" in printed and "16 samples: 5 faults" in printed


def test_shards_on_a_server_are_checked_alike(
    make_shards: MakeShards,
    serve: Serve,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home-cache"))
    data = indexed(make_shards((4, 4, 4, 4), bad=(13,)))
    server = serve(tmp_path)
    url = f"{server}/data/data-{{000000..000003}}.tar"
    code, report = check(capsys, url)
    assert (code, report["samples"]) == (1, 16)
    assert [fault["what"].partition(":")[0] for fault in faults_of(report)] == ["00013"]
    shards = sorted(data.glob("*.tar"))
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:-512])
    flip(shards[2], 600)
    urlopen(Request(f"{server}/etag", b'"v2"', method="POST")).close()
    code, report = check(capsys, url)
    whats = ["is missing", "bytes; the index says", "SHA-256", "00013: the image cannot be decoded"]
    assert code == 1
    assert all(word in fault["what"] for word, fault in zip(whats, faults_of(report), strict=True))
    assert all(fault["shard"].startswith("http://127.0.0.1") for fault in faults_of(report))


def test_the_index_of_shards_on_a_server_is_the_one_that_would_lie_beside_them(
    make_shards: MakeShards,
    serve: Serve,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home-cache"))
    data = make_shards((3, 5))
    url = f"{serve(tmp_path)}/data/data-{{000000..000001}}.tar"
    with pytest.raises(SystemExit, match="0"):
        main(["index", url, "--output", str(tmp_path / "made")])
    indexed(data)
    for name in ("data.index.json", "data.index.safetensors"):
        assert (tmp_path / "made" / name).read_bytes() == (data / name).read_bytes()
    with pytest.raises(SystemExit, match="2"):
        main(["index", url])
    assert "give the folder for their index with --output" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["index", str(data), "--output", str(tmp_path)])
    assert "--output is for shards on a server" in capsys.readouterr().err


def test_training_stops_at_a_byte_that_changed(make_shards: MakeShards, capsys: pytest.CaptureFixture[str]) -> None:
    data = indexed(make_shards((4,)))
    index = open_data([str(data)])
    flip(next(data.glob("*.tar")), int(index.offset[2]) + 20)
    reader = SampleReader(index)
    assert reader.read(1) == reader.read(1)
    with pytest.raises(DataError, match="'00002' has changed since it was indexed"):
        reader.read(2)


def test_of_a_folder_with_splits_all_are_checked(make_shards: MakeShards, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("all/train", "all/val", "all/unlabeled"):
        indexed(make_shards((4,), name=name))
    data = make_shards((4,), name="all/test").parent
    indexed(data / "test")
    code, report = check(capsys, str(data))
    assert code == 0 and report["shards"] == 4 and report["samples"] == 16
    flip(next((data / "val").glob("*.tar")), 600)
    code, report = check(capsys, str(data))
    assert code == 1 and "/val/" in faults_of(report)[0]["shard"]


def test_nothing_to_check_is_no_good_news(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"")
    with pytest.raises(SystemExit, match="2"):
        main(["check", str(tmp_path / "photos")])
    assert re.search("no .tar shards there; `leoclr shard .*photos OUT` packs images", capsys.readouterr().err)


@pytest.mark.parametrize("command", ["check", "index"])
def test_a_folder_of_compressed_shards(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a-000.tar.zst").write_bytes(b"")
    with pytest.raises(SystemExit, match="2"):
        main([command, str(tmp_path)])
    assert "a-000.tar.zst is not opened: uncompress it if it is a shard" in capsys.readouterr().err


def test_a_split_whose_shards_have_gone_is_missed(make_shards: MakeShards, capsys: pytest.CaptureFixture[str]) -> None:
    data = indexed(make_shards((4,), name="all/train")).parent
    indexed(make_shards((4,), name="all/val"))
    next((data / "val").glob("*.tar")).unlink()
    code, report = check(capsys, str(data))
    assert code == 1 and "/val/" in faults_of(report)[0]["shard"] and "is missing" in faults_of(report)[0]["what"]


def test_samples_are_read_together_within_bounds(make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch) -> None:
    index = open_data([str(make_shards((9,)))])
    monkeypatch.setattr("leoclr.datasets.shards.check.MAX_BYTES", int(index.length[:4].max()) * 2)
    groups = list(_groups(index, 0, 9))
    assert [number for group in groups for number in group] == list(range(9)) and max(map(len, groups)) <= 3


# Shards that are copies of others


@pytest.mark.parametrize("with_checksums", [True, False])
@pytest.mark.parametrize("command", [["check"], ["index"], ["train", "--dry-run", "--batch-size", "2", "--data"]])
def test_shards_with_the_same_samples_are_told_by_all(
    command: list[str], with_checksums: bool, make_shards: MakeShards, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_shards((4, 4, 4))
    first = data / "data-000000.tar"
    shutil.copy(first, data / "z.tar")
    if with_checksums:
        indexed(data)
    arguments = [*command, str(data), *(["--set", "moco.bn_splits=1"] if command[0] == "train" else [])]
    line = f"{first} and {data / 'z.tar'} hold the same samples; their images count double; remove one\n"
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        main(arguments)
    assert "".join(capsys.readouterr()).count(line) == 1
    (data / "z.tar").rename(data.parent / "z.tar")
    for path in data.glob("*.index.*"):
        path.unlink()
    with pytest.raises(SystemExit, match="0"):
        main(arguments)
    assert "the same samples" not in "".join(capsys.readouterr())


def packed(path: Path, contents: list[bytes], kind: int = tarfile.GNU_FORMAT) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for number, content in enumerate(contents):
            info = tarfile.TarInfo(f"{number}.png")
            info.size, info.mtime = len(content), kind
            tar.addfile(info, io.BytesIO(content))
    return path


def groups_of(*paths: str) -> list[str]:
    return ["".join(Path(path).stem for path in group) for group in repeated_shards(open_data(paths))]


@pytest.mark.parametrize("with_checksums", [True, False])
def test_copies_are_told_from_shards_that_look_alike(with_checksums: bool, tmp_path: Path) -> None:
    """Numbers as keys and images of one length, as uncompressed ones have: only the content tells these apart."""
    images = [b"%03d" % number for number in range(40)]
    for name in "ade":
        packed(tmp_path / "data" / f"{name}.tar", images, tarfile.PAX_FORMAT if name == "d" else tarfile.GNU_FORMAT)
    for name in "bf":
        packed(tmp_path / "data" / f"{name}.tar", images[::-1])
    packed(tmp_path / "data" / "c.tar", [*images[:-1], b"---"])
    packed(tmp_path / "data" / "g.tar", images[:-1])
    for name in "hi":
        packed(tmp_path / "data" / f"{name}.tar", [])
    if with_checksums:
        indexed(tmp_path / "data")
    assert groups_of(str(tmp_path / "data")) == ["ade", "bf"]
    packed(tmp_path / "other" / "A.tar", images)  # of another folder, without checksums
    assert groups_of(str(tmp_path / "data"), str(tmp_path / "other/*.tar")) == ["adeA", "bf"]


def test_copies_on_a_server_are_told(
    make_shards: MakeShards, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home-cache"))
    data = make_shards((4, 4))
    shutil.copy(data / "data-000000.tar", data / "data-000002.tar")
    url = f"{serve(tmp_path)}/data/data-{{000000..000002}}.tar"
    assert groups_of(url) == ["data-000000data-000002"]
    indexed(data)
    for number in range(3):
        (data / f"data-00000{number}.tar").touch()
    assert groups_of(url) == ["data-000000data-000002"]


def test_many_copies_are_told_in_one_line(make_shards: MakeShards, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_shards((2, 2, 2, 2, 2))
    for path in sorted(data.glob("*.tar")):
        shutil.copy(path, data / f"y{path.name[-5]}.tar")
    indexed(data)
    name = f"{data}/data-00000"
    told = "; ".join(f"{name}{number}.tar and {data}/y{number}.tar" for number in range(3))
    line = f"{told}; and 2 more each hold the same samples; their images count double; remove one of each\n"
    assert line in capsys.readouterr().err
    shutil.copy(data / "y0.tar", data / "z.tar")
    indexed(data)
    errors = capsys.readouterr().err
    assert f"{name}0.tar, {data}/y0.tar and {data}/z.tar; " in errors
    assert "their images count several times; remove all but one of each\n" in errors
