"""`leoclr bench` measures every part, and its verdict follows from the figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from leoclr.cli.benchmark.summary import Alternative, Part, Rate, Report
from leoclr.cli.commands.app import app
from leoclr.datasets.errors import RunError

SMALL = ["--preset", "quickstart", "--seconds", "1", "--device", "cpu", "--workers", "1"]


def bench(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["bench", *SMALL, *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_it_measures_everything_without_data() -> None:
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    text = bench()
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before
    for part in (
        "read",
        "decode",
        "views, one process",
        "crop and resize",
        "hue",
        "blur",
        "loader process",
        "model step",
    ):
        assert part in text
    assert "limit     " in text and "together  " in text and "try       " in text
    assert "memory    of a step of 128 images, about " in text and "at a time\n" in text


@pytest.mark.parametrize("executor", ["pillow", "device"])
def test_it_measures_the_settings_and_the_data_it_is_given(executor: str, make_shards: Callable[..., Path]) -> None:
    data = make_shards((20,))
    found = json.loads(bench("--data", str(data), "--set", f"augmentation.executor={executor}", "--json"))
    assert found["settings"]["executor"] == executor and found["settings"]["batch"] <= 20
    rates = [*found["stages"], *found["operations"], found["data"], found["model"], found["end_to_end"]]
    assert all(rate["low"] <= rate["images_per_second"] <= rate["high"] for rate in rates)
    assert all(rate["images_per_second"] > 0 for rate in rates)
    assert found["limit"] in ("data", "model")
    tried = {alternative["setting"] for alternative in found["alternatives"]}
    assert {f"augmentation.executor={name}" for name in ("fast", "pillow")} - tried == (
        {f"augmentation.executor={executor}"} - {"augmentation.executor=device"}
    )


def test_no_learning_rate_and_no_reduced_decoding_ends_it() -> None:
    reduced = ["--set", "augmentation.executor=fast", "--set", "augmentation.reduced_decoding=true"]
    found = json.loads(bench("--json", "--set", "optimizer.lr=1e30", *reduced))
    assert found["model"]["images_per_second"] > 0
    assert "augmentation.executor=pillow" not in {other["setting"] for other in found["alternatives"]}  # which cannot


@pytest.mark.slow
def test_groups_of_batch_norm_are_filled_or_the_data_is_called_too_small(make_shards: Callable[..., Path]) -> None:
    many = ["--backend", "moco", "--set", "moco.bn_splits=32", "--set", "data.image_size=96", "--json"]
    assert json.loads(bench("--data", str(make_shards((64,))), *many))["settings"]["batch"] == 64
    with pytest.raises(RunError, match="5 images are too few: .* 8 groups of two or more"):
        bench("--data", str(make_shards((5,), name="few")), "--backend", "moco", "--set", "moco.bn_splits=8")


@pytest.mark.parametrize("batch", ["1", "16"])
def test_views_that_the_method_cannot_take_are_refused_as_by_training(
    batch: str, make_shards: Callable[..., Path], tmp_path: Path
) -> None:
    flags = ["--data", str(make_shards((20,))), "--backend", "vicreg", "--views", "clsa", "--batch-size", batch]
    refused = []
    for command in (["bench", *SMALL], ["train", "--preset", "quickstart", "--output", str(tmp_path / "run")]):
        with pytest.raises(RunError) as error:
            CliRunner().invoke(app, [*command, *flags], catch_exceptions=False)
        refused.append(str(error.value).splitlines()[0])
    assert refused[0] == refused[1] and "views clsa need a distribution over keys" in refused[0]


def test_a_step_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leoclr.cli.preflight.memory.free_bytes", lambda device: 1 << 20)
    with pytest.raises(RunError, match="a step needs about .* GiB, and 0.0 GiB are free on this machine"):
        bench()


MEMORY = {"batch": 64, "state": 1 << 30, "activations": 2 << 30, "loaders": 0, "processes": 1 << 30}
MEMORY |= {"needed": 4 << 30, "free": 6 << 30, "images_that_fit": 128}


def report(data: float, model: float, together: float, *alternatives: Alternative) -> Report:
    def rate(name: str, part: Part, value: float) -> Rate:
        return Rate.of(name, part, [value, value, value])

    about: dict[str, Any] = {"device": "cpu"}
    return Report(
        about,
        {},
        (rate("decode", "data", 10 * data),),
        (),
        rate("views", "data", data),
        rate("model step", "model", model),
        rate("end to end", "all", together),
        alternatives,
        MEMORY,
        1.0,
    )


FAST = Alternative("augmentation.executor=fast", "data", 3.0)
MORE = Alternative("run.workers=8", "data", 4.0)
LITTLE = Alternative("run.workers=2", "data", 1.01)
BF16 = Alternative("train.precision=bf16", "model", 1.9)


def test_the_slower_part_limits_and_only_what_helps_it_is_advised() -> None:
    by_data = report(100, 1000, 95, FAST, MORE, LITTLE, BF16)
    assert by_data.limit == "data" and by_data.advice == (MORE, FAST)
    assert "making the views: by itself 100 images/s, where the other part makes 1,000" in by_data.as_text()
    assert "95% of that\n" in by_data.as_text()
    by_model = report(1000, 100, 60, FAST, MORE, BF16)
    assert by_model.limit == "model" and by_model.advice == (BF16,)
    assert "60% of that: loader processes and model compete" in by_model.as_text()
    assert "none of the settings" in report(100, 1000, 95, LITTLE).as_text()
    assert "nothing else was measured" in report(1000, 100, 95, FAST).as_text()  # of what limits
