"""`leoclr views` from files and shards to a PNG, and its refusals."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from leoclr.cli.commands.base.parsing import LeoclrCommand
from leoclr.cli.commands.views import views
from leoclr.datasets.errors import LeoclrError

app = typer.Typer()
app.command(cls=LeoclrCommand)(views)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def encoded(seed: int = 0, width: int = 40, height: int = 30) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def image_file(name: str = "cat.png") -> str:
    Path(name).write_bytes(encoded())
    return name


def shard_file(name: str, images: int) -> str:
    with tarfile.open(name, "w") as tar:
        for number in range(images):
            data = encoded(number)
            member = tarfile.TarInfo(f"{number:04d}.png")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return name


def draw(*arguments: str) -> str:
    """Runs the command, which must succeed; what it printed."""
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def height(path: str = "views.png") -> int:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return picture.height


def test_one_image_gives_one_picture_and_nothing_else(folder: Path) -> None:
    output = draw(image_file())

    assert sorted(path.name for path in folder.iterdir()) == ["cat.png", "views.png"]
    assert re.fullmatch(r"views\.png: \d+ x \d+ pixels\n", output)


def test_rows_are_draws_times_images() -> None:
    files = [image_file("a.png"), image_file("b.PNG")]
    heights = []
    for arguments in (files[:1], files, [*files, "--draws", "2"]):
        draw(*arguments, "-o", "out/rows.png")
        heights.append(height("out/rows.png"))

    row = heights[1] - heights[0]
    assert row > 224
    assert heights[2] - heights[1] == 2 * row


def test_shards_give_their_first_samples() -> None:
    shard_file("photos-000000.tar", 3)
    shard_file("photos-000001.tar", 3)
    by_count = {}
    for count in (1, 2, 5, 64):
        draw("photos-{000000..000001}.tar", "--count", str(count))
        by_count[count] = height()

    row = by_count[2] - by_count[1]
    assert by_count[5] == by_count[1] + 4 * row
    assert by_count[64] == by_count[1] + 5 * row, "there are six images"


def test_same_seed_same_bytes() -> None:
    name = image_file()
    pictures = []
    for seed in ("0", "0", "1"):
        draw(name, "--seed", seed)
        pictures.append(Path("views.png").read_bytes())

    assert pictures[0] == pictures[1] != pictures[2]


def test_settings_reach_the_views() -> None:
    name = image_file()
    written = []
    Path("run.toml").write_text("[augmentation]\ngrayscale = 1.0\n", encoding="utf-8")
    for arguments in (
        [],
        ["--set", "augmentation.crop_scale=0.05,0.1"],
        ["--preset", "cifar10"],
        ["--views", "pairwise"],
        ["--config", "run.toml"],
        ["--size", "96"],
    ):
        draw(name, *arguments)
        written.append(Path("views.png").read_bytes())

    assert len(set(written)) == len(written)


def refusal(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, LeoclrError), result.output
    message = str(result.exception)
    assert "\n" not in message
    assert not Path("views.png").exists()
    return message


def test_missing_file_is_named() -> None:
    assert refusal(image_file(), "nope.jpg") == "nope.jpg: no such file or folder"


def test_file_that_is_no_image_is_named() -> None:
    Path("page.jpg").write_text("<html>", encoding="utf-8")

    assert refusal("page.jpg").startswith("page.jpg: the image cannot be decoded (")


def test_unknown_suffix_is_named() -> None:
    Path("notes.txt").write_text("x", encoding="utf-8")

    assert refusal("notes.txt").startswith("notes.txt: neither an image by its name (")


def test_folder_without_shards_is_named(folder: Path) -> None:
    assert str(folder) in refusal(str(folder))


def test_missing_shards_are_all_named() -> None:
    shard_file("photos-000001.tar", 1)
    message = refusal("photos-{000000..000002}.tar")

    assert "photos-000000.tar" in message
    assert "photos-000002.tar" in message


def test_commands_are_refused_and_not_run(folder: Path) -> None:
    assert "refused" in refusal("pipe:touch ran")
    assert "refused" in refusal("pipe:touch ran; cat x.tar")
    assert not (folder / "ran").exists()


def test_too_many_rows_are_refused() -> None:
    assert "64 rows" in refusal(image_file("a.png"), image_file("b.png"), "--draws", "40")


def test_output_must_be_png() -> None:
    assert "ends in .png" in refusal(image_file(), "-o", "views.jpg")


def test_unknown_setting_and_policy_are_refused() -> None:
    assert "augmentation.flip" in refusal(image_file(), "--set", "augmentation.flipp=1")
    assert "pairwise" in refusal(image_file(), "--views", "pairwize")


def test_failed_write_leaves_the_old_picture(folder: Path) -> None:
    name = image_file()
    (folder / "taken").write_bytes(b"a file, not a folder")

    assert refusal(name, "-o", "taken/views.png").startswith("taken/views.png: cannot be written (")
    assert (folder / "taken").read_bytes() == b"a file, not a folder"
