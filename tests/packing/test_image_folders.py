"""Folders of images in place of shards: packed once, found again, packed anew when they change."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from leoclr.cli import image_folders
from leoclr.cli.commands.app import main
from leoclr.cli.image_folders import as_shards
from leoclr.cli.packing import pack_source
from leoclr.datasets.errors import DataError, RunError
from leoclr.datasets.packing.pack import PackingRecipe
from leoclr.datasets.shards.locate import open_data

TinyConfig = Callable[..., Path]


HOLD = """
import sys
from leoclr.cli.image_folders import as_shards
print(*as_shards(["photos"]), flush=True)
sys.stdin.read()
"""


def picture(path: Path, red: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), (red, 10, 90)).save(path)
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the shards of `photos`; the user's cache is in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "platform", "linux")
    for number in range(12):
        picture(tmp_path / "photos" / ("cat", "dog")[number % 2] / f"{number}.png", number)
    return tmp_path / "cache" / "leoclr" / "packed"


def packings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that are packed from now on."""
    packed = list[str]()

    def counted(source: str, *arguments: Any, **named: Any) -> Any:
        packed.append(source)
        return pack_source(source, *arguments, **named)

    monkeypatch.setattr(image_folders, "pack_source", counted)
    return packed


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_folder_is_packed_once_as_shard_packs_it(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = packings(monkeypatch)
    first = as_shards(["photos/"])
    assert said(capsys) == [
        f"photos/: 12 images, 2 classes, packed into {first[0]}; to keep the shards elsewhere: "
        "leoclr shard photos/ shards/photos"
    ]
    assert as_shards([str(Path("photos").absolute())]) == first and len(packed) == 1
    assert said(capsys) == []  # which was said before
    found = subprocess.run([sys.executable, "-c", HOLD], input="", capture_output=True, text=True)
    assert found.stdout.split() == [*first]
    assert found.stderr == f"photos: 12 images, 2 classes, packed before in {first[0]}\n"
    assert as_shards(first) == first  # shards are left as they are

    pack_source("photos", Path("shards"), PackingRecipe("photos"))
    by_hand, cached = open_data(["shards"]), open_data(first)
    assert (by_hand.digest, by_hand.classes) == (cached.digest, cached.classes) and cached.classes == ("cat", "dog")


def test_the_command_for_a_folder_with_a_space_can_be_pasted(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos").rename("my photos")
    as_shards(["my photos"])
    assert said(capsys)[0].endswith("leoclr shard 'my photos' shards/my-photos")


@pytest.mark.parametrize("change", ["new", "gone", "other", "touched"])
def test_a_changed_folder_is_packed_anew(cache: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    (before,) = as_shards(["photos"])
    one = Path("photos/cat/0.png")
    if change == "new":
        picture(Path("photos/dog/new.png"))
    elif change == "gone":
        one.unlink()
    elif change == "other":
        picture(one, red=255)
    else:
        os.utime(one, (1, 1))
    packed = packings(monkeypatch)
    (after,) = as_shards(["photos"])
    assert packed and after != before
    assert (open_data([after]).content_digest == open_data([before]).content_digest) == (change == "touched")


def test_shards_that_a_process_reads_stay_and_others_go(cache: Path) -> None:
    reader = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert reader.stdout is not None
    old = Path(reader.stdout.readline().strip())
    picture(Path("photos/cat/new.png"))
    as_shards(["photos"])
    assert len(open_data([str(old)])) == 12
    reader.communicate()
    as_shards(["photos"])
    assert not old.exists()


def test_two_at_once_pack_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = packings(monkeypatch)
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: as_shards(["photos"]), range(4)))
    assert len(found) == len(packed) == 1


def test_a_packing_that_fails_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(source: str, out: Path, recipe: PackingRecipe) -> None:
        pack_source(source, out, recipe)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(image_folders, "pack_source", killed)
        with pytest.raises(KeyboardInterrupt):
            as_shards(["photos"])
    (place,) = cache.iterdir()
    assert [path.name for path in place.iterdir()] == ["lock"]
    (place / ".partial-0123456789abcdef").mkdir()  # as kill -9 leaves it
    (shards,) = as_shards(["photos"])
    assert {path.name for path in place.iterdir()} == {"lock", Path(shards).name}


def test_what_can_be_read_in_two_ways_is_refused_in_the_words_of_shard(cache: Path) -> None:
    for number in range(4):
        picture(Path("odd") / ("trainA", "testA")[number % 2] / f"{number}.png")
    with pytest.raises(DataError) as by_hand:
        pack_source("odd", Path("out"), PackingRecipe("odd"))
    with pytest.raises(DataError) as refused:
        as_shards(["odd"])
    words, _, hint = str(refused.value).rpartition("; ")
    assert words == str(by_hand.value) and "--layout classes" in words
    assert hint == "--layout is an option of `leoclr shard odd shards/odd`, to be followed by --data shards/odd"


def test_neither_shards_nor_images(cache: Path) -> None:
    Path("empty").mkdir()
    Path("outer/training").mkdir(parents=True)
    Path("outer/training/a.tar").touch()
    with pytest.raises(DataError, match="but in its folders; name one of these, as in --data .*outer/training"):
        as_shards(["outer"])
    with pytest.raises(DataError, match="empty: the folder holds neither .tar shards nor images; `leoclr shard"):
        as_shards(["empty"])
    Path("outer/table.parquet").touch()
    Path("outer/training/a.tar").unlink()
    with pytest.raises(DataError, match="`leoclr shard outer OUT` packs Parquet files"):
        as_shards(["outer"])
    Path("empty/a.tar.gz").touch()
    with pytest.raises(DataError, match="empty/a.tar.gz is not opened: uncompress it if it is a shard"):
        as_shards(["empty"])
    assert not cache.exists()


def test_too_little_room_or_no_cache_is_said_before_packing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
        with pytest.raises(DataError, match="of images, and 100 B are free where the cache is"):
            as_shards(["photos"])
    shutil.rmtree(cache.parents[1])
    cache.parents[1].write_text("a file in its place")
    with pytest.raises(RunError, match="cannot be used .*XDG_CACHE_HOME.*leoclr shard photos shards/photos"):
        as_shards(["photos"])


def test_a_run_on_a_folder_is_scored_and_resumed_until_the_folder_changes(
    cache: Path, tiny_config: TinyConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        picture(Path("photos/val") / ("cat", "dog")[number % 2] / f"v{number}.png", number)
    Path("photos/train").mkdir()
    for name in ("cat", "dog"):
        Path("photos", name).rename(Path("photos/train", name))
    train = ["train", "--data", "photos", "--config", str(tiny_config(data__batch_size=4, moco__bn_splits=1))]
    assert run(*train, "--epochs", "1", "--output", "run", "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["samples"] == 12 and Path(plan["packed"]["photos"]).parents[2] == cache
    assert run(*train, "--epochs", "1", "--output", "run", "--set", "run.knn_epochs=1") == 0
    assert "k-NN top-1" in capsys.readouterr().err
    data = json.loads(Path("run/run.json").read_text())["data"]
    assert (data["train"], data["val"]) == ([str(Path("photos").absolute())], [])

    shutil.rmtree(cache)
    assert run("eval", "knn", "run", "--device", "cpu", "--workers", "0", "--json") == 0
    assert json.loads(capsys.readouterr().out)["data"]["test"]["samples"] == 4
    assert run("embed", "run", "--device", "cpu", "--workers", "0") == 0
    assert run("views", "photos", "--count", "1", "--set", "data.image_size=16") == 0
    assert run("train", "--resume", "run", "--epochs", "2") == 0
    picture(Path("photos/train/cat/new.png"))
    capsys.readouterr()
    assert run("train", "--resume", "run", "--epochs", "3") == 2
    assert "was trained on other data (12 images" in capsys.readouterr().err


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*words])
    return int(ended.value.code or 0)
