"""What may stand behind --data, what is refused there, and that wrong data are found before they are used."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from leoclr.datasets.errors import DataError
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.locate import absolute, check_specs, expand_braces, open_data, shard_paths, sibling_split
from leoclr.datasets.shards.scan import build_index


@pytest.fixture
def data(make_shards: Callable[..., Path]) -> Path:
    """A folder of three shards of 3, 2 and 4 samples, without an index."""
    return make_shards((3, 2, 4))


def names(index: Index) -> list[str]:
    return [Path(shard.path).name for shard in index.shards]


def refused(*specs: str | Path) -> str:
    with pytest.raises(DataError) as caught:
        open_data([str(spec) for spec in specs])
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What is accepted


@pytest.mark.parametrize(
    ("spec", "shards"),
    [
        ("", "012"),
        ("/data-{000000..000002}.tar", "012"),
        ("/data-<000000..000002>.tar", "012"),
        ("/data-{000001..000002}.tar", "12"),
        ("/data-00000{2,0}.tar", "20"),
        ("/data-00000{0..2}.tar", "012"),
        ("/data-*.tar", "012"),
        ("/*", "012"),
        ("/data-00000[02].tar", "02"),
        ("/data-000001.tar", "1"),
    ],
)
@pytest.mark.parametrize("indexed", [False, True], ids=["without index", "indexed"])
def test_ways_to_name_shards(spec: str, shards: str, indexed: bool, data: Path) -> None:
    if indexed:
        build_index(sorted(data.glob("*.tar"))).save(data / "data.index.json")
    index = open_data([f"{data}{spec}"])
    assert names(index) == [f"data-00000{number}.tar" for number in shards]
    assert len(index) == sum({"0": 3, "1": 2, "2": 4}[number] for number in shards)


def test_an_index_file(data: Path) -> None:
    build_index(sorted(data.glob("*.tar"))[:2]).save(data / "part.index.json")
    assert names(open_data([str(data / "part.index.json")])) == ["data-000000.tar", "data-000001.tar"]


def test_several_are_taken_in_their_order(data: Path, make_shards: Callable[..., Path]) -> None:
    other = make_shards((1, 1), name="other")
    build_index(sorted(other.glob("*.tar"))).save(other / "other.index.json")
    index = open_data([str(data / "data-000002.tar"), str(other / "other.index.json"), str(data / "data-000000.tar")])
    assert names(index) == ["data-000002.tar", "other-000000.tar", "other-000001.tar", "data-000000.tar"]
    assert index.shard.tolist() == [0] * 4 + [1, 2] + [3] * 3


def test_a_range_that_the_shell_expanded_is_the_same_data(data: Path) -> None:
    together = open_data([f"{data}/data-{{000000..000002}}.tar"])
    apart = open_data([str(path) for path in sorted(data.glob("*.tar"))])
    assert apart.digest == together.digest


def test_a_thousand_arguments_read_one_index(data: Path) -> None:
    shard = (data / "data-000000.tar").read_bytes()
    for number in range(1_000):
        (data / f"many-{number:03d}.tar").write_bytes(shard)
    paths = sorted(data.glob("many-*.tar"))
    build_index(paths, checksum=False).save(data / "many.index.json")
    start = time.process_time()
    assert len(open_data([str(path) for path in paths])) == 3_000
    assert time.process_time() - start < 5  # reading the index once an argument would take a minute


def test_a_folder_of_splits_means_its_training_split(make_shards: Callable[..., Path]) -> None:
    train, val = make_shards((3,), name="out/train"), make_shards((2,), name="out/val")
    assert names(open_data([str(train.parent)])) == ["train-000000.tar"]
    assert sibling_split([str(train.parent)]) == (str(val),)
    assert sibling_split([str(train)]) == sibling_split([str(train / "*.tar")]) == (str(val),)
    assert sibling_split([str(train / "train-{000000..000000}.tar")]) == (str(val),)


def test_the_held_out_split_is_val_else_test(make_shards: Callable[..., Path], tmp_path: Path) -> None:
    train = make_shards((1,), name="out/train")
    assert sibling_split([str(train)]) == ()
    test = make_shards((1,), name="out/test")
    assert sibling_split([str(train)]) == (str(test),)
    (tmp_path / "out" / "val").mkdir()  # without shards
    assert sibling_split([str(train)]) == (str(test),)
    assert sibling_split([str(test)]) == ()


@pytest.mark.parametrize("name", ["with space", "h#1", "what?", "50%", "größe 日本", "a[0]", "semi;colon", "x" * 150])
def test_odd_names_of_files_and_folders(name: str, data: Path) -> None:
    folder = data.rename(data.with_name(name))
    (folder / "data-000000.tar").rename(folder / f"{name}.tar")
    assert names(open_data([str(folder / f"{name}.tar")])) == [f"{name}.tar"]
    assert len(open_data([str(folder)])) == 9


def test_hidden_files_are_no_shards(data: Path) -> None:
    (data / "._data-000000.tar").write_bytes(b"left by another system")
    assert len(open_data([str(data)])) == 9


# Indexes that are made


def test_an_index_is_made_once_and_kept(data: Path) -> None:
    seen: list[int] = []
    first = open_data([str(data)], advance=seen.append)
    assert len(seen) == 3 and (data / "data.index.json").is_file()
    again = open_data([str(data)], advance=seen.append)
    assert len(seen) == 3 and again.digest == first.digest


def test_where_no_index_can_be_written_one_is_made_each_time(data: Path) -> None:
    (data / "data.index.safetensors").mkdir()  # writing the index fails, also for root
    assert len(open_data([str(data)])) == 9
    assert not (data / "data.index.json").exists()
    assert not [path for path in data.iterdir() if path.name.endswith(".tmp")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only(data: Path) -> None:
    data.chmod(0o555)
    try:
        assert len(open_data([str(data)])) == 9
    finally:
        data.chmod(0o755)


def test_a_shard_of_the_same_size_with_other_labels_is_refused(make_shards: Callable[..., Path]) -> None:
    data, other = make_shards((4,), name="a/data", classes=4), make_shards((4,), name="b/data", classes=2)
    (shard,) = data.glob("*.tar")
    assert open_data([str(data)]).label.tolist() == [0, 1, 2, 3]
    content = (other / shard.name).read_bytes()
    assert len(content) == shard.stat().st_size
    (index_path,) = data.glob("*.index.json")
    later = index_path.stat().st_mtime_ns + 10**9
    shard.write_bytes(shard.read_bytes())
    os.utime(shard, ns=(later, later))
    assert open_data([str(data)]).label.tolist() == [0, 1, 2, 3]  # written anew as it was, which is noted
    shard.write_bytes(content)
    later = index_path.stat().st_mtime_ns + 10**9
    os.utime(shard, ns=(later, later))
    with pytest.raises(DataError, match="holds other samples than its index lists"):
        open_data([str(data)])


def test_indexes_beside_each_other_are_put_together_or_a_shard_without_one_is_refused(data: Path) -> None:
    shards = sorted(data.glob("*.tar"))
    build_index(shards[:1], ("a", "b", "c", "d")).save(data / "one.index.json")
    with pytest.raises(DataError, match=r"its indexes list 1 of these 3 shards, and not data-000001\.tar"):
        open_data([str(data)])  # a new index would lose the names, and mix the numbers of other classes
    build_index(shards[1:], ("a", "b", "c", "d")).save(data / "two.index.json")
    index = open_data([str(data)])
    assert len(index) == 9 and index.classes == ("a", "b", "c", "d") and index.crc.all()
    build_index(shards[1:], ("e", "f", "g", "h")).save(data / "two.index.json")
    index = open_data([str(data)])
    assert index.classes == tuple("abcdefgh") and {index.class_name(label) for label in index.label[4:]} <= set("efgh")


def test_an_index_of_other_shards_is_left_alone(data: Path) -> None:
    build_index([data / "data-000001.tar"]).save(data / "data.index.json")
    before = (data / "data.index.json").read_bytes()
    assert len(open_data([str(data)])) == 9
    assert (data / "data.index.json").read_bytes() == before


# What is refused


@pytest.mark.parametrize(
    "spec",
    [
        "pipe:touch {marker}",
        "pipe:cat x.tar",
        "x.tar::pipe:touch {marker}",
        "{{x.tar,pipe:touch {marker}}}",
        "${{X}}/x.tar",
        "x-{{0..2}}.tar::y.tar",
        "pipe:touch {marker}; x.index.json",
        "pipe:touch {marker} {{000..003}}.tar",
    ],
)
def test_commands_are_refused_and_not_run(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    marker = tmp_path / "marker"
    monkeypatch.setenv("WDS_X", f"pipe:touch {marker}")
    spec = spec.format(marker=marker)
    assert "is refused: data is named by files, and nothing is run" in refused(spec)
    with pytest.raises(DataError):
        check_specs([spec])
    assert not marker.exists()


def test_a_command_in_an_index_file_is_only_a_name(data: Path) -> None:
    open_data([str(data)])
    path = data / "data.index.json"
    path.write_text(path.read_text().replace("data-000001.tar", "pipe:touch marker"))
    with pytest.raises(DataError, match="missing.*pipe:touch marker"):
        open_data([str(path)])
    assert not (data / "marker").exists() and not Path("marker").exists()


@pytest.mark.parametrize("spec", ["ftp://host/x.tar", "hf://owner/name/x.tar", "gs://bucket/x.tar"])
def test_other_addresses_are_refused(spec: str) -> None:
    assert spec in refused(spec)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("a-{0..99999999999}.tar", "must go up, by less than 1,000,000"),
        ("a-{0..999}-{0..999}-{0..999}.tar", "more than 1,000,000 shards"),
        ("a-{" + "0" * 5000 + ".." + "9" * 5000 + "}.tar", "neither a range"),
        ("a-{3..1}.tar", "must go up"),
        ("a-{0..2.tar", "not balanced"),
        ("a-0..2}.tar", "not balanced"),
        ("a-{{0..2},x}.tar", "nested"),
        ("a-{x}.tar", "neither a range such as {000..999} nor alternatives"),
        ("a-{0..10..5}.tar", "neither a range"),
        ("a-{}.tar", "neither a range"),
        ("a-{-1..3}.tar", "neither a range"),
    ],
)
def test_ranges_that_cannot_be_meant_are_refused_at_once(pattern: str, message: str) -> None:
    start = time.process_time()
    with pytest.raises(DataError) as caught:
        check_specs([pattern])
    assert message in str(caught.value)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("pattern", "first", "last", "count"),
    [
        ("i-{000..999}.tar", "i-000.tar", "i-999.tar", 1000),
        ("i-<000..999>.tar", "i-000.tar", "i-999.tar", 1000),
        ("i-{8..11}.tar", "i-8.tar", "i-11.tar", 4),
        ("i-{08..11}.tar", "i-08.tar", "i-11.tar", 4),
        ("{a,b}/{0..1}.tar", "a/0.tar", "b/1.tar", 4),
        ("plain.tar", "plain.tar", "plain.tar", 1),
        ("a<b>.tar", "a<b>.tar", "a<b>.tar", 1),
    ],
)
def test_braces(pattern: str, first: str, last: str, count: int) -> None:
    expanded = expand_braces(pattern)
    assert (expanded[0], expanded[-1], len(expanded)) == (first, last, count)


def test_all_missing_shards_are_named_at_once(data: Path) -> None:
    (data / "data-000001.tar").unlink()
    shutil.copy(data / "data-000000.tar", data / "data-000005.tar")
    message = refused(f"{data}/data-{{000000..000005}}.tar")
    assert "3 of 6 shards are missing" in message
    for number in (1, 3, 4):
        assert f"data-00000{number}.tar" in message
    expanded = [f"{data}/data-00000{number}.tar" for number in range(6)]
    assert refused(*expanded) == message  # the same when the shell has expanded the range
    assert "980 more" in refused(f"{data}/none-{{000..999}}.tar")
    assert not list(data.glob("*.index.json"))  # nothing was opened before all were there


def test_nothing_there_is_said_plainly(data: Path, tmp_path: Path) -> None:
    assert "no data was named" in refused()
    assert "no file matches" in refused(tmp_path / "none-*.tar")
    assert "none.tar: no such file or folder" in refused(tmp_path / "none.tar")
    (tmp_path / "empty").mkdir()
    assert "holds no .tar shards; pack images with `leoclr shard" in refused(tmp_path / "empty")


@pytest.mark.parametrize("images", [("data-000001/1.JPEG",), ("train/cat/1.png",), ("cat/1.png", "dog/2.png")])
def test_tars_beside_folders_of_images_are_asked_about_unless_an_index_lists_them(
    images: tuple[str, ...], data: Path
) -> None:
    for image in images:
        (data / image).parent.mkdir(parents=True)
        (data / image).touch()
    line = refused(data)
    assert f"holds both tars (data-000000.tar) and folders of images ({images[0].partition('/')[0]})" in line
    assert not list(data.glob("*.json"))  # nothing was written into it
    assert len(open_data([f"{data}/*.tar"])) == 9
    assert len(open_data([str(data)])) == 9  # by the index that this made


def test_shards_without_images_are_said_to_be_so(make_shards: Callable[..., Path]) -> None:
    assert "the shards hold no images" in refused(make_shards((0, 0)))


@pytest.mark.parametrize("indexed", [False, True], ids=["without index", "indexed"])
def test_a_shard_named_twice_is_refused(indexed: bool, data: Path) -> None:
    if indexed:
        open_data([str(data)])
    before = set(data.iterdir())
    assert "data-000001.tar is named twice" in refused(data, data / "data-000001.tar")
    assert "is named twice" in refused(data, data / ".." / data.name)
    assert "is named twice" in refused(f"{data}/data-00000{{1,1}}.tar")
    (data / "link.tar").symlink_to(data / "data-000002.tar")
    assert "is named twice" in refused(data)
    assert set(data.iterdir()) - before == {data / "link.tar"}  # no index with double samples was left behind


def test_a_shard_twice_by_its_index_is_refused(data: Path) -> None:
    open_data([str(data)])
    assert "is named twice" in refused(data / "data.index.json", data / "data-000001.tar")


@pytest.mark.parametrize(("change", "how"), [(-512, "truncated or replaced"), (512, "replaced")])
def test_a_shard_of_another_size_than_indexed_is_refused(change: int, how: str, data: Path) -> None:
    open_data([str(data)])
    shard = data / "data-000001.tar"
    os.truncate(shard, shard.stat().st_size + change)
    message = refused(data)
    assert "data-000001.tar has" in message and f"it was {how}" in message


def test_a_shard_that_has_gone_since_it_was_indexed_is_missed(data: Path) -> None:
    open_data([str(data)])
    (data / "data-000002.tar").unlink()
    assert "1 of 3 shards are missing" in refused(data / "data.index.json")


def test_a_damaged_index_is_named_and_not_passed_over(data: Path) -> None:
    open_data([str(data)])
    (data / "data.index.json").write_text("{}")
    assert "data.index.json: not an index" in refused(data)


def test_names_alone_open_nothing(data: Path) -> None:
    (data / "data-000000.tar").write_bytes(b"not a tar")
    check_specs([str(data)])
    assert [path.name for path in shard_paths(str(data))] == [f"data-00000{number}.tar" for number in range(3)]
    assert not list(data.glob("*.index.json"))


def test_names_hold_in_any_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    specs = ("x.tar", "{/data/a,/data/b}/x-{000..999}.tar", "s3://bucket/x.tar", "/data/x.tar")
    assert absolute(specs) == (f"{tmp_path}/x.tar", *specs[1:])
