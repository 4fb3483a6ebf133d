"""`leoclr eval robustness` for several encoders, and as a curve over the share of the area."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from leoclr.backends.networks.backbones import build_backbone
from leoclr.cli.scoring.robustness_comparison import _names
from leoclr.evals.robustness import CURVE_SHARES

Run = Callable[..., tuple[int, str, str]]
SIZE = 16


@pytest.fixture
def encoders(tmp_path: Path) -> list[Path]:
    """Two encoders with different random weights."""
    paths = []
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        paths.append(tmp_path / f"{name}.pth")
        torch.save(build_backbone("resnet18", "cifar", 8).state_dict(), paths[-1])
    return paths


@pytest.fixture
def robustness(command_line: Run, make_shards: Callable[..., Path]) -> Run:
    """`leoclr eval robustness ...` on 60 training and 40 test images."""
    train, test = make_shards((60,), name="train"), make_shards((40,), name="test")
    common = ["--train-data", train, "--data", test, "--image-size", SIZE, "--probe", "knn", "--workers", 0]
    return lambda *arguments: command_line("eval", "robustness", *arguments, *common)


def results(record: dict[str, Any]) -> dict[str, dict[str, float]]:
    return dict(record["results"])


def test_several_encoders_stand_in_one_table_and_one_picture(
    robustness: Run, encoders: list[Path], tmp_path: Path
) -> None:
    code, out, err = robustness(*encoders, "--crop-seeds", 3)
    assert code == 0, err
    together = json.loads((tmp_path / "robustness.json").read_text())
    assert list(together["scores"]) == ["first.pth", "second.pth"] and together["notes"] == []
    for path, (name, record) in zip(encoders, together["scores"].items(), strict=True):
        alone = tmp_path / f"{path.stem}.json"
        assert robustness(path, "--crop-seeds", 3, "-o", alone)[0] == 0
        assert results(json.loads(alone.read_text())) == results(record)
        found = results(record)
        assert found.keys() == {"centre", "random", "drop"}
        assert f"{name}, drop" in out and f"{100 * found['random']['top1']:.2f} +/- " in out
    digests = {record["checkpoint"]["digest"] for record in together["scores"].values()}
    assert len(digests) == 2
    with Image.open(tmp_path / "robustness.png") as picture:
        assert picture.width > 1000
    assert not (tmp_path / "robustness-curve.png").exists()


def test_the_curve_has_every_share_and_ends_at_the_whole_image(
    robustness: Run, encoders: list[Path], tmp_path: Path
) -> None:
    code, out, err = robustness(*encoders, "--curve", "--crop-seeds", 2, "-o", "out/table7.json", "--json")
    assert code == 0, err
    assert json.loads(out) == json.loads((tmp_path / "out" / "table7.json").read_text())
    for record in json.loads(out)["scores"].values():
        found = results(record)
        assert found.keys() == {"centre", "random", "drop", *(f"part_{share:g}" for share in CURVE_SHARES)}
        assert all("top1_half_width" in found[f"part_{share:g}"] for share in CURVE_SHARES[:-1])
        assert "top1_half_width" not in found["part_1"]
        assert "random square of 5 px cut out" in " ".join(record["protocol"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "table7.json",
        "table7.png",
        "table7-curve.png",
    }


def test_one_encoder_may_have_a_curve(robustness: Run, encoders: list[Path], tmp_path: Path) -> None:
    code, out, _ = robustness(encoders[0], "--curve", "--crop-seeds", 1, "-o", "one.json")
    assert code == 0 and "square part, 25.0% of the area" in out
    assert (tmp_path / "one.png").exists()


def test_a_missing_encoder_is_one_line_and_leaves_no_table(
    robustness: Run, encoders: list[Path], tmp_path: Path
) -> None:
    code, out, err = robustness(*encoders, tmp_path / "missing.pth")
    assert code == 2 and not out and "missing.pth: no such run, checkpoint or file" in err
    assert not (tmp_path / "robustness.json").exists()


def test_names_tell_encoders_apart() -> None:
    assert _names([Path("/a/first"), Path("/a/second")]) == ["first", "second"]
    assert _names([Path("/a/run"), Path("/b/run")]) == ["a/run", "b/run"]
    assert _names([Path("/a/run")] * 2) == ["1: /a/run", "2: /a/run"]
