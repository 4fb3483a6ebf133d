"""Images in, shards out: what is written, that webdataset reads it, and that nothing half-written remains."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from leoclr.datasets.errors import BadImage, DataError, RunError
from leoclr.datasets.images.decode import decode_image
from leoclr.datasets.packing.arrangement import arrange
from leoclr.datasets.packing.encoding import Encoding
from leoclr.datasets.packing.pack import PackedSplit, PackingRecipe, pack
from leoclr.datasets.packing.sources import open_source
from leoclr.datasets.packing.staging import staged
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.locate import open_data
from leoclr.datasets.shards.reader import SampleReader
from leoclr.datasets.threads import ordered_map


def encoded(seed: int = 0, width: int = 24, height: int = 16, format: str = "PNG", **options: Any) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, format, **options)
    return data.getvalue()


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def labelled(classes: int = 3, images: int = 7) -> dict[str, bytes]:
    return {f"class{c}/{n}.png": encoded(100 * c + n) for c in range(classes) for n in range(images)}


def pack_folder(folder: Path, out: Path, recipe: PackingRecipe, overwrite: bool = False) -> list[PackedSplit]:
    with staged(out, recipe.name, ("train", "val"), overwrite) as staging:
        with open_source(str(folder), staging) as source:
            return pack(source, arrange(source), staging, recipe)


def files_below(folder: Path) -> dict[str, str]:
    """SHA-256 of every file by its name."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_back(out: Path) -> dict[str, dict[str, bytes]]:
    """All samples by key, as webdataset sees them."""
    urls = [str(path) for path in sorted(out.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    found = {sample["__key__"]: {k: v for k, v in sample.items() if not k.startswith("__")} for sample in samples}
    assert len(found) == len(samples)
    return found


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves its shards open
def test_webdataset_reads_what_is_written(tmp_path: Path) -> None:
    files = labelled()
    files["class1/0.json"] = b'{"caption": "first"}'
    files["class1/0.txt"] = b"first"
    files["class2/gr\u00f6\u00dfe \u65e5\u672c.png"] = encoded(1)
    files["class2/" + "long" * 40 + ".png"] = encoded(2)
    files["class2/v1.0.png"] = encoded(3)
    files["class2/v1.1.png"] = encoded(4)
    pack_folder(write_files(tmp_path / "in", files), tmp_path / "out", PackingRecipe("x", shard_bytes=20_000))
    assert len(list((tmp_path / "out").glob("*.tar"))) > 2
    expected: dict[str, dict[str, bytes]] = {}
    for name, data in files.items():
        if name.endswith(".png"):
            key = name.removesuffix(".png").replace(".", "_")
            expected[key] = {"png": data, "cls": name[5].encode()}
    expected["class1/0"] |= {"json": b'{"caption": "first"}', "txt": b"first"}
    expected["class2/v1_0"]["json"] = b'{"path": "class2/v1.0.png"}'
    expected["class2/v1_1"]["json"] = b'{"path": "class2/v1.1.png"}'
    assert read_back(tmp_path / "out") == expected


def test_the_index_is_exact(tmp_path: Path) -> None:
    files = labelled()
    out = tmp_path / "out"
    (report,) = pack_folder(write_files(tmp_path / "in", files), out, PackingRecipe("x", shard_bytes=9_000))
    index = Index.load(out / "x.index.json")
    assert index.classes == report.classes == ("class0", "class1", "class2")
    assert (len(index), len(index.shards), sum(s.bytes for s in index.shards)) == (
        report.images,
        report.shards,
        report.bytes,
    )
    for shard in index.shards:
        data = Path(shard.path).read_bytes()
        assert (shard.bytes, shard.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    reader = SampleReader(index)
    for number in range(len(index)):
        assert reader.read(number) == files[f"{index.key(number)}.png"]
        assert f"class{index.label[number]}/" in index.key(number)
    reader.close()
    assert sorted(index.keys()) == sorted(name.removesuffix(".png") for name in files)


def test_equal_input_and_seed_give_equal_bytes(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "in", {f"train/{name}": data for name, data in labelled().items()})
    encoding = Encoding(shortest_side=8, format="webp")
    for name, recipe in {
        "one": PackingRecipe("x", shard_bytes=9_000, encoding=encoding, workers=1),
        "four": PackingRecipe("x", shard_bytes=9_000, encoding=encoding, workers=4),
        "other": PackingRecipe("x", shard_bytes=9_000, encoding=encoding, seed=1),
    }.items():
        pack_folder(folder, tmp_path / name, recipe)
    assert len(files_below(tmp_path / "one")) > 4
    assert files_below(tmp_path / "one") == files_below(tmp_path / "four")
    assert files_below(tmp_path / "one") != files_below(tmp_path / "other")


def test_the_order_of_the_images_is_shuffled(tmp_path: Path) -> None:
    pack_folder(write_files(tmp_path / "in", labelled(2, 20)), tmp_path / "out", PackingRecipe("x"))
    labels = Index.load(tmp_path / "out" / "x.index.json").label
    assert 5 < np.count_nonzero(np.diff(labels)) < 35  # in sorted order it would be 1


def test_shards_keep_to_their_size(tmp_path: Path) -> None:
    files = labelled(3, 10) | {"class0/large.png": encoded(1, 100, 100)}
    pack_folder(write_files(tmp_path / "in", files), tmp_path / "out", PackingRecipe("x", shard_bytes=8_000))
    index = Index.load(tmp_path / "out" / "x.index.json")
    large = next(n for n in range(len(index)) if index.key(n) == "class0/large")
    for number, shard in enumerate(index.shards):
        if number == index.shard[large]:
            assert shard.samples == 1
        else:
            assert shard.samples > 1 or number == len(index.shards) - 1 or number + 1 == index.shard[large]
            assert int((index.offset + index.length)[index.shard == number].max()) <= 8_000


def test_splits_go_to_folders_of_their_own(tmp_path: Path) -> None:
    files = {f"train/{name}": data for name, data in labelled(2, 4).items()}
    files |= {"val/class1/9.png": encoded(9), "unlabeled/0.png": encoded(10)}
    reports = pack_folder(write_files(tmp_path / "in", files), tmp_path / "out", PackingRecipe("x"))
    assert [(report.split, report.images, report.classes) for report in reports] == [
        ("train", 8, ("class0", "class1")),
        ("val", 1, ("class0", "class1")),
        ("unlabeled", 1, ()),
    ]
    assert open_data([str(tmp_path / "out")]).digest == open_data([str(tmp_path / "out" / "train")]).digest
    assert open_data([str(tmp_path / "out" / "val")]).label.tolist() == [1]
    assert not open_data([str(tmp_path / "out" / "unlabeled")]).labelled


def test_unreadable_images_are_counted_named_and_left_out(tmp_path: Path) -> None:
    files = {"a.png": encoded(0), "b.png": encoded(1)[:200], "c.jpg": b"<html>", "d.png": b"", "e.png": encoded(2)}
    folder = write_files(tmp_path / "in", files)
    (folder / "gone.png").symlink_to("nowhere.png")
    (report,) = pack_folder(folder, tmp_path / "out", PackingRecipe("x", max_bad=4, workers=2))
    assert report.images == 2
    assert sorted(line.split(":")[0] for line in report.skipped) == ["b.png", "c.jpg", "d.png", "gone.png"]
    assert sorted(Index.load(tmp_path / "out" / "x.index.json").keys()) == ["a", "e"]
    with pytest.raises(DataError, match="more than 3 images cannot be read .*--max-bad"):
        pack_folder(folder, tmp_path / "strict", PackingRecipe("x", max_bad=3))
    assert not (tmp_path / "strict").exists()


def test_nothing_readable_is_refused(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "in", {"a.png": b"no", "b.png": b"image"})
    with pytest.raises(DataError, match="none of the 2 images can be read; the first: .*png: "):
        pack_folder(folder, tmp_path / "out", PackingRecipe("x"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_interruption_leaves_nothing(overwrite: bool, tmp_path: Path) -> None:
    folder, out = write_files(tmp_path / "in", labelled()), tmp_path / "out"
    if overwrite:
        pack_folder(folder, out, PackingRecipe("x"))
    before = files_below(tmp_path)

    def interrupt(count: int) -> None:
        if len(list(out.rglob("*.tar"))) > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), staged(out, "x", (), overwrite) as staging:
        with open_source(str(folder), staging) as source:
            pack(source, arrange(source), staging, PackingRecipe("x", shard_bytes=9_000, workers=2), interrupt)
    assert files_below(tmp_path) == before
    assert out.exists() is overwrite


def test_shards_that_are_there_stay_unless_told(tmp_path: Path) -> None:
    folder, out = write_files(tmp_path / "in", labelled()), tmp_path / "out"
    pack_folder(folder, out, PackingRecipe("x", shard_bytes=9_000))
    before = files_below(out)
    with pytest.raises(DataError, match=r"there are shards already \(x.index.json, .*--overwrite replaces"):
        pack_folder(folder, out, PackingRecipe("x"))
    (out / "other-000000.tar").write_bytes(b"precious")
    with pytest.raises(DataError, match=r"there are shards already \(other-000000.tar\); name another folder"):
        pack_folder(folder, out, PackingRecipe("x"), overwrite=True)
    (out / "other-000000.tar").unlink()
    assert files_below(out) == before
    pack_folder(folder, out, PackingRecipe("x", seed=1), overwrite=True)
    assert sorted(files_below(out)) == ["x-000000.tar", "x.index.json", "x.index.safetensors"]


def test_what_a_killed_process_left_is_removed_but_not_what_one_is_writing(tmp_path: Path) -> None:
    folder, out = write_files(tmp_path / "in", labelled()), tmp_path / "out"
    write_files(out / ".packing", {"train/x-000000.tar": b"half", "y": b"half"})
    pack_folder(folder, out, PackingRecipe("x"))
    assert not (out / ".packing").exists()
    with staged(tmp_path / "busy", "x", (), False):
        with pytest.raises(RunError, match="another process is packing here"):
            pack_folder(folder, tmp_path / "busy", PackingRecipe("x"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_leaves_nothing(small_disk: Path, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "in", {f"{n}.png": encoded(n, 100, 100) for n in range(12)})
    out = small_disk / "out"
    with pytest.raises(RunError, match=f"{out}: No space left on device; nothing was kept"):
        pack_folder(folder, out, PackingRecipe("x", shard_bytes=100_000))
    assert list(small_disk.iterdir()) == []


def test_a_full_disk_while_an_archive_is_unpacked(small_disk: Path, tmp_path: Path) -> None:
    write_files(tmp_path / "in", {f"{n}.png": encoded(n, 100, 100) for n in range(12)})
    archive = tmp_path / "in.tar.gz"
    subprocess.run(["tar", "czf", str(archive), "-C", str(tmp_path), "in"], check=True)
    with pytest.raises(RunError, match="No space left on device"):
        pack_folder(archive, small_disk / "out", PackingRecipe("x"))
    assert list(small_disk.iterdir()) == []


def test_images_keep_their_bytes_unless_asked() -> None:
    for suffix, data in {"png": encoded(), "jpg": encoded(format="JPEG"), "webp": encoded(format="WEBP")}.items():
        assert Encoding().apply(data, suffix)[:2] == (data, suffix)
        assert Encoding(shortest_side=16).apply(data, suffix)[:2] == (data, suffix)  # 24 x 16: small enough
        assert Encoding(shortest_side=100).apply(data, suffix)[:2] == (data, suffix)  # never enlarged
    assert Encoding().apply(encoded(format="JPEG"), "jpeg")[1] == "jpg"


@pytest.mark.parametrize(
    ("suffix", "format", "stored"),
    [("jpg", "JPEG", "JPEG"), ("png", "PNG", "PNG"), ("webp", "WEBP", "WEBP"), ("bmp", "BMP", "PNG")],
)
def test_shrinking_keeps_the_shape_and_the_format(suffix: str, format: str, stored: str) -> None:
    data, suffix, _ = Encoding(shortest_side=8).apply(encoded(0, 31, 16, format), suffix)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.size, image.format) == ((16, 8), stored)
    assert suffix == {"JPEG": "jpg"}.get(stored, stored.lower())


def test_a_shrunk_png_is_stored_without_loss() -> None:
    data, *_ = Encoding(shortest_side=8).apply(encoded(0, 32, 16), "png")
    expected = decode_image(encoded(0, 32, 16)).resize((16, 8), Image.Resampling.BICUBIC)
    assert decode_image(data).tobytes() == expected.tobytes()


def test_a_format_converts_the_others_and_quality_all() -> None:
    jpeg = encoded(format="JPEG", quality=95)
    assert Encoding(format="jpg").apply(jpeg, "jpg")[:2] == (jpeg, "jpg")
    smaller, suffix, _ = Encoding(format="jpg", quality=30).apply(jpeg, "jpg")
    assert suffix == "jpg" and len(smaller) < len(jpeg)
    webp, suffix, _ = Encoding(format="webp").apply(jpeg, "jpg")
    assert suffix == "webp" and webp[8:12] == b"WEBP"


def test_an_image_too_long_for_the_format_is_a_bad_image() -> None:
    with pytest.raises(BadImage, match="20000 x 1 pixels cannot be stored as webp"):
        Encoding(format="webp").apply(encoded(0, 20_000, 1), "png")


def test_orientation_is_applied_when_an_image_is_coded_again() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    data, *_ = Encoding(shortest_side=8).apply(encoded(0, 32, 16, "JPEG", exif=exif), "jpg")
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (8, 16)
        assert image.getexif().get(0x0112, 1) == 1


def test_ordered_map_keeps_order_and_does_not_run_ahead() -> None:
    started: list[int] = []

    def work(item: int) -> int:
        started.append(item)
        return item * item

    results = ordered_map(work, range(1000), workers=2)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert max(started) <= 3 + 4 * 2
    results.close()
    assert len(started) < 20
    assert list(ordered_map(work, range(50), workers=3)) == [number**2 for number in range(50)]


def test_the_index_names_no_temporary_place(tmp_path: Path) -> None:
    pack_folder(write_files(tmp_path / "in", labelled()), tmp_path / "out", PackingRecipe("x"))
    stored = json.loads((tmp_path / "out" / "x.index.json").read_text())
    assert [shard["name"] for shard in stored["shards"]] == ["x-000000.tar"]
    assert ".packing" not in json.dumps(stored)
