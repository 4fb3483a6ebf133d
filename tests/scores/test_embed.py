"""`leoclr embed`: every image's features, keys and labels, also when the work was interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pyarrow import parquet

from leoclr.backends.networks.backbones import build_backbone
from leoclr.cli.run.encoders import load_encoder
from leoclr.datasets.files import ignore
from leoclr.datasets.shards.locate import open_data
from leoclr.datasets.shards.reader import SampleReader
from leoclr.evals.features import pieces as feature_pieces
from leoclr.evals.features.extract import Features
from leoclr.evals.features.preprocessing import WholeImage

Run = Callable[..., tuple[int, str, str]]
MakeShards = Callable[..., Path]
SIZES = (20, 17, 4)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "weights.pth"
    torch.save(build_backbone("resnet18", "cifar", 8).state_dict(), path)
    return path


@pytest.fixture
def embed(command_line: Run, weights: Path) -> Run:
    return partial(command_line, "embed", weights, "--image-size", 16, "--workers", 0)


def expected_features(weights: Path, data: Path) -> NDArray[np.float32]:
    """One image at a time, without any of the machinery."""
    encoder = load_encoder(weights)
    index = open_data([str(data)])
    reader = SampleReader(index)
    rows = []
    for number in range(len(index)):
        pixels = torch.from_numpy(WholeImage(16)(reader.image(number), number).copy()).permute(2, 0, 1)[None] / 255
        mean, std = (torch.tensor(values)[None, :, None, None] for values in (encoder.mean, encoder.std))
        with torch.no_grad():
            rows.append(encoder.backbone((pixels - mean) / std)[0].numpy())
    return np.stack(rows)


def test_npy_has_a_row_for_each_image_in_the_order_of_the_index(
    embed: Run, make_shards: MakeShards, weights: Path, tmp_path: Path
) -> None:
    data = make_shards(SIZES)
    code, out, _ = embed("--data", data, "--batch-size", 8)
    assert code == 0 and "41 x 64 float32 in features.npy, features.keys.jsonl" in out
    found = np.load(tmp_path / "features.npy", mmap_mode="r")
    assert found.shape == (41, 64) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected_features(weights, data), atol=1e-4)
    rows = [json.loads(line) for line in (tmp_path / "features.keys.jsonl").read_text().splitlines()]
    assert [row["key"] for row in rows] == [f"{number:05d}" for number in range(41)]
    assert [row["label"] for row in rows] == [number % 4 for number in range(41)]
    assert not list(tmp_path.glob("*.parts")) and not list(tmp_path.glob(".*tmp"))


def test_the_record_names_weights_data_and_protocol(embed: Run, make_shards: MakeShards, weights: Path) -> None:
    data = make_shards(SIZES)
    code, out, _ = embed("--data", data, "--json")
    record = json.loads(out)
    assert code == 0 and record == json.loads(Path("features.npy.json").read_text())
    assert record["checkpoint"]["digest"] == load_encoder(weights).digest
    assert record["data"]["digest"] == open_data([str(data)]).digest
    assert record["rows"] == 41 and "16 x 16" in " ".join(record["protocol"]) and "float32 on cpu" in out


def test_parquet_holds_the_same(embed: Run, make_shards: MakeShards, tmp_path: Path) -> None:
    data = make_shards(SIZES)
    assert embed("--data", data)[0] == 0
    assert embed("--data", data, "-o", "features.parquet")[0] == 0
    table = parquet.read_table(tmp_path / "features.parquet")
    assert table.column_names == ["key", "label", "class", "features"]
    assert np.array_equal(np.stack(table["features"].to_numpy()), np.load(tmp_path / "features.npy"))
    assert table["label"].to_pylist() == [number % 4 for number in range(41)]


def test_without_labels_and_with_bad_images(embed: Run, make_shards: MakeShards, tmp_path: Path) -> None:
    data = make_shards((1500,), labelled=False, bad=(7,))
    code, _, err = embed("--data", data, "-o", "some.parquet")
    assert code == 0 and "1 of 1,500 images left out, 00007 in" in err
    table = parquet.read_table(tmp_path / "some.parquet")
    assert table.num_rows == 1499 and "00007" not in table["key"].to_pylist()
    assert table["label"].null_count == table["class"].null_count == 1499
    record = json.loads((tmp_path / "some.parquet.json").read_text())
    assert record["skipped"] == 1 and "00007" in record["skipped_images"][0]


def test_too_many_bad_images_are_one_line(embed: Run, make_shards: MakeShards) -> None:
    code, out, err = embed("--data", make_shards((40,), bad=(3, 9)), "--batch-size", 4)
    assert code == 2 and not out and "cannot be decoded" in err and err.count("\n") == 1


def test_a_piece_of_bad_images_alone_is_as_good_as_another(embed: Run, make_shards: MakeShards) -> None:
    data = make_shards((1025,), bad=(1024,))  # the last of batches of 256 is this one
    code, _, err = embed("--data", data, "--batch-size", 256)
    assert code == 0 and "1 of 1,025 images left out" in err


def test_interrupted_work_is_taken_up_to_the_same_bytes(
    embed: Run, make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_shards((100,))
    assert embed("--data", data, "-o", "whole.npy", "--batch-size", 4)[0] == 0

    write, pieces = feature_pieces.PieceFolder.add, 0

    def killed(self: feature_pieces.PieceFolder, features: Features, stop: int) -> None:
        nonlocal pieces
        write(self, features, stop)
        pieces += 1
        if pieces == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(feature_pieces.PieceFolder, "add", killed)
        code, _, err = embed("--data", data, "-o", "parts.npy", "--batch-size", 4)
    assert code == 130 and "48 images done" in err and not (tmp_path / "parts.npy").exists()

    code, _, err = embed("--data", data, "-o", "parts.npy", "--batch-size", 4)
    assert code == 0 and "48 of 100 images are done already" in err
    assert (tmp_path / "parts.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    keys = [(tmp_path / f"{name}.keys.jsonl").read_bytes() for name in ("parts", "whole")]
    assert keys[0] == keys[1]


def test_what_is_there_already_is_not_computed_again(
    embed: Run, make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_shards((10,))
    assert embed("--data", data)[0] == 0
    with monkeypatch.context() as patched:
        patched.setattr(feature_pieces, "extract_pieces", None)
        patched.setattr("leoclr.cli.scoring.embedding.extract_pieces", None)
        code, out, err = embed("--data", data)
    assert code == 0 and "there already" in err and "10 x 64" in out
    assert embed("--data", make_shards((11,), name="other"), "--json")[1].count('"rows": 11') == 1


def test_unfinished_pieces_of_other_data_are_refused(embed: Run, make_shards: MakeShards, tmp_path: Path) -> None:
    plan: dict[str, Any] = {"format": 1, "data": "other"}
    folder = feature_pieces.PieceFolder(tmp_path / "features.npy.parts", plan)
    folder.add(Features(np.zeros((1, 2), np.float32), np.zeros(1, np.int64), np.zeros(1, np.int64)), 1)
    code, _, err = embed("--data", make_shards((10,)))
    assert code == 2 and "features.npy.parts holds unfinished features of another encoder" in err


def test_a_damaged_piece_is_computed_again(make_shards: MakeShards, tmp_path: Path) -> None:
    index = open_data([str(make_shards((12,)))])
    calls: list[int] = []

    def extract(part: Any, share: float) -> Features:
        calls.append(len(part))
        keys = np.array([[float(part.key(number))] for number in range(len(part))], np.float32)
        return Features(keys, part.label, np.arange(len(part)))

    def work() -> NDArray[np.float32]:
        folder = feature_pieces.PieceFolder(tmp_path / "parts", {})
        feature_pieces.extract_pieces(folder, index, extract, batch_size=2, dimension=1, piece_bytes=16)
        return np.concatenate([piece.features for piece in folder.read(index)])

    assert work()[:, 0].tolist() == list(range(12)) and calls == [4, 4, 4]
    damaged = tmp_path / "parts" / "000000000004-000000000008.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:40])
    assert work()[:, 0].tolist() == list(range(12)) and calls == [4, 4, 4, 4, 4]


def test_a_wrong_name_and_a_missing_library(
    embed: Run, make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_shards((4,))
    code, _, err = embed("--data", data, "-o", "features.csv")
    assert code == 2 and ".npy or .parquet" in err and err.count("\n") == 1
    monkeypatch.setattr("leoclr.evals.features.files.find_spec", ignore)
    code, _, err = embed("--data", data, "-o", "features.parquet")
    assert code == 2 and "pip install 'leoclr-cli[parquet]'" in err


def test_weights_without_a_run_need_data(embed: Run) -> None:
    code, _, err = embed()
    assert code == 2 and "--data" in err
