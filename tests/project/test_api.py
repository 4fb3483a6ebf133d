"""`leoclr.api`: its names, its cost, and the examples of docs/python.md, which are run."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import leoclr.api
from leoclr.api import LeoclrError, Settings, TrainResult, embed, load_encoder, train
from leoclr.api.encoder import Encoder
from leoclr.cli.config.fields import replaced
from leoclr.cli.run.encoders import load_encoder as load
from leoclr.datasets.errors import BadImage, CheckpointError, DataError, SettingsError
from leoclr.datasets.images.normalise import normalise
from leoclr.datasets.shards.locate import open_data
from leoclr.evals.features.extract import extract_features
from leoclr.evals.features.preprocessing import Preprocessing, standard_view

MakeShards = Callable[..., Path]
MakeSettings = Callable[..., Settings]
PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def test_the_names_are_these() -> None:
    assert leoclr.api.__all__ == ["LeoclrError", "Settings", "TrainResult", "embed", "load_encoder", "train"]
    signatures = {name: list(inspect.signature(getattr(leoclr.api, name)).parameters) for name in ("embed", "train")}
    assert signatures == {
        "embed": ["encoder", "images", "batch_size", "workers"],
        "train": ["settings", "output", "preset", "resume", "on_metrics", "stop"],
    }
    assert list(inspect.signature(load_encoder).parameters) == ["path", "backbone"]


def test_importing_it_imports_no_torch() -> None:
    script = "import leoclr.api, sys; assert not {'torch', 'numpy', 'PIL', 'typer'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_examples_run(make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_shards((16,), name="shards")
    Image.new("RGB", (40, 30), (200, 100, 50)).save("photo.png")
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    assert isinstance(names["encoder"], Encoder) and names["features"].shape == (16, 128)
    assert isinstance(names["result"], TrainResult) and (tmp_path / "runs" / "second" / "run.json").exists()
    assert not (tmp_path / "runs" / "third").exists()


@pytest.fixture
def run(make_shards: MakeShards, tiny_settings: MakeSettings, tmp_path: Path) -> Path:
    train(tiny_settings(make_shards((16,), bad=()), train__epochs="1"), tmp_path / "run")
    return tmp_path / "run"


def test_features_are_those_of_the_commands(run: Path, tmp_path: Path) -> None:
    loaded, encoder = load(run), load_encoder(run)
    assert (encoder.feature_dim, encoder.image_size, encoder.digest) == (128, 16, loaded.digest)
    assert not encoder.training and not any(parameter.requires_grad for parameter in encoder.parameters())
    index = open_data([str(tmp_path / "data")])
    view = standard_view(16)
    expected = extract_features(
        loaded.backbone, index, Preprocessing(view, loaded.mean, loaded.std), workers=0
    ).features
    assert np.array_equal(embed(encoder, tmp_path / "data", workers=0), expected)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    picture.save(tmp_path / "picture.png")
    pixels = torch.from_numpy(view(picture, 0).copy()).permute(2, 0, 1)[None]
    assert torch.equal(encoder.preprocess(picture)[None], normalise(pixels, loaded.mean, loaded.std))
    by_image, by_file = embed(encoder, [picture] * 3, batch_size=2), embed(encoder, tmp_path / "picture.png")
    with torch.no_grad():
        own = encoder(encoder.preprocess(picture)[None]).numpy()
    np.testing.assert_allclose(by_image, np.repeat(own, 3, axis=0), rtol=0, atol=1e-5)
    np.testing.assert_allclose(by_file, own, rtol=0, atol=1e-5)
    assert np.array_equal(embed(encoder, (picture for _ in range(3)), batch_size=2), by_image)  # type: ignore[arg-type]
    frozen = next(part for part in encoder.train().modules() if isinstance(part, torch.nn.BatchNorm2d)).eval()
    embed(encoder, [picture])
    assert encoder.training and not frozen.training


def test_images_that_cannot_be_read_are_errors(run: Path, make_shards: MakeShards, tmp_path: Path) -> None:
    encoder = load_encoder(run)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(BadImage, match="broken.jpg: "):
        embed(encoder, [tmp_path / "broken.jpg"])
    with pytest.raises(DataError, match="gone.png: cannot be read"):
        embed(encoder, [tmp_path / "gone.png"])
    with pytest.raises(BadImage, match="mode I;16"):
        encoder.preprocess(Image.new("I;16", (20, 20)))
    with pytest.raises(DataError, match="1 image cannot be decoded"):
        embed(encoder, make_shards((4,), name="bad", bad=(2,)), workers=0)
    with pytest.raises(DataError, match="cannot be mixed"):
        embed(encoder, [Image.new("RGB", (20, 20)), "picture.png"])  # type: ignore[arg-type]
    with pytest.raises(BadImage, match="0 x 5 pixels"):
        embed(encoder, [Image.new("RGB", (0, 5))])
    for array in (np.zeros((2, 20, 20, 3), np.uint8), [np.zeros((20, 20, 3), np.uint8)]):
        with pytest.raises(DataError, match="not ndarray; of an array, PIL.Image.fromarray"):
            embed(encoder, array)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="batch_size: at least 1, not 0"):
        embed(encoder, [Image.new("RGB", (20, 20))], batch_size=0)
    assert embed(encoder, []).shape == (0, 128) and embed(encoder, Image.new("RGB", (20, 20))).shape == (1, 128)
    with pytest.raises(CheckpointError, match="no such run"):
        load_encoder(tmp_path / "nowhere")


def test_a_run_stops_when_it_is_asked_to_and_goes_on_to_the_same_weights(
    make_shards: MakeShards, tiny_settings: MakeSettings, tmp_path: Path
) -> None:
    settings = tiny_settings(make_shards((16,)), train__epochs="3", run__log_steps="1")
    seen, stop = list[int](), threading.Event()

    def listen(step: int, measures: Any) -> None:
        seen.append(step)
        assert {"loss", "lr", "epoch"} <= measures.keys()
        if step == 2:
            stop.set()

    results = list[TrainResult]()
    stopped = threading.Thread(
        target=lambda: results.append(train(settings, tmp_path / "run", on_metrics=listen, stop=stop))
    )
    stopped.start()
    stopped.join()
    assert (results[0].step, results[0].stopped_by != 0, seen) == (2, True, [1, 2])
    whole = train(settings, tmp_path / "whole")
    gone_on = train(settings, tmp_path / "run", resume=True)
    assert gone_on.step == gone_on.steps == whole.steps
    assert load_encoder(tmp_path / "run").digest == load_encoder(tmp_path / "whole").digest
    for key, value in {"optimizer.lr": 0.9, "train.epochs": 2}.items():
        with pytest.raises(LeoclrError, match=f"{key}: .* -> {value}"):
            train(replaced(settings, {key: value}), tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train.epoch": 3}, "train.epoch"),
        ({"train": {"epochs": "many"}, "moco.queue": 0}, "moco.queue"),
        ({"encoder": {"backbone": "pipe:x"}}, "must not contain 'pipe:'"),
    ],
)
def test_wrong_settings_are_one_error(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)) as caught:
        train(settings, tmp_path / "run")
    assert isinstance(caught.value, LeoclrError) and not (tmp_path / "run").exists()
