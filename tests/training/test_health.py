"""Signs of collapse: which pass, which stop a run, and what stays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from torch.nn import functional as F

from leoclr.backends.losses import info_nce, nt_xent
from leoclr.cli.config.settings import Settings
from leoclr.cli.preflight.checks import facts_of
from leoclr.cli.training import trainer as training
from leoclr.cli.training.monitoring.health import Alarm
from leoclr.cli.training.monitoring.meter import Meter
from leoclr.cli.training.step import StepResult
from leoclr.datasets.errors import RunError, SettingsError

MakeShards = Callable[..., Path]
TinySettings = Callable[..., Settings]


def alarm(settings: Settings) -> Alarm:
    return Alarm(settings, facts_of(settings, images=16, ranks=1), speaks=True)


def values(deviation: float = 1.0, loss: float = 1.0) -> Mapping[str, float]:
    return {"embedding_std": deviation, "loss": loss}


def test_a_dip_passes(tiny_settings: TinySettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The spread of a MoCo run of width 32 without warm-up, but lower: it recovers within a hundred steps."""
    found = alarm(tiny_settings(tmp_path))
    steps = {1: 0.31, 6: 0.061, 12: 0.009, 18: 0.008, 30: 0.0095, 66: 0.139, 80: 0.2}
    assert [found.look(step, values(deviation)) for step, deviation in steps.items()] == [
        *(False, False, True, True, True, False, False)
    ]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "embedding_std 0.0090, below 0.01) at step 12" in lines[0]
    assert "spread again at step 66" in lines[1]


@pytest.mark.parametrize(
    ("backend", "bad"), [("moco", values(0.0044)), ("moco", values(loss=5.6)), ("simclr", values(loss=5.4))]
)
def test_collapse_lasts(backend: str, bad: Mapping[str, float], tiny_settings: TinySettings, tmp_path: Path) -> None:
    """With 16 keys in the queue, or 8 images, and two terms, the loss at chance is 5.67, or 5.42."""
    found = alarm(tiny_settings(tmp_path, backend=backend, run__collapse_steps="300"))
    assert found.look(20, bad) and found.look(300, bad)
    with pytest.raises(RunError, match="collapse: .* at step 320, as at every measured step since 20; .*warm-up"):
        found.look(320, bad)


def test_collapse_may_only_be_told(
    tiny_settings: TinySettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = alarm(tiny_settings(tmp_path, run__on_collapse="warn", run__collapse_steps="40"))
    assert all(found.look(step, values(0.001)) for step in range(20, 200, 20))
    assert [line.partition(":")[2][:9] for line in capsys.readouterr().err.splitlines()] == [" the embe", " collapse"]


@pytest.mark.parametrize("changes", [{"views": "unmix"}, {"backend": "hcsc"}, {"backend": "byol"}])
def test_a_loss_whose_value_at_chance_is_unknown_is_no_sign(
    changes: dict[str, str], tiny_settings: TinySettings, tmp_path: Path
) -> None:
    assert not alarm(tiny_settings(tmp_path, **changes)).look(20, values(loss=100.0))


def test_a_loss_at_chance_that_every_loss_is_above_is_refused(
    tiny_settings: TinySettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings(tmp_path)
    monkeypatch.setattr(type(settings.method), "chance", lambda self, facts: -1.0)
    with pytest.raises(SettingsError, match="chance of moco must be above 0, got -1"):
        alarm(settings)


def test_a_metric_need_not_be_of_every_step() -> None:
    meter = Meter(cast(Accelerator, SimpleNamespace(reduce=lambda value, reduction: value)))
    for metrics in ({"often": 1.0}, {"often": 2.0, "late": 4.0}, {"often": 3.0}):
        meter.add(
            StepResult(torch.tensor(1.0), None, {name: torch.tensor(value) for name, value in metrics.items()}), []
        )
    assert meter.measures() == {"often": 2.0, "late": 4.0}


def test_the_loss_at_chance_is_that_of_embeddings_all_alike(tiny_settings: TinySettings, tmp_path: Path) -> None:
    same = F.normalize(torch.ones(8, 4), dim=1)
    for backend, loss in (
        ("moco", info_nce(same, [same, same], same[:1].expand(16, 4), 0.2).sum()),
        ("simclr", 2 * nt_xent(same, same, 0.1)),
    ):
        settings = tiny_settings(tmp_path, backend=backend)
        assert settings.method.chance(facts_of(settings, images=16, ranks=1)) == pytest.approx(float(loss), rel=1e-6)


def test_a_run_that_collapses_keeps_what_was_good(
    make_shards: MakeShards,
    tmp_path: Path,
    tiny_settings: TinySettings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    original = training.Trainer._train_step

    def collapsing(self: training.Trainer, batch: Any) -> Any:
        if self.step >= 4:
            for parameter in self.method.get_submodule("encoder.projector").parameters():
                parameter.data.fill_(0.1)
        return original(self, batch)

    monkeypatch.setattr(training.Trainer, "_train_step", collapsing)
    settings = tiny_settings(
        make_shards((16,)),
        views="unmix",  # the loss at chance is unknown, and comes near it in the first steps of so small a run
        train__epochs="9",
        run__log_steps="1",
        run__collapse_steps="8",
        run__keep="1",
        run__checkpoint_minutes="0",  # a checkpoint after every step
        run__checkpoint_epochs="0",
    )
    with pytest.raises(RunError, match="collapse: .* since 5; the last checkpoint before that is kept"):
        training.train(settings, tmp_path / "run", None, ["test"], resume=False)
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"step-000000004", "step-000000012"}
    assert "a dip that passes, or collapse" in capsys.readouterr().err
