"""Methods and view policies of other packages: found by entry points, read without torch, checked, refused by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Container
from pathlib import Path

import pytest

from leoclr.cli.commands.app import main
from leoclr.cli.config.resolve import resolve
from leoclr.cli.methods.checks import check_method
from leoclr.cli.methods.outcome import Result
from leoclr.cli.methods.scaffold import write_package
from leoclr.datasets.errors import SettingsError
from tests.methods.conftest import Install

# Two image sizes, a predictor with a rate of its own, a momentum encoder with a schedule: what the seam must say.
TWO_SIZES = '''"""Two sizes: a small crop is predicted to look like the whole image."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from leoclr.backends.method import Facts, Method, Output, ParameterGroup, Progress, momentum_update
from leoclr.backends.networks.backbones import Backbone
from leoclr.backends.networks.encoder import Encoder
from leoclr.backends.networks.heads import mlp
from leoclr.backends.schedules import cosine
from leoclr.backends.settings import Fraction, MethodSettings, Pairs, PositiveCount, RunFacts
from leoclr.datasets.views import View, ViewPolicy

POLICY = ViewPolicy(
    "whole-and-small",
    {"whole": View("whole", changes={"blur": 1.0}), "small": View(size=0.5, changes={"solarize": 0.2})},
    (("small", "whole"),),
    "The whole image, and a small crop that is pulled to it.",
)


class Settings(MethodSettings):
    """A predictor and a momentum encoder."""

    default_views: ClassVar[str] = "whole-and-small"
    small: ClassVar[Mapping[str, Any]] = {"dim": 8}

    dim: PositiveCount = Field(default=64, description="Dimension of the embedding.")
    momentum: Fraction = Field(default=0.9, description="EMA decay of the target at the start; 1 at the end.")

    def problems(self, facts: RunFacts) -> Iterator[str]:
        if len(facts.pairs) > 2:
            yield "twosizes takes at most two pairs of views"


class TwoSizes(Method):
    """An encoder, its predictor, and a target that follows it."""

    groups = (
        ParameterGroup("^predictor", lr=10.0),
        ParameterGroup("^encoder.projector", frozen=lambda now: now.step < 1),
    )

    def __init__(self, settings: Settings, facts: Facts) -> None:
        super().__init__()
        backbone = facts.new_backbone()
        self.encoder = Encoder(backbone, mlp((backbone.feature_dim, settings.dim)), normalise=False)
        self.target = copy.deepcopy(self.encoder).requires_grad_(False)
        self.predictor = mlp((settings.dim, settings.dim, settings.dim))
        self.momentum = cosine(settings.momentum, 1.0)

    def forward(self, views: Mapping[str, Tensor], pairs: Pairs, now: Progress) -> Output:
        losses, embeddings = [], None
        for anchor, positive in pairs:
            embeddings = self.encoder(views[anchor])
            with torch.no_grad():
                target = self.target(views[positive])
            losses.append(2 - 2 * F.cosine_similarity(self.predictor(embeddings), target, dim=1).mean())
        loss = torch.stack(losses).mean()
        return Output(loss, None if embeddings is None else embeddings.detach(), {"distance": loss.detach()})

    def after_update(self, now: Progress) -> None:
        momentum_update(self.target, self.encoder, self.momentum(now))

    def backbones(self) -> dict[str, Backbone]:
        return {"target.backbone": self.target.backbone, "encoder.backbone": self.encoder.backbone}
