"""`leoclr shard` and `leoclr index` as a user types them."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import webdataset
from PIL import Image
from typer.testing import CliRunner

from leoclr.cli.commands.base.parsing import LeoclrCommand
from leoclr.cli.commands.index import index
from leoclr.cli.commands.shard import shard
from leoclr.datasets.errors import DataError, LeoclrError, SettingsError
from leoclr.datasets.shards.index import Index

app = typer.Typer()
app.command(cls=LeoclrCommand)(shard)
app.command(cls=LeoclrCommand)(index)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def encoded(seed: int, side: int = 16, format: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, format)
    return data.getvalue()


def write_images(folder: str, count: int = 10, side: int = 16) -> None:
    for name in ("cat", "dog"):
        Path(folder, name).mkdir(parents=True)
        for number in range(count):
            Path(folder, name, f"{number}.png").write_bytes(encoded(number + 1000 * (name == "dog"), side))


def run(*arguments: str) -> tuple[str, str]:
    """Standard output and standard error of a command that must succeed."""
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def test_shard_prints_a_table_and_the_next_command() -> None:
    write_images("my photos")
    table, messages = run("shard", "my photos", "out put", "--val", "0.1", "--seed", "3")
    assert [line.split()[:4] for line in table.splitlines()] == [
        ["split", "images", "classes", "shards"],
        ["train", "18", "2", "1"],
        ["val", "2", "2", "1"],
        ["classes:", "cat,", "dog"],
    ]
    assert messages.splitlines() == ["next: leoclr train --preset auto --data 'out put'"]
    assert Path("out put/train/my-photos-000000.tar").is_file()
    assert len(Index.load(Path("out put/val/my-photos.index.json"))) == 2


def test_what_is_passed_over_is_told() -> None:
    write_images("photos")
    for name in ("a.HEIC", "b.heic", "c.cr2", "without", ".DS_Store", "Thumbs.db", ".trash/d.heic"):
        Path("photos", "cat", name).parent.mkdir(exist_ok=True)
        Path("photos", "cat", name).write_bytes(b"")
    Path("photos", "a link").symlink_to("cat")
    _, messages = run("shard", "photos", "out", "--max-bad", "0")
    assert messages.splitlines()[:2] == [
        "warning: passed over 4 files without an image's suffix: 2 .heic, 1 .cr2, 1 without suffix (cat/a.HEIC first)",
        "warning: passed over 1 folder that links lead to a second time: a link",
    ]
    assert Index.load(Path("out/photos.index.json")).classes == ("cat", "dog")  # and not the link's name


def test_json_says_everything() -> None:
    write_images("images", 3)
    Path("images/cat/broken.jpg").write_bytes(b"broken")
    printed, messages = run("shard", "images", "out", "--json", "--name", "pets", "--workers", "1")
    report = json.loads(printed)
    (split,) = report["splits"]
    size = Path("out/pets-000000.tar").stat().st_size
    assert (report["name"], split["images"], split["classes"], split["bytes"]) == ("pets", 6, ["cat", "dog"], size)
    assert split["skipped"][0].startswith("cat/broken.jpg: ")
    assert "warning: skipped cat/broken.jpg" in messages


def test_images_are_coded_again_as_asked() -> None:
    write_images("images", 2, side=64)
    run(
        "shard", "images", "out", "--shortest-side", "32", "--format", "jpg", "--quality", "80", "--shard-size", "0.004"
    )
    names = []
    for path in Path("out").glob("*.tar"):
        with tarfile.open(path) as archive:
            for member in archive:
                names.append(member.name)
                if member.name.endswith(".jpg"):
                    content = archive.extractfile(member)
                    assert content is not None
                    with Image.open(content) as image:
                        assert (image.format, image.size) == ("JPEG", (32, 32))
    assert sorted(names)[:2] == ["cat/0.cls", "cat/0.jpg"] and len(names) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing", "out"], "missing: no such folder or archive"),
        (["empty", "out"], "empty: it is empty; expected images"),
        (["texts", "out"], "texts: no images among 2 files; expected images"),
        (["images", "out", "--val", "1.5"], "--val 1.5: expected a share"),
        (["images", "out", "--quality", "80"], "--quality needs --format or --shortest-side"),
        (["images", "out", "--name", "../x"], "--name '../x': expected letters"),
        (["images", "images/cat/0.png/out"], "Not a directory"),
        (["images", "out", "--shard-sise", "3"], "--shard-sise: no such flag; did you mean --shard-size?"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(arguments: list[str], message: str) -> None:
    write_images("images", 2)
    Path("empty").mkdir()
    Path("texts").mkdir()
    Path("texts/a.md").write_text("a")
    Path("texts/b.txt").write_text("b")
    before = sorted(Path().rglob("*"))
    result = CliRunner().invoke(app, ["shard", *arguments])
    assert isinstance(result.exception, LeoclrError)
    assert message in str(result.exception) and "\n" not in str(result.exception)
    assert sorted(Path().rglob("*")) == before


def test_levels_make_8_bits_of_more() -> None:
    Path("scans").mkdir()
    numbers = np.linspace(-1000, 3000, 256).astype(np.int32).reshape(16, 16)
    Image.fromarray(numbers).save("scans/signed.tif")
    Path("scans/plain.png").write_bytes(encoded(0))
    assert "skipped" in run("shard", "scans", "refused")[1]
    run("shard", "scans", "out", "--levels", "-1000:400")
    with tarfile.open("out/scans-000000.tar") as tar:
        members = {Path(member.name).stem: tar.extractfile(member) for member in tar if "." in member.name}
        assert members["plain"] is not None and members["plain"].read() == encoded(0)
        assert members["signed"] is not None
        stored = np.asarray(Image.open(io.BytesIO(members["signed"].read())).convert("L"))
    expected = ((numbers + 1000) / 1400).clip(0, 1) * 255
    np.testing.assert_allclose(stored, expected, atol=0.51)
    for wrong in ("4095", "5:5", "9:1", "a:b", "0:nan"):
        with pytest.raises(DataError, match="such as 0:4095"):
            run("shard", "scans", "wrong", "--levels", wrong)


def test_a_killed_packing_leaves_no_shard_and_the_next_one_works() -> None:
    write_images("images", 150, side=128)
    code = "import typer; from leoclr.cli.commands.shard import shard; typer.run(shard)"
    command = [sys.executable, "-c", code, "images", "out", "--shard-size", "0.2", "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(Path("out").rglob("*000002.tar")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(Path("out").glob("*.tar")) and not list(Path("out").glob("*.json"))
    run("shard", "images", "out", "--shard-size", "10")
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "images-000000.tar",
        "images-000001.tar",
        "images.index.json",
        "images.index.safetensors",
    ]


def write_foreign_shards(folder: str) -> None:
    """Shards as webdataset's own writer makes them, four images each."""
    Path(folder).mkdir()
    with webdataset.ShardWriter(f"{folder}/web-%05d.tar", maxcount=4, verbose=0) as writer:
        for number in range(10):
            sample: dict[str, Any] = {"__key__": f"{number:04d}", "jpg": encoded(number, format="JPEG")}
            writer.write(sample | {"cls": number % 3, "json": {"number": number}})


