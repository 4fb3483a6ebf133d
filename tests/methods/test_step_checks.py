"""What `leoclr method check` says of a step that changes what it should not, or that computes a loss in bf16."""

from __future__ import annotations

from pathlib import Path

import pytest

from leoclr.cli.methods.checks import check_method
from leoclr.cli.methods.outcome import Note, result_of
from tests.methods.conftest import Install
from tests.methods.test_method_check import FORWARD, INIT, UPDATE, install_with
from tests.methods.test_plugins import TWO_SIZES

CHANGES, PRECISION = "what a step changes", "loss in float32"
EMBEDDINGS = "torch.stack(losses).mean() + (embeddings @ embeddings.T).square().mean()"
MOVES = "with train.accumulation a step has several; move state in after_update"
EXACT = "percents off: compute it within torch.autocast(device.type, enabled=False), on losses.exact(embeddings)"
ALONE = (
    "micro-batch of a step alone: with train.accumulation a step has several; let forward add to a list that "
    "after_update empties"
)
CENTRE = (INIT, f"        self.register_buffer('centre', torch.zeros(8))\n{INIT}")
INIT_OF_PREDICTOR = "        self.predictor ="
LINE = TWO_SIZES[: TWO_SIZES.index(FORWARD)].count("\n") + 1


@pytest.mark.parametrize(
    ("check", "changes", "told"),
    [
        pytest.param(
            CHANGES,
            (
                ("copy.deepcopy(self.encoder).requires_grad_(False)", "copy.deepcopy(self.encoder)"),
                ("torch.no_grad()", "torch.enable_grad()"),
                (
                    "        momentum_update(self.target, self.encoder, self.momentum(now))\n",
                    "        for one, other in zip(self.target.parameters(), self.encoder.parameters(), strict=True):\n"
                    "            one.data.lerp_(other.data, 0.1)\n",
                ),
            ),
            "target.backbone.conv1.weight and 59 more has a gradient, and after_update moves it towards "
            "encoder.backbone.conv1.weight: make it by momentum_copy, or with requires_grad_(False)",
            id="a teacher with gradients",
        ),
        pytest.param(
            CHANGES,
            ((FORWARD, f"momentum_update(self.target, self.encoder, 0.9)\n        {FORWARD}"),),
            f"forward changes target.backbone.conv1.weight and 59 more: {MOVES}",
            id="a momentum copy in forward",
        ),
        pytest.param(
            CHANGES,
            (
                (INIT, f"        self.register_buffer('centre', torch.zeros(8))\n{INIT}"),
                (FORWARD, f"self.centre.lerp_(embeddings.detach().mean(0), 0.1)\n        {FORWARD}"),
            ),
            f"forward changes centre: {MOVES}",
            id="a centre in forward",
        ),
        pytest.param(
            CHANGES,
            ((FORWARD, f"views['small'].mul_(0.9)\n        {FORWARD}"),),
            "forward changes the images of the view small, which others read after it: change a copy",
            id="images in place",
        ),
        pytest.param(
            CHANGES,
            (
                CENTRE,
                (FORWARD, f"self.waiting = embeddings.detach().mean(0)\n        {FORWARD}"),
                (UPDATE, f"        self.centre.lerp_(self.waiting.to(self.centre.dtype), 0.1)\n{UPDATE}"),
            ),
            f"centre follows the last {ALONE}",
            id="a centre of the last micro-batch",
        ),
        pytest.param(
            CHANGES,
            (
                CENTRE,
                (INIT_OF_PREDICTOR, f"        self.waiting = None\n{INIT_OF_PREDICTOR}"),
                (
                    FORWARD,
                    "if self.waiting is None:\n            self.waiting = embeddings.detach().mean(0)\n"
                    f"        {FORWARD}",
                ),
                (
                    UPDATE,
                    "        self.centre.lerp_(self.waiting.to(self.centre.dtype), 0.1)\n"
                    f"        self.waiting = None\n{UPDATE}",
                ),
            ),
            f"centre follows the first {ALONE}",
            id="a centre of the first micro-batch",
        ),
        pytest.param(
            CHANGES,
            (('"target.backbone": self.target.backbone, ', ""),),
            "target.backbone begins as a copy of encoder.backbone and is not in backbones(): --init would fill "
            "encoder.backbone alone",
            id="a momentum copy without a name",
        ),
        pytest.param(
            PRECISION,
            ((FORWARD, "loss = torch.stack(losses).mean().bfloat16()"),),
            f"with train.precision=bf16, the loss is bf16, {EXACT}",
            id="a loss in bf16",
        ),
    ],
)
def test_what_a_step_may_not_do_is_told(
    check: str, changes: tuple[tuple[str, str], ...], told: str, install: Install, tmp_path: Path
) -> None:
    (result,) = check_method(install_with(install, *changes), tmp_path, only=(check,))
    assert not result.passed and result.detail == told


def test_a_product_in_bf16_is_noted(install: Install, tmp_path: Path) -> None:
    (result,) = check_method(install_with(install, (FORWARD, f"loss = {EMBEDDINGS}")), tmp_path, only=(PRECISION,))
    product = f"a product of matrices (leoclr_mistaken.py, line {LINE}, in forward) is bf16"
    assert result.passed and result.noted and result.detail.startswith(f"with train.precision=bf16, {product}, where")
    assert result.detail.endswith("on losses.exact(embeddings)")


def test_what_a_step_may_do_passes(install: Install, tmp_path: Path) -> None:
    """A momentum copy, rows that are brought to length one, a centre that moves after the update, a product in float32,
    and a layer that makes one in bf16."""
    name = install_with(
        install,
        (
            INIT,
            "        self.rows = torch.nn.Linear(8, 8, bias=False)\n        self.waiting = []\n"
            f"        self.register_buffer('centre', torch.zeros(8))\n{INIT}",
        ),
        (
            FORWARD,
            "embeddings = self.rows(embeddings).float()\n        self.waiting.append(embeddings.detach().mean(0))\n"
            f"        with torch.autocast(embeddings.device.type, enabled=False):\n            loss = {EMBEDDINGS}",
        ),
        (
            UPDATE,
            "        self.rows.weight.div_(self.rows.weight.norm(dim=1, keepdim=True))\n"
            f"        self.centre.lerp_(torch.stack(self.waiting).mean(0).to(self.centre.dtype), 0.1)\n"
            f"        self.waiting.clear()\n{UPDATE}",
        ),
    )
    results = list(check_method(name, tmp_path, only=(CHANGES, PRECISION)))
    assert [result.name for result in results if result.passed] == [CHANGES, PRECISION], results[0].detail


def test_a_note_passes_and_is_told_apart() -> None:
    assert str(result_of("replay", lambda: Note("without a graph"))) == "note  replay: without a graph"
    assert result_of("replay", lambda: Note("why")).as_json() == {
        "check": "replay",
        "passed": True,
        "noted": True,
        "detail": "why",
    }
    assert str(result_of("replay", lambda: "one graph")) == "pass  replay: one graph"
