"""What the seam promises a method: phases within a step, hooks in order, state of each rank's own."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from leoclr.backends.method import Facts, Output, Progress
from leoclr.backends.methods.moco import MoCo, Settings
from leoclr.backends.settings import Pairs
from leoclr.cli.config.settings import Settings as RunSettings
from leoclr.cli.training import build, state
from leoclr.cli.training.step import step_seed
from leoclr.cli.training.trainer import train

MakeShards = Callable[..., Path]
TinySettings = Callable[..., RunSettings]
CALLS: list[tuple[str, int, int]] = []


class Phased(MoCo):
    """MoCo that goes through each step twice, counts, and notes what is called."""

    phases = 2
    per_rank = ("seen",)
    seen: Tensor

    def __init__(self, settings: Settings, facts: Facts) -> None:
        super().__init__(settings, facts)
        self.register_buffer("seen", torch.zeros(4, 2))

    def forward(self, views: Mapping[str, Tensor], pairs: Pairs, now: Progress) -> Output:
        CALLS.append(("forward", now.step, now.phase))
        output = super().forward(views, pairs, now)
        return output._replace(metrics={"phase": torch.tensor(float(now.phase))})

    def before_update(self, now: Progress) -> None:
        CALLS.append(("before", now.step, now.phase))
        assert all(p.grad is not None for p in self.encoder.parameters())

    def after_update(self, now: Progress) -> None:
        CALLS.append(("after", now.step, now.phase))
        assert all(p.grad is None for p in self.encoder.parameters())
        self.seen += 1
        super().after_update(now)


@pytest.fixture
def phased(monkeypatch: pytest.MonkeyPatch) -> None:
    CALLS.clear()
    monkeypatch.setattr(build, "import_method", lambda name, views: Phased)


def test_a_step_of_two_phases_updates_twice_with_its_hooks_in_order(
    phased: None, make_shards: MakeShards, tiny_settings: TinySettings, tmp_path: Path
) -> None:
    settings = tiny_settings(make_shards((16,)), train__epochs="1", run__log_steps="1")
    result = train(settings, tmp_path / "run", None, ["test"], resume=False)
    order = [(hook, step, phase) for step in range(2) for phase in range(2) for hook in ("forward", "before", "after")]
    assert [call for call in CALLS if call in order][-len(order) :] == order
    saved = load_file(Path(result.checkpoint) / "model.safetensors")
    assert torch.equal(saved["seen"], torch.full((4, 2), 4.0))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == [1.0, 1.0]  # of the last phase


def test_state_of_each_ranks_own_is_split_among_the_ranks_of_a_resume(
    phased: None, tiny_settings: TinySettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = build.method(tiny_settings(tmp_path), torch.device("cpu"), images=16)
    run = state.RunState.__new__(state.RunState)
    run._method = method
    whole = torch.arange(16.0).view(8, 2)
    monkeypatch.setattr(state, "ranks", lambda: 2)
    for number in range(2):
        monkeypatch.setattr(state, "rank", lambda number=number: number)
        assert torch.equal(run._own_part({"seen": whole})["seen"], whole[4 * number :][:4])
    monkeypatch.setattr(state, "ranks", lambda: 3)
    with pytest.raises(ValueError, match="seen of 8 rows cannot be split among 3 processes"):
        run._own_part({"seen": whole})


def test_a_method_knows_the_sizes_of_its_views(
    tiny_settings: TinySettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: dict[str, int] = {}

    class Sized(MoCo):
        def __init__(self, settings: Settings, facts: Facts) -> None:
            super().__init__(settings, facts)
            known.update(facts.sizes)

    monkeypatch.setattr(build, "import_method", lambda name, views: Sized)
    changes = {"data__image_size": "32", "multicrop__small": "2", "multicrop__small_size": "0.5"}
    build.method(tiny_settings(tmp_path, views="multicrop", **changes), torch.device("cpu"), images=8)
    assert known == {"x1": 32, "x2": 32, "s1": 16, "s2": 16}


def test_each_seed_process_and_step_draws_numbers_of_its_own() -> None:
    draws = set()
    for place in itertools.product((0, 1, 2**32), (0, 1), (0, 1, 1000)):
        torch.manual_seed(step_seed(*place))
        draws.add(float(torch.rand(())))
    assert len(draws) == 18
