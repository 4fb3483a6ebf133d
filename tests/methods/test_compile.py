"""`train.compile`: the same weights by the same names, but for the last bits of sums."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from leoclr.cli.config.settings import Settings
from leoclr.cli.run.devices import failed_compilation
from leoclr.cli.training import build
from leoclr.cli.training import trainer as training
from leoclr.datasets.errors import RunError

MakeSettings = Callable[..., Settings]


@pytest.fixture
def settings(tiny_settings: MakeSettings) -> MakeSettings:
    """One epoch."""
    return partial(tiny_settings, train__epochs="1", run__checkpoint_epochs="0")


@pytest.mark.parametrize("backend", ["moco", "simclr"])
def test_compiled_weights_keep_their_names(backend: str, settings: MakeSettings) -> None:
    plain, compiled = (
        build.method(settings("unused", **{"backend": backend, "train.compile": choice}), torch.device("cpu"), images=1)
        for choice in ("false", "true")
    )
    assert list(plain.state_dict()) == list(compiled.state_dict())
    assert compiled.get_submodule("encoder")._compiled_call_impl is not None
    assert plain.get_submodule("encoder")._compiled_call_impl is None


def test_torchs_compilation_errors_become_one_line(
    make_shards: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: MakeSettings
) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def fail(*_: object) -> None:
        raise TorchDynamoException("no C++ compiler\nand much more")

    monkeypatch.setattr(training.Trainer, "_train_step", fail)
    with pytest.raises(RunError, match=r"cannot be compiled here; take --no-compile \(no C\+\+ compiler\)"):
        training.train(settings(make_shards((8,))), tmp_path / "run", None, ["test"], False)
    assert failed_compilation(RuntimeError("something else")) is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler has many of its own
def test_a_compiled_run_ends_where_the_other_does(
    make_shards: Callable[..., Path], tmp_path: Path, settings: MakeSettings
) -> None:
    data = make_shards((16,))
    ended = {}
    for choice in ("false", "true"):
        result = training.train(settings(data, **{"train.compile": choice}), tmp_path / choice, None, ["test"], False)
        ended[choice] = load_file(Path(result.checkpoint) / "model.safetensors")
    for name, expected in ended["false"].items():
        torch.testing.assert_close(ended["true"][name], expected, rtol=1e-3, atol=1e-4, msg=name)