'''


def weighted(generator: str) -> str:
    """The method with a loss that is multiplied by a random number."""
    loss = "loss = torch.stack(losses).mean()"
    return TWO_SIZES.replace(loss, f"{loss} * torch.rand((), generator={generator})")


def run_checks(name: str, folder: Path, only: Container[str] | None = None) -> list[Result]:
    """The checks that fail."""
    return [result for result in check_method(name, folder, only) if not result.passed]


@pytest.fixture
def two_sizes(install: Install) -> Path:
    place = "leoclr_twosizes"
    return install(place, TWO_SIZES, {"twosizes": f"{place}:TwoSizes"}, {"whole-and-small": f"{place}:POLICY"})


@pytest.mark.slow
def test_a_method_with_two_sizes_a_predictor_and_a_schedule_keeps_every_promise(
    two_sizes: Path, tmp_path: Path
) -> None:
    assert len(TWO_SIZES.splitlines()) < 100
    assert run_checks("twosizes", tmp_path) == []
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert all("distance" in line and "embedding_std" in line for line in lines)


def test_settings_of_a_method_are_read_without_its_torch(two_sizes: Path) -> None:
    code = (
        "import sys; from leoclr.cli.config.resolve import resolve;"
        "found = resolve(None, None, {}, {'backend': 'twosizes', 'twosizes.momentum': '0.5'});"
        "print(found.settings.method, found.settings.views, found.origins['views'], 'torch' in sys.modules)"
    )
    printed = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert printed.strip() == "dim=64 momentum=0.5 whole-and-small default of twosizes False"


def test_methods_are_listed_with_their_packages(two_sizes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["method", "list", "--json"])
    rows = {(row["kind"], row["name"]): row for row in json.loads(capsys.readouterr().out)}
    assert rows["method", "twosizes"]["package"] == "leoclr_twosizes 0.3"
    assert rows["method", "twosizes"]["summary"].startswith("Two sizes: a small crop")
    assert rows["views", "whole-and-small"]["summary"] == "The whole image, and a small crop that is pulled to it."
    assert rows["method", "moco"]["package"].startswith("leoclr-cli ")


def test_wrong_values_of_a_methods_settings_are_refused_like_any_other(two_sizes: Path) -> None:
    with pytest.raises(SettingsError, match="twosizes.momentum: must be less than or equal to 1, got '1.5'"):
        resolve(None, None, {}, {"backend": "twosizes", "twosizes.momentum": "1.5"})
    with pytest.raises(SettingsError, match="did you mean twosizes.momentum?"):
        resolve(None, None, {}, {"backend": "twosizes", "twosizes.momentun": "0.5"})
    resolved = resolve(None, None, {"LEOCLR_TWOSIZES__DIM": "5"}, {})
    assert resolved.warnings == ("twosizes.dim (env LEOCLR_TWOSIZES__DIM) has no effect: the backend is moco",)


def test_a_name_that_two_packages_offer_is_refused(install: Install) -> None:
    install("leoclr_other", TWO_SIZES, {"moco": "leoclr_other:TwoSizes"})
    with pytest.raises(SettingsError, match="'moco' .* offered by two packages, leoclr-cli .* and leoclr_other 0.3"):
        resolve(None, None, {}, {})


def test_a_broken_package_only_matters_where_it_is_chosen(install: Install) -> None:
    source = TWO_SIZES.replace("default=64", "default=undefined")
    install("leoclr_broken", source, {"broken": "leoclr_broken:TwoSizes"})
    assert resolve(None, None, {}, {}).settings.backend == "moco"
    with pytest.raises(SettingsError, match="settings of broken .*leoclr_broken 0.3.* name 'undefined' is not defined"):
        resolve(None, None, {}, {"backend": "broken"})


def install_faulty(install: Install, right: str, wrong: str) -> None:
    """Install `TWO_SIZES` as `faulty`, with a part of it that is right exchanged for one that is wrong."""
    assert right in TWO_SIZES
    source, place = TWO_SIZES.replace(right, wrong), "leoclr_faulty"
    install(place, source, {"faulty": f"{place}:TwoSizes"}, {"whole-and-small": f"{place}:POLICY"})


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        ("default=64", "default=0", "dim: its default must be greater than or equal to 1, got 0"),
        ("default=64, ", "", "dim: it needs a default"),
        ("class Settings(", "class Setting(", "leoclr_broken.py has no Settings"),
        ("dim: PositiveCount", "dim", "requires a type annotation"),
    ],
)
def test_wrong_defaults_of_a_package_only_matter_where_it_is_chosen(
    right: str, wrong: str, told: str, install: Install
) -> None:
    install("leoclr_broken", TWO_SIZES.replace(right, wrong), {"broken": "leoclr_broken:TwoSizes"})
    assert resolve(None, None, {}, {}).settings.backend == "moco"
    with pytest.raises(SettingsError) as caught:
        resolve(None, None, {}, {"backend": "broken"})
    assert "broken (leoclr_broken 0.3)" in str(caught.value) and told in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_wrong_defaults_of_a_view_policy_only_matter_where_it_is_chosen(install: Install) -> None:
    source = """
from leoclr.datasets.views import PolicySettings
class Views(PolicySettings):
    crops: int
"""
    install("leoclr_broken", source, {}, {"broken": "leoclr_broken:Views"})
    assert resolve(None, None, {}, {}).settings.backend == "moco"
    with pytest.raises(SettingsError, match="settings of broken .*0.3. are broken: crops: it needs a default"):
        resolve(None, None, {}, {"views": "broken"})


def test_settings_may_come_from_another_file_of_the_package_or_depend_on_what_is_installed(install: Install) -> None:
    site = install("leoclr_several", "", {"several": "leoclr_several.method:TwoSizes"})
    (site / "leoclr_several").mkdir()
    (site / "leoclr_several.py").rename(site / "leoclr_several" / "__init__.py")
    (site / "leoclr_several" / "sizes.py").write_text("DIM = 48\n")
    source = TWO_SIZES.replace(
        "import copy", "import copy\ntry:\n    from .sizes import DIM\nexcept KeyError:\n    DIM = 1"
    )
    (site / "leoclr_several" / "method.py").write_text(source.replace("default=64", "default=DIM"))
    settings = resolve(None, None, {}, {"backend": "several", "views": "pairwise"}).settings
    assert settings.method.model_dump()["dim"] == 48


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        (
            "return Output(loss, None if",
            "return (loss, None if",
            "forward must return Output(loss, embeddings), and returns a",
        ),
        ("return Output(loss,", "return Output(loss[None],", "the loss must be a tensor of one number.* shape (1,)"),
        ("return Output(loss,", "return Output(loss.item(),", "the loss must be a tensor of one number.* is a float"),
        ("return Output(loss,", "return Output(loss.detach(),", "the loss has no gradient: it was detached"),
        ("return Output(loss,", "return Output(loss * float('nan'),", "the loss must be finite, and is nan"),
        ('{"distance": loss.detach()}', '{"distance": 3.0}', "the metric 'distance' must be a tensor of one number"),
        ('{"distance": loss.detach()}', '{"loss": loss.detach()}', "a metric is called 'loss'"),
        ("embeddings.detach()", "embeddings[0]", "Output.embeddings must be (n, dim) or None"),
        (
            '"^predictor"',
            '"^predicter"',
            "the pattern '^predicter' of a parameter group is in the name of no parameter",
        ),
        ('"^predictor"', '"(predictor"', "ParameterGroup('(predictor'): this is no regular expression"),
        (
            "        momentum_update(",
            "        self.register_buffer('grows', torch.zeros(now.step + 2))\n        momentum_update(",
            "the buffer grows is (2,) after a step",
        ),
        (").requires_grad_(False)", ")", "give the copy requires_grad_(False)"),
        (
            '{"target.backbone": self.target.backbone, ',
            '{"goal.backbone": self.target.backbone, ',
            "it is target.backbone",
        ),
        (
            '{"target.backbone": self.target.backbone, "encoder.backbone": self.encoder.backbone}',
            "{}",
            "must name a backbone",
        ),
        ("settings: Settings, facts: Facts)", "settings: Settings)", "TwoSizes.__init__ must take (settings, facts)"),
        ("(Method)", "(torch.nn.Module)", "TwoSizes must be a subclass of leoclr.backends.method.Method"),
    ],
)
def test_what_a_method_gets_wrong_is_told_in_the_words_of_the_contract(
    right: str, wrong: str, told: str, install: Install, tmp_path: Path
) -> None:
    install_faulty(install, right, wrong)
    details = [result.detail for result in run_checks("faulty", tmp_path, only=("loss and gradients",))]
    assert len(details) == bool(told)
    for detail in details:
        assert all(part in detail for part in told.split(".* ")) and len(detail.splitlines()) == 1


def test_a_momentum_copy_that_is_trained_too_is_refused(install: Install, tmp_path: Path) -> None:
    source = TWO_SIZES.replace(").requires_grad_(False)", ")").replace("with torch.no_grad():", "if True:")
    install("leoclr_both", source, {"both": "leoclr_both:TwoSizes"}, {"whole-and-small": "leoclr_both:POLICY"})
    (failed,) = run_checks("both", tmp_path, only=("loss and gradients",))
    assert "give the copy requires_grad_(False)" in failed.detail and "leoclr_both.py, line" in failed.detail


def test_a_buffer_that_is_changed_before_the_backward_pass_is_told_as_such(install: Install, tmp_path: Path) -> None:
    source = TWO_SIZES.replace(
        "        self.momentum =", "        self.register_buffer('seen', torch.ones(()))\n        self.momentum ="
    )
    source = source.replace(
        "loss = torch.stack(losses).mean()",
        "loss = torch.stack(losses).mean() * self.seen\n        self.seen.mul_(0.5)",
    )
    install("leoclr_early", source, {"early": "leoclr_early:TwoSizes"}, {"whole-and-small": "leoclr_early:POLICY"})
    (failed,) = run_checks("early", tmp_path, only=("loss and gradients",))
    assert "a method changes its buffers in after_update" in failed.detail


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        ('{"dim": 8}', '{"dimm": 8}', "small of faulty: dimm: Extra inputs are not permitted"),
        ('"whole-and-small"\n    small', '"no-such"\n    small', "default_views of faulty: no view policy 'no-such'"),
    ],
)
def test_what_a_check_cannot_begin_with_is_refused(
    right: str, wrong: str, told: str, install: Install, tmp_path: Path
) -> None:
    install_faulty(install, right, wrong)
    with pytest.raises(SettingsError, match=told):
        run_checks("faulty", tmp_path)


@pytest.mark.parametrize(
    ("views", "told"),
    [
        ('{"a": View("croop"), "b": View()}, (("a", "b"),)', "kind must be whole or crop, got 'croop'"),
        ('{"a": View(size=0), "b": View()}, (("a", "b"),)', "a share of data.image_size, above 0"),
        ('{"a": View(), "b": View()}, (("a", "c"),)', r"pair \(a, c\) names 'c', no view; there are a, b"),
        ('{"a": View(), "b": View()}, (("a", "a"),)', "a is pulled to itself"),
        ('{"a": View()}, ()', "there are no pairs"),
        (
            '{"a": View(changes={"blurr": 1.0}), "b": View()}, (("a", "b"),)',
            "changes of a: 'blurr' is none; there are .*blur",
        ),
        ('{"a": View(changes={"mean": 1.0}), "b": View()}, (("a", "b"),)', "changes of a: 'mean' is none"),
        (
            '{"a": View(changes={"blur": 3.0}), "b": View()}, (("a", "b"),)',
            "changes of a: blur must be less than .* 1, got 3.0",
        ),
    ],
)
def test_what_a_view_policy_gets_wrong_is_told(views: str, told: str, install: Install) -> None:
    source = f"from leoclr.datasets.views import View, ViewPolicy\nPOLICY = ViewPolicy('wrong', {views})\n"
    install("leoclr_wrong", source, {}, {"wrong": "leoclr_wrong:POLICY"})
    assert resolve(None, None, {}, {}).settings.backend == "moco"
    with pytest.raises(SettingsError, match=told):
        resolve(None, None, {}, {"views": "wrong"})


def test_a_section_that_leoclr_has_is_no_name_for_a_method(install: Install, tmp_path: Path) -> None:
    for name in ("train", "multicrop", "views", "backend"):
        with pytest.raises(SettingsError, match=rf"\[{name}\] is a section of the settings already"):
            write_package(name, tmp_path / name)
    install("leoclr_train", TWO_SIZES, {"train": "leoclr_train:TwoSizes"})
    with pytest.raises(SettingsError, match=r"needs a section \[train\] of the settings, which is leoclr itself's"):
        resolve(None, None, {}, {})


def test_a_method_may_not_be_called_like_a_setting(install: Install) -> None:
    install("leoclr_views", TWO_SIZES, {"views": "leoclr_views:TwoSizes"})
    with pytest.raises(SettingsError, match=r"needs a section \[views\] of the settings, which is leoclr itself's"):
        resolve(None, None, {}, {"backend": "simsiam", "views": "pairwise"})


def test_the_papers_preset_leaves_a_method_its_own_views(two_sizes: Path) -> None:
    found = resolve("imagenet", None, {}, {"backend": "twosizes"})
    assert found.settings.views == "whole-and-small" and found.origins["views"] == "default of twosizes"
    assert resolve("imagenet", None, {}, {}).settings.views == "leoclr"


@pytest.mark.slow
def test_what_is_drawn_from_the_seed_is_no_lost_state(install: Install, tmp_path: Path) -> None:
    """As docs/extending.md advises for what must not depend on the number of processes."""
    source = weighted("torch.Generator().manual_seed(self.seed * 1000 + now.step)").replace(
        "        self.momentum =", "        self.seed = facts.seed\n        self.momentum ="
    )
    install("leoclr_seeded", source, {"seeded": "leoclr_seeded:TwoSizes"}, {"whole-and-small": "leoclr_seeded:POLICY"})
    checks = ("loss and gradients", "two processes equal one", "stopped equals uninterrupted", "checkpoint round trip")
    assert not run_checks("seeded", tmp_path, only=checks)


@pytest.mark.slow
def test_what_draws_by_torchs_generator_is_compared_in_its_state_alone(install: Install, tmp_path: Path) -> None:
    source = weighted("None")
    install("leoclr_draws", source, {"draws": "leoclr_draws:TwoSizes"}, {"whole-and-small": "leoclr_draws:POLICY"})
    assert not run_checks("draws", tmp_path, only=("two processes equal one",))
    drifts = source.replace(
        "        self.momentum =", "        self.register_buffer('codes', torch.ones(4))\n        self.momentum ="
    ).replace("        momentum_update(", "        self.codes.copy_(torch.rand(4))\n        momentum_update(")
    install("leoclr_drift", drifts, {"drifts": "leoclr_drift:TwoSizes"}, {"small-and-whole": "leoclr_drift:POLICY"})
    (failed,) = run_checks("drifts", tmp_path, only=("two processes equal one",))
    assert "codes differs between 2 processes" in failed.detail


def test_what_is_gathered_over_an_epoch_in_python_fails_the_check(install: Install, tmp_path: Path) -> None:
    source = TWO_SIZES.replace(
        "        self.momentum =",
        "        self.seen = []\n        self.register_buffer('count', torch.zeros(()))\n        self.momentum =",
    ).replace(
        "        momentum_update(",
        "        self.seen.append(now.step)\n"
        "        if (now.step + 1) % now.steps_per_epoch == 0:\n"
        "            self.count.fill_(len(self.seen))\n"
        "            self.seen.clear()\n"
        "        momentum_update(",
    )
    install("leoclr_epoch", source, {"epoch": "leoclr_epoch:TwoSizes"}, {"whole-and-small": "leoclr_epoch:POLICY"})
    (failed,) = run_checks("epoch", tmp_path, only=("loss and gradients", "stopped equals uninterrupted"))
    assert failed.name == "stopped equals uninterrupted" and "count" in failed.detail


@pytest.mark.parametrize("kind", ["ValueError", "ZeroDivisionError"])
def test_a_method_that_needs_more_than_two_images_trains_without_an_estimate(
    kind: str, install: Install, tmp_path: Path, make_shards: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    few = "        if len(views['small']) < 4:\n            raise KIND('too few images')\n        losses"
    source = TWO_SIZES.replace("        losses", few.replace("KIND", kind), 1)
    install("leoclr_many", source, {"many": "leoclr_many:TwoSizes"}, {"whole-and-small": "leoclr_many:POLICY"})
    small = ("--backbone", "resnet18", "--set", "encoder.width=16", "--set", "data.image_size=16", "--batch-size", "8")
    data = str(make_shards((16,)))
    with pytest.raises(SystemExit) as ended:
        main(["train", "--backend", "many", "--data", data, "--epochs", "1", "--output", str(tmp_path / "r"), *small])
    assert not ended.value.code
    assert "no estimate of the memory" in (told := capsys.readouterr().err) and "too few images (leoclr_many.py" in told


@pytest.mark.parametrize("default", ["None", "Mode.SOFT"])
def test_a_default_that_no_settings_file_can_say_is_refused(default: str, install: Install) -> None:
    source = TWO_SIZES.replace(
        "class Settings(", "class Mode(enum.Enum):\n    SOFT = 'soft'\n\n\nclass Settings(", 1
    ).replace("import copy\n", "import copy\nimport enum\n", 1)
    source = source.replace("    dim: PositiveCount", f"    odd: Mode | None = {default}\n    dim: PositiveCount", 1)
    install("leoclr_odd", source, {"odd": "leoclr_odd:TwoSizes"}, {"whole-and-small": "leoclr_odd:POLICY"})
    with pytest.raises(SettingsError, match="odd: its default must be a number, text, true, false or a tuple"):
        resolve(None, None, {}, {"backend": "odd"})


def test_what_a_method_raises_is_told_with_its_place(
    install: Install, tmp_path: Path, make_shards: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = "            embeddings = self.encoder(views[anchor + '?'])"
    source = TWO_SIZES.replace("            embeddings = self.encoder(views[anchor])", wrong)
    install("leoclr_raises", source, {"raises": "leoclr_raises:TwoSizes"}, {"whole-and-small": "leoclr_raises:POLICY"})
    line = next(number for number, text in enumerate(source.splitlines(), 1) if text == wrong)
    told = f"KeyError: 'small?' (leoclr_raises.py, line {line}, in forward)"
    assert [result.detail for result in run_checks("raises", tmp_path, only=("loss and gradients",))] == [told]
    small = ("--backbone", "resnet18", "--set", "encoder.width=16", "--set", "data.image_size=16", "--batch-size", "8")
    with pytest.raises(SystemExit) as ended:
        main(
            ["train", "--backend", "raises", "--data", str(make_shards((16,))), "--output", str(tmp_path / "r"), *small]
        )
    assert ended.value.code == 2 and capsys.readouterr().err.splitlines()[-1] == f"error: {told}"


def test_a_method_that_keeps_state_outside_of_buffers_fails_its_check(install: Install, tmp_path: Path) -> None:
    source = TWO_SIZES.replace("(Method):", "(Method):\n    memory = 1.0").replace(
        "loss = torch.stack(losses).mean()",
        "loss = torch.stack(losses).mean() * self.memory\n        self.memory *= 0.9  # lost in a resume",
    )
    place = "leoclr_forgetful"
    install(place, source, {"forgetful": f"{place}:TwoSizes"}, {"whole-and-small": f"{place}:POLICY"})
    failed = run_checks("forgetful", tmp_path, only=("loss and gradients", "stopped equals uninterrupted"))
    assert [result.name for result in failed] == ["stopped equals uninterrupted"]
    assert "keep state in buffers" in failed[0].detail


@pytest.mark.parametrize("name", ["Tiny", "two words", "moco", "class", "-x"])
def test_a_name_that_no_method_can_have_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError):
        write_package(name, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_new_method_is_never_written_over_something(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("text")
    with pytest.raises(SettingsError, match="is not an empty folder"):
        write_package("tiny", tmp_path)


def test_a_new_method_installs_and_trains_as_typed(
    tmp_path: Path, make_shards: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data, site = make_shards((16,)), tmp_path / "installed"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(site),
    ]
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    def leoclr(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "leoclr.cli", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert leoclr("method", "new", "tiny").returncode == 0
    subprocess.run([*pip, "./tiny"], check=True, capture_output=True)
    small = ("--backbone", "resnet18", "--set", "encoder.width=16", "--set", "data.image_size=16", "--batch-size", "8")
    trained = leoclr(
        "train",
        "--backend",
        "tiny",
        "--data",
        str(data),
        *small,
        "--epochs",
        "1",
        "--workers",
        "0",
        "--output",
        "run",
        "--set",
        "tiny.hidden=16",
        "--set",
        "tiny.dim=8",
        "--device",
        "cpu",
    )
    assert trained.returncode == 0, trained.stderr
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["method"] == {"package": "leoclr-tiny", "version": "0.1.0"} and about["settings"]["tiny"]["dim"] == 8
    environment["PYTHONPATH"] = ""
    refused = leoclr("train", "--resume", "run")
    assert refused.returncode == 2 and "method tiny of the package leoclr-tiny 0.1.0" in refused.stderr
    assert leoclr("eval", "knn", "run", "--train-data", str(data), "--data", str(data)).returncode == 0