def test_index_of_shards_that_webdataset_wrote() -> None:
    write_foreign_shards("web")
    Path("names.txt").write_text("ant\nbee\ncat\n")
    printed, _ = run("index", "web/web-{00000..00002}.tar", "--classes", "names.txt", "--json")
    (report,) = json.loads(printed)
    assert (report["index"], report["images"], report["classes"], report["shards"]) == ("web/web.index.json", 10, 3, 3)
    found = Index.load(Path("web/web.index.json"))
    assert found.label.tolist() == [number % 3 for number in range(10)]
    assert found.classes == ("ant", "bee", "cat")
    assert all(entry.sha256 for entry in found.shards)
    table, _ = run("index", "web")
    assert table == "web/web.index.json: 10 images, 3 classes, 3 shards\n    classes: ant, bee, cat\n"
    assert Index.load(Path("web/web.index.json")).classes == ("ant", "bee", "cat")  # which the shards do not hold


def test_names_of_other_shards_are_not_kept() -> None:
    write_foreign_shards("web")
    Path("names.txt").write_text("ant\nbee\ncat\n")
    run("index", "web", "--classes", "names.txt")
    with Path("web/web-00001.tar").open("ab") as file:
        file.write(bytes(10_240))  # harmless padding, and a sign that somebody replaced it
    run("index", "web")
    assert Index.load(Path("web/web.index.json")).classes == ()


def test_index_of_what_img2dataset_writes() -> None:
    Path("laion").mkdir()
    for number in range(2):
        with tarfile.open(f"laion/{number:05d}.tar", "w") as archive:
            for sample in range(3):
                key = f"{number:05d}{sample:04d}"
                for suffix, data in {"jpg": encoded(sample, format="JPEG"), "txt": b"a cat", "json": b"{}"}.items():
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
        Path(f"laion/{number:05d}.parquet").touch()
        Path(f"laion/{number:05d}_stats.json").touch()
    table, _ = run("index", "laion")
    assert table == "laion/shards.index.json: 6 images, no labels, 2 shards\n"


def test_index_refusals() -> None:
    write_foreign_shards("web")
    Path("few.txt").write_text("ant\nbee\n")
    Path("double.txt").write_text("ant\nant\n")
    Path("empty").mkdir()
    for arguments, message in {
        ("web/web-{00000..00004}.tar",): "2 of 5 shards are missing: web/web-00003.tar, web/web-00004.tar",
        ("web", "--classes", "few.txt"): "has class 2, but there are 2 names",
        ("web", "--classes", "double.txt"): "one class name a line, each different",
        ("web", "--classes", "none.txt"): "none.txt: class names cannot be read",
        ("empty",): "empty: no .tar shards there",
        ("pipe:cat web/web-00000.tar",): "'pipe:' is refused",
    }.items():
        result = CliRunner().invoke(app, ["index", *arguments])
        assert isinstance(result.exception, (DataError, SettingsError)), result.exception
        assert message in str(result.exception)
    assert not list(Path("web").glob("*.json"))
