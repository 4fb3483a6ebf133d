"""A packing that was interrupted is gone on with: finished shards are verified and kept, and the result is the same."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from leoclr.cli.commands.app import main
from leoclr.cli.image_folders import as_shards
from leoclr.datasets.packing import pack as packing
from leoclr.datasets.packing.archives import PlacesSource
from leoclr.datasets.packing.encoding import Encoding
from leoclr.datasets.packing.folder_source import FolderSource

SIZE = ("--shard-size", "0.009")
Run = Callable[..., str]


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two splits of 30 images, of which every tenth cannot be read and some have a caption or the wrong suffix."""
    folder = tmp_path_factory.mktemp("images") / "in"
    for number in range(60):
        path = folder / ("train", "val")[number % 2] / "ab"[number // 2 % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8))
        picture.save(path, "JPEG" if number % 7 == 0 else "PNG")
        if number % 10 == 0:
            path.write_bytes(b"no image")
        if number % 3 == 0:
            path.with_suffix(".txt").write_text(f"number {number}")
    return folder


@pytest.fixture(scope="module")
def whole(images: Path) -> Path:
    """What they are packed to without an interruption."""
    with pytest.raises(SystemExit, match="0"):
        main(["shard", str(images), str(images.parent / "whole"), *SIZE])
    return images.parent / "whole"


@pytest.fixture
def shard(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """`leoclr shard` with small shards; what it says, and its exit code must be as expected."""

    def run(out: str, *options: str, source: Path = images, code: int = 0) -> str:
        with pytest.raises(SystemExit) as exit:
            main(["shard", str(source), str(tmp_path / out), *SIZE, *options])
        found = capsys.readouterr()
        assert exit.value.code == code, found.err
        return found.err

    return run


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`interrupt(n)` presses Ctrl-C, as it were, at the n-th image from now on; 0 no more."""

    def after(count: int) -> None:
        left = [count]

        def apply(self: Encoding, data: bytes, suffix: str) -> tuple[bytes, str, tuple[str, ...]]:
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return original(self, data, suffix)

        monkeypatch.setattr(Encoding, "apply", apply)

    original = Encoding.apply
    return after


def count_reads(monkeypatch: pytest.MonkeyPatch, kind: type) -> list[str]:
    """The paths that are read from now on."""
    read: list[str] = []
    original = kind.read  # type: ignore[attr-defined]

    def reading(self: object, path: str) -> bytes:
        read.append(path)
        data: bytes = original(self, path)
        return data

    monkeypatch.setattr(kind, "read", reading)
    return read


def told(messages: str) -> list[str]:
    """What is said of images, without what is said of going on."""
    return sorted(line for line in messages.splitlines() if "skipped" in line or "stored under" in line)


def test_what_is_done_is_not_done_again(
    tmp_path: Path, shard: Run, interrupt: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    without = told(shard("whole"))
    interrupt(40)  # in the second split, with one thread
    messages = shard("out", "--workers", "1", code=130)
    kept = [path for path in (tmp_path / "out/.packing").rglob("*.tar") if path.stat().st_size]
    assert f"finished shards kept in {tmp_path / 'out/.packing'}; the same command goes on from there" in messages
    assert not list((tmp_path / "out").glob("*/*.tar")) and len(kept) > 2
    interrupt(0)
    read = count_reads(monkeypatch, FolderSource)
    messages = shard("out", "--max-bad", "50")  # a limit that decides no byte may be another
    assert "going on from " in messages and told(messages) == without
    assert 0 < len({path for path in read if path.endswith(".png")}) < 35
    assert digests(tmp_path / "out") == digests(tmp_path / "whole") and not (tmp_path / "out/.packing").exists()


def change_an_image(images: Path, staging: Path) -> None:
    path = images / "train/a/4.png"
    os.utime(path, ns=(0, 0))


def damage_a_shard(images: Path, staging: Path) -> None:
    path = next(path for path in sorted(staging.rglob("*-000001.tar")))
    path.write_bytes(path.read_bytes().replace(b"number", b"Number", 1)[:-1] + b"\1")


def lose_a_shard(images: Path, staging: Path) -> None:
    next(staging.rglob("*-000000.tar")).unlink()


def cut_the_journal(images: Path, staging: Path) -> None:
    content = (staging / "journal.jsonl").read_bytes()
    (staging / "journal.jsonl").write_bytes(content[: len(content) // 2])


def forge_a_name(images: Path, staging: Path) -> None:
    forge(staging, {"shard": "../../../in/train/a/4.png"})


def forge_a_count(images: Path, staging: Path) -> None:
    forge(staging, {"pictures": -3})


def forge(staging: Path, changes: dict[str, object]) -> None:
    journal = staging / "journal.jsonl"
    first, second, *_ = journal.read_text().splitlines()
    journal.write_text(first + "\n" + json.dumps(json.loads(second) | changes) + "\n")


@pytest.mark.parametrize(
    "harm", [change_an_image, damage_a_shard, lose_a_shard, cut_the_journal, forge_a_name, forge_a_count]
)
def test_only_sound_shards_of_the_same_images_are_kept(
    harm: Callable[[Path, Path], None],
    images: Path,
    whole: Path,
    tmp_path: Path,
    shard: Run,
    interrupt: Callable[[int], None],
) -> None:
    interrupt(25)
    shard("out", "--workers", "1", code=130)
    interrupt(0)
    (tmp_path / "out/.packing/train/in-000099.tar").write_bytes(b"half a shard")
    harm(images, tmp_path / "out/.packing")
    shard("out")
    assert digests(tmp_path / "out") == digests(whole)


def test_other_options_begin_anew(tmp_path: Path, shard: Run, interrupt: Callable[[int], None]) -> None:
    interrupt(25)
    shard("out", "--workers", "1", code=130)
    interrupt(0)
    assert "going on" not in shard("out", "--seed", "1")


def test_archives_go_on_too(
    images: Path, tmp_path: Path, shard: Run, interrupt: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(tmp_path / "in.tar.gz", "w:gz") as archive:
        archive.add(images, "in")
    interrupt(40)
    shard("out", "--workers", "1", source=tmp_path / "in.tar.gz", code=130)
    interrupt(0)
    read = count_reads(monkeypatch, PlacesSource)
    shard("out", source=tmp_path / "in.tar.gz")
    assert 0 < len({path for path in read if path.endswith(".png")}) < 35


def test_too_many_bad_images_cost_no_finished_shard(shard: Run) -> None:
    assert "finished shards kept" in shard("out", "--max-bad", "2", code=2)
    assert "going on from" in shard("out", "--max-bad", "100")


def test_the_cache_of_a_folder_goes_on(
    images: Path, tmp_path: Path, interrupt: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(packing.PackingRecipe, "__post_init__", small_shards, raising=False)
    interrupt(50)
    with pytest.raises(KeyboardInterrupt):
        as_shards([str(images)])
    interrupt(0)
    read = count_reads(monkeypatch, FolderSource)
    as_shards([str(images)])
    assert 0 < len({path for path in read if path.endswith(".png")}) < 50


def small_shards(recipe: packing.PackingRecipe) -> None:
    object.__setattr__(recipe, "shard_bytes", 6_000)
