"""Steps that are replayed: here the captured body is plain code, so that what surrounds a CUDA graph is tested on a
processor. What is replayed has to be what is computed without."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from leoclr.backends.method import Progress
from leoclr.backends.schedules import cosine
from leoclr.backends.step_inputs import StepInputs, WatchedProgress, step_input
from leoclr.cli.config.augmentation import augmentation_spec
from leoclr.cli.config.fields import replaced
from leoclr.cli.config.settings import Settings
from leoclr.cli.run.devices import accelerated
from leoclr.cli.training import build
from leoclr.cli.training import graph as graphs
from leoclr.cli.training.cuda_capture import cuda_capture
from leoclr.cli.training.graph import StepGraph, use_graph, why_not
from leoclr.cli.training.step import RunLength, StepResult, TrainStep
from leoclr.datasets.images.augmentation import view_specs
from leoclr.datasets.loading.plan import Plan
from leoclr.datasets.loading.resident import ResidentImages, resident_batches
from leoclr.datasets.loading.view_maker import ViewMaker

MakeSettings = Callable[..., Settings]
Body = Callable[[], StepResult]
STEPS = 7


def views(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        name: torch.randint(256, (8, 3, 16, 16), generator=generator, dtype=torch.uint8) for name in ("x", "x1", "x2")
    }


def steps(
    settings: Settings, folder: Path, capture: Callable[[Body], Body] | None, check: bool = True
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor], TrainStep, list[str]]:
    """Losses, the state at the end, the step and what it said; without a graph where `capture` is None."""
    said: list[str] = []
    with accelerated(settings, folder) as accelerator:
        method = build.method(settings, accelerator.device, 64)
        pairs = settings.view_policy.pairs
        take = TrainStep(settings, accelerator, method, pairs, 8, RunLength(STEPS, 8))
        if capture is not None:
            take.replay = StepGraph(
                take.body, take.seed, method, take.optimizer, accelerator.device, check, said.append, capture
            )
        losses = [take(views(step), step).loss for step in range(STEPS)]
        return losses, {name: value.clone() for name, value in method.state_dict().items()}, take, said


@pytest.fixture
def settings(tiny_settings: MakeSettings) -> MakeSettings:
    return partial(tiny_settings, Path("unused"), optimizer__lr="0.05", train__epochs="3")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"backend": "simclr", "views": "leoclr", "optimizer__name": "adamw", "optimizer__lr": "0.001"},
        {"optimizer__name": "lars", "optimizer__lr": "0.5"},
        {"backend": "byol", "views": "leoclr"},
        {"backend": "obow", "views": "leoclr"},
    ],
)
def test_replayed_steps_are_those_without_a_graph(
    changes: dict[str, str], settings: MakeSettings, tmp_path: Path
) -> None:
    replays = [0]

    def capture(body: Body) -> Body:
        def replay() -> StepResult:
            replays[0] += 1
            return body()

        return replay

    expected, weights, _, _ = steps(settings(**changes), tmp_path, None)
    losses, found, take, said = steps(settings(**changes), tmp_path, capture)
    assert not said and replays[0] == STEPS - 3 and isinstance(take.replay, StepGraph)
    # LARS rounds rate times direction by itself, and momentum from the device share times distance.
    exact = changes.get("optimizer__name") != "lars" and changes.get("backend") not in ("byol", "obow")
    for one, other in zip([*losses, *found.values()], [*expected, *weights.values()], strict=True):
        assert torch.equal(one, other) if exact else torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_replay_makes_the_views_of_its_step(settings: MakeSettings, tmp_path: Path) -> None:
    """With resident images a step begins at sample numbers, boxes and parameters. The views are part of the replay."""
    chosen = settings()
    spec, policy = augmentation_spec(replaced(chosen, {"augmentation.executor": "device"})), chosen.view_policy
    pixels = torch.randint(256, (64, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = []
    for capture in (None, lambda body: body):
        batches = resident_batches(ResidentImages(pixels, {}), Plan((64,), 8, 0), policy, spec, 0, STEPS)
        with accelerated(chosen, tmp_path) as accelerator:
            method = build.method(chosen, accelerator.device, 64)
            make = ViewMaker(view_specs(policy, spec), pixels)
            take = TrainStep(chosen, accelerator, method, policy.pairs, 8, RunLength(STEPS, 8), make)
            said: list[str] = []
            if capture is not None:
                take.replay = graph = StepGraph(
                    take.body, take.seed, method, take.optimizer, accelerator.device, True, said.append, capture
                )
            losses = [take(batch.inputs, batch.step).loss for batch in batches]
            found.append([*losses, *method.state_dict().values()])
    assert graph.refused is None and not said
    assert len(set(map(float, losses))) == STEPS
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def _fails(body: Body) -> Body:
    body()
    raise RuntimeError("operation not permitted when stream is capturing\nand more")


def _replays_nothing(body: Body) -> Body:
    result = body()
    return lambda: result


def _moves_too_far(body: Body) -> Body:
    def replay() -> StepResult:
        body()
        return body()

    return replay


@pytest.mark.parametrize(
    ("capture", "reason"),
    [
        (_replays_nothing, "does not give what the step gives"),
        (_moves_too_far, "does not give what the step gives"),
    ],
)
def test_a_replay_that_differs_is_undone_and_said_once(
    capture: Callable[[Body], Body], reason: str, settings: MakeSettings, tmp_path: Path
) -> None:
    expected, weights, _, _ = steps(settings(), tmp_path, None)
    losses, found, _, said = steps(settings(), tmp_path, capture)
    assert len(said) == 1 and reason in said[0]
    assert all(torch.equal(one, other) for one, other in zip(losses, expected, strict=True))
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_a_capture_that_fails_leaves_no_trace(settings: MakeSettings, tmp_path: Path) -> None:
    expected, weights, _, _ = steps(settings(), tmp_path, None)
    losses, found, _, said = steps(settings(), tmp_path, _fails)
    assert said == [
        "steps are not replayed as a CUDA graph: it cannot be captured (operation not permitted when stream is "
        "capturing and more)"
    ]
    assert all(torch.equal(one, other) for one, other in zip(losses, expected, strict=True))
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_a_check_without_room_is_left_out(
    settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory of a graph stays with it, so that a step beside it may not fit."""
    expected, weights, _, _ = steps(settings(), tmp_path, None)
    body, replaying, refused = TrainStep.body, [False, False], [0]

    def tight(self: TrainStep, inputs: Mapping[str, torch.Tensor], now: Progress) -> StepResult:
        captured, within = replaying
        if captured and not within:
            refused[0] += 1
            self._remember()
            self.method(self._make_views({name: view / 255 for name, view in inputs.items()}), self.pairs, now)
            raise torch.OutOfMemoryError("no room")
        return body(self, inputs, now)

    def capture(captured: Body) -> Body:
        def replay() -> StepResult:
            replaying[:] = [True, True]
            try:
                return captured()
            finally:
                replaying[1] = False

        return replay

    monkeypatch.setattr(TrainStep, "body", tight)
    losses, found, _, said = steps(settings(), tmp_path, capture)
    assert not said and refused == [1]
    assert all(torch.equal(one, other) for one, other in zip(losses, expected, strict=True))
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_a_step_that_waits_for_the_gpu_is_not_captured(
    settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "device_waits", lambda device: contextlib.nullcontext(["method.py:12"]))
    losses, found, _, said = steps(settings(), tmp_path, lambda body: pytest.fail("captured"))
    assert said == ["steps are not replayed as a CUDA graph: the host waits for the GPU within a step (method.py:12)"]
    expected, weights, _, _ = steps(settings(), tmp_path, None)
    assert all(torch.equal(one, other) for one, other in zip(losses, expected, strict=True))
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_a_method_that_reads_its_progress_is_noticed(
    settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from leoclr.backends.methods.moco import MoCo

    update = MoCo.after_update
    monkeypatch.setattr(MoCo, "after_update", lambda self, now: update(self, now) if now.share < 2 else None)
    losses, *_, said = steps(settings(), tmp_path, lambda body: body)
    (told,) = said
    place = r"test_graph\.py, line \d+, in <lambda>"
    assert re.fullmatch(rf"steps .*as a CUDA graph: the method reads its progress on the host \({place}\)", told)
    monkeypatch.undo()
    assert losses == steps(settings(), tmp_path, None)[0]


def test_inputs_of_a_step_are_filled_before_each() -> None:
    inputs, cpu = StepInputs(), torch.device("cpu")

    def body(now: Progress) -> list[torch.Tensor]:
        first = step_input(lambda now: torch.tensor([now.step, 7]), now, cpu)
        return [first, step_input(lambda now: torch.tensor(now.share), now, cpu)]

    with inputs.serving():
        buffers = body(watched := WatchedProgress(2, 10, 5))
    assert [buffer.tolist() for buffer in buffers] == [[2, 7], pytest.approx(0.2)] and not watched.read
    inputs.fill(Progress(4, 10, 5))
    assert [buffer.tolist() for buffer in buffers] == [[4, 7], pytest.approx(0.4)]
    with inputs.serving():
        again = body(WatchedProgress(9, 10, 5))
    assert all(one is other for one, other in zip(again, buffers, strict=True))
    for look in (lambda now: now.step, lambda now: now.epoch, lambda now: now[0], tuple, lambda now: now._replace()):
        watched = WatchedProgress(2, 10, 5)
        look(watched)
        assert watched.read
    cosine(0.9, 1.0)(watched := WatchedProgress(2, 10, 5))  # told is the line that asks for it
    assert re.fullmatch(r"test_graph\.py, line \d+, in test_inputs_of_a_step_are_filled_before_each", watched.read)


@pytest.mark.parametrize(
    ("changes", "ranks", "reason"),
    [
        ({}, 2, "several processes"),
        ({"train__accumulation": "2"}, 1, "accumulation"),
        ({"train__precision": "fp16", "run__device": "auto"}, 1, "fp16"),
        ({"run__deterministic": "true"}, 1, "float32"),
        ({}, 1, None),
    ],
)
def test_where_steps_cannot_be_replayed(
    changes: dict[str, str], ranks: int, reason: str | None, settings: MakeSettings
) -> None:
    chosen = settings(**changes)
    method = build.method(settings(), torch.device("cpu"), 64)
    found = why_not(chosen, method, torch.device("cuda"), ranks)
    assert found is None if reason is None else reason in str(found)
    assert why_not(chosen, method, torch.device("cpu"), ranks) == "there is no GPU"


@pytest.mark.parametrize(("choice", "lines"), [("auto", 0), ("no", 0), ("yes", 1)])
def test_a_processor_replays_nothing(choice: str, lines: int, settings: MakeSettings, tmp_path: Path) -> None:
    said: list[str] = []
    chosen = settings(train__graph=choice)
    with accelerated(chosen, tmp_path) as accelerator:
        method = build.method(chosen, accelerator.device, 64)
        take = TrainStep(chosen, accelerator, method, chosen.view_policy.pairs, 8, RunLength(STEPS, 8))
        use_graph(take, said.append)
    assert take.replay is None and len(said) == lines


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_gpu_replays_its_steps(precision: str, settings: MakeSettings, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"run__device": "cuda", "train__precision": precision}
    cuda = {name: view.cuda() for name, view in views(0).items()}
    found = []
    for capture in (None, cuda_capture):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"{__name__}.views", lambda step: {name: view + step for name, view in cuda.items()})
            found.append(steps(settings(**changes), tmp_path, capture))
    assert not found[1][3]
    for one, other in zip(found[1][0], found[0][0], strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=1e-3)
