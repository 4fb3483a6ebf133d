"""What `leoclr method check` says of the mistakes that methods outside the tree have made, and of what is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from leoclr.cli.config.fields import replaced
from leoclr.cli.methods import checks
from leoclr.cli.methods.checks import check_method
from leoclr.cli.methods.outcome import Note
from leoclr.cli.methods.small_settings import small_settings
from leoclr.datasets.errors import SettingsError
from tests.methods.conftest import Install
from tests.methods.test_plugins import TWO_SIZES, run_checks

FORWARD = "loss = torch.stack(losses).mean()"
INIT = "        self.momentum ="
UPDATE = "        momentum_update("
RESUME = ("loss and gradients", "stopped equals uninterrupted")


def install_with(install: Install, *changes: tuple[str, str]) -> str:
    """Install the two-sizes method with some changes, and return its name."""
    source = TWO_SIZES
    for old, new in changes:
        assert source.count(old) == 1
        source = source.replace(old, new)
    install(
        "leoclr_mistaken",
        source,
        {"mistaken": "leoclr_mistaken:TwoSizes"},
        {"whole-and-small": "leoclr_mistaken:POLICY"},
    )
    return "mistaken"


def test_a_policy_without_pairs_is_no_failure_of_a_method_that_needs_some(install: Install) -> None:
    source = "from leoclr.datasets.views import View, ViewPolicy\n\nPOLICY = ViewPolicy('single', {'x': View()}, ())\n"
    install("leoclr_single", source, {}, {"single": "leoclr_single:POLICY"})
    told = checks._views(small_settings("moco"), "single")
    assert told == "refused: views single: there are no pairs, so that nothing would be pulled together"
    assert isinstance(told, Note)


def test_policies_whose_wrapper_asks_too_much_are_one_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "plugins", lambda group: ("clsa", "pairwise", "logo"))
    checked, others = checks._all_views(small_settings("dino"))
    assert str(checked).startswith("pass  views pairwise: loss ")
    assert str(others) == (
        "note  other views: clsa, logo need what it does not offer (leoclr method check dino --views clsa)"
    )


def test_what_a_forward_in_training_left_may_be_missing_in_evaluation(install: Install, tmp_path: Path) -> None:
    name = install_with(
        install,
        (INIT, f"        self.waiting = []\n        self.register_buffer('kept', torch.zeros(8, 8))\n{INIT}"),
        (FORWARD, f"{FORWARD}\n        if self.training:\n            self.waiting.append(embeddings.detach())"),
        (UPDATE, f"        self.kept.copy_(torch.cat(self.waiting).T @ torch.cat(self.waiting))\n"
                 f"        self.waiting.clear()\n{UPDATE}"),
    )  # fmt: skip
    assert run_checks(name, tmp_path, only=("loss and gradients", "checkpoint round trip")) == []


def test_state_that_is_read_as_an_epoch_begins_fails_the_check(install: Install, tmp_path: Path) -> None:
    name = install_with(
        install,
        (INIT, f"        self.seen = [1.0]\n        self.factor = 1.0\n{INIT}"),
        (FORWARD, f"if now.step % now.steps_per_epoch == 0:\n            self.factor = 1.0 / len(self.seen)\n"
                  f"        {FORWARD} * self.factor"),
        (UPDATE, f"        self.seen.append(1.0)\n{UPDATE}"),
    )  # fmt: skip
    (failed,) = run_checks(name, tmp_path, only=RESUME)
    assert failed.name == "stopped equals uninterrupted" and "keep state in buffers" in failed.detail


def test_a_tensor_that_is_kept_with_its_graph_is_told_as_such(install: Install, tmp_path: Path) -> None:
    name = install_with(
        install,
        (INIT, f"        self.centre = torch.zeros(())\n{INIT}"),
        (FORWARD, f"self.centre = 0.9 * self.centre + embeddings.mean()\n        {FORWARD} + self.centre ** 2"),
    )
    (failed,) = run_checks(name, tmp_path, only=("stopped equals uninterrupted",))
    assert "keeps a tensor without detach()" in failed.detail and len(failed.detail.splitlines()) == 1


def test_pythons_own_generator_is_no_source_of_numbers(install: Install, tmp_path: Path) -> None:
    name = install_with(
        install, ("import copy\n", "import copy\nimport random\n"), (FORWARD, f"{FORWARD} * random.random()")
    )
    (failed,) = run_checks(name, tmp_path, only=("two processes equal one",))
    assert "only torch's generator is seeded" in failed.detail


@pytest.mark.slow
def test_state_of_one_process_is_named_before_the_losses_that_follow(install: Install, tmp_path: Path) -> None:
    name = install_with(
        install,
        (INIT, f"        self.waiting = []\n        self.register_buffer('centre', torch.zeros(8))\n{INIT}"),
        (FORWARD, f"self.waiting.append(embeddings.detach().mean(0))\n        {FORWARD} + self.centre.square().sum()"),
        (
            UPDATE,
            "        self.centre.lerp_(torch.stack(self.waiting).mean(0).to(self.centre.dtype), 0.1)\n"
            f"        self.waiting.clear()\n{UPDATE}",
        ),
    )
    (failed,) = run_checks(name, tmp_path, only=("two processes equal one",))
    assert failed.detail.startswith("state after step 0: centre differs by ")
    assert "gather what after_update makes it of" in failed.detail


def test_a_backbone_of_another_make_is_refused_before_it_trains(install: Install, tmp_path: Path) -> None:
    name = install_with(
        install,
        ("import copy\n", "import copy\n\nfrom leoclr.backends.networks.backbones import build_backbone\n"),
        ("backbone = facts.new_backbone()", "backbone = build_backbone('resnet18', 'cifar', 32)"),
    )
    (failed,) = run_checks(name, tmp_path, only=("loss and gradients",))
    assert "other weights than what facts.new_backbone() makes" in failed.detail


def test_a_method_is_checked_with_the_views_that_are_named(tmp_path: Path) -> None:
    (result,) = check_method("moco", tmp_path, only=("loss and gradients",), views="clsa")
    own = checks._loss_and_gradients(replaced(small_settings("moco"), {"views": "clsa"}), tmp_path)
    assert result.passed and result.detail == own
    with pytest.raises(SettingsError, match="Input should be 'byol', 'clsa'"):
        next(check_method("moco", tmp_path, views="clsaa"))
