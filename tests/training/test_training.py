"""Training runs: every method trains, a stopped run goes on bit for bit, and faults end in one line."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from leoclr.cli.config.resolve import differences
from leoclr.cli.config.settings import Settings
from leoclr.cli.run.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from leoclr.cli.run.folder import RunFolder
from leoclr.cli.run.versions import environment
from leoclr.cli.training import data as data_module
from leoclr.cli.training import state
from leoclr.cli.training import trainer as training
from leoclr.cli.training.monitoring.knn_monitor import KnnMonitor
from leoclr.cli.training.optimizers import learning_rate
from leoclr.cli.training.result import TrainResult
from leoclr.cli.training.signals import GracefulStop
from leoclr.cli.training.step import TrainStep
from leoclr.datasets.errors import CheckpointError, DataError, LeoclrError, RunError
from leoclr.datasets.loading.resident import ResidentImages, load_resident
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.scan import build_index

MakeShards = Callable[..., Path]
MakeSettings = Callable[..., Settings]


@pytest.fixture
def settings(tiny_settings: MakeSettings) -> MakeSettings:
    """Two epochs, each step in the metrics."""
    return partial(
        tiny_settings,
        encoder__projector_dim="8",
        optimizer__lr="0.05",
        train__epochs="2",
        run__log_steps="1",
        run__checkpoint_epochs="0",
    )


def train(chosen: Settings, output: Path, resume: bool = False) -> TrainResult:
    return training.train(chosen, output, None, ["test"], resume)


def weights(result: TrainResult) -> str:
    digest = hashlib.sha256()
    for name in ("model", "optimizer"):
        digest.update((Path(result.checkpoint) / f"{name}.safetensors").read_bytes())
    return digest.hexdigest()


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the next runs be asked to stop, as by SIGTERM, after so many steps."""

    def arrange(steps: int) -> None:
        original = training.Trainer._train_step

        def step_then_signal(self: training.Trainer, batch: Any) -> Any:
            result = original(self, batch)
            if self.step + 1 == steps:
                signal.raise_signal(signal.SIGTERM)
            return result

        monkeypatch.setattr(training.Trainer, "_train_step", step_then_signal)

    return arrange


@pytest.mark.parametrize("backend", ["moco", "simclr"])
@pytest.mark.parametrize("views", ["leoclr", "pairwise", "pairwise-symmetric"])
def test_any_view_policy_trains_under_any_backend(
    make_shards: MakeShards, tmp_path: Path, backend: str, views: str, settings: MakeSettings
) -> None:
    run = tmp_path / "run"
    result = train(settings(make_shards((9, 9)), backend=backend, views=views), run)
    assert (result.step, result.steps, result.stopped_by) == (4, 4, 0)
    lines = metrics(run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line["loss"] > 0 and line["embedding_std"] > 0 and line["effective_rank"] >= 1 for line in lines)
    assert json.loads((run / "run.json").read_text())["data"]["samples"] == 18


@pytest.mark.parametrize(("views", "backend"), [("leoclr", "moco"), ("pairwise", "simclr")])
def test_a_stopped_and_resumed_run_ends_with_the_same_bits(
    make_shards: MakeShards,
    tmp_path: Path,
    stop_after: Callable[[int], None],
    views: str,
    backend: str,
    settings: MakeSettings,
) -> None:
    data = make_shards((11, 8))
    chosen = settings(data, views=views, backend=backend, train__epochs="3")
    whole = train(chosen, tmp_path / "whole")
    stop_after(3)  # in the middle of the second epoch
    part = train(chosen, tmp_path / "parts")
    assert (part.step, part.stopped_by) == (3, signal.SIGTERM)
    stop_after(0)
    other_workers = settings(data, views=views, backend=backend, train__epochs="3", run__workers="2")
    resumed = train(other_workers, tmp_path / "parts", resume=True)
    assert resumed.step == whole.step == 6
    assert weights(resumed) == weights(whole)
    losses = [[line["loss"] for line in metrics(tmp_path / name)] for name in ("parts", "whole")]
    assert losses[0] == losses[1]


def test_the_seed_decides_the_weights(make_shards: MakeShards, tmp_path: Path, settings: MakeSettings) -> None:
    data = make_shards((16,))
    runs = [train(settings(data, train__seed=seed), tmp_path / str(n)) for n, seed in enumerate(("0", "0", "1"))]
    assert weights(runs[0]) == weights(runs[1]) != weights(runs[2])


def test_knn_is_scored_while_training_when_there_are_labels(
    make_shards: MakeShards, tmp_path: Path, settings: MakeSettings
) -> None:
    data, val = make_shards((16,)), make_shards((8,), "held-out")
    train(settings(data, data__val=str(val), run__knn_epochs="1"), tmp_path / "run")
    scores = [line.get("knn") for line in metrics(tmp_path / "run")]
    assert scores[0] is None and scores[1] is not None and 0 <= scores[1] <= 1


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (1, (b"3",), "k=16, tau=0.1, 1 queries, 16 in the bank, bank from the training data)"),
        (5, (b"3", b"7"), "5 queries, 16 in the bank, bank from the training data, without 1 of the queries' 2 cl"),
    ],
)
def test_the_knn_score_tells_what_it_is_of(
    images: int,
    labels: tuple[bytes, ...],
    said: str,
    make_shards: MakeShards,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    settings: MakeSettings,
) -> None:
    val = make_shards((images,), "held-out", labels=labels)
    train(settings(make_shards((16,)), data__val=str(val)), tmp_path / "run")
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("size", "decoded_once"), [("16", [32, 24]), ("12", [32])])
def test_knn_of_resident_images_is_that_of_loaded_ones(
    size: str,
    decoded_once: list[int],
    make_shards: MakeShards,
    tmp_path: Path,
    settings: MakeSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Decoded once for all scores, unless the encoder sees them at another size."""
    data, val = make_shards((32,)), make_shards((24,), "held-out")
    decoded: list[int] = []

    def load(index: Index, *rest: Any) -> ResidentImages | None:
        decoded.append(len(index))
        return load_resident(index, *rest)

    monkeypatch.setattr(data_module, "load_resident", load)
    options = {"data__val": str(val), "data__image_size": size, "run__knn_epochs": "1", "train__epochs": "2"}
    chosen = settings(data, data__resident="yes", **options)
    train(chosen, tmp_path / "run")
    scores = [line["knn"] for line in metrics(tmp_path / "run") if "knn" in line]
    assert decoded == decoded_once and len(scores) == 2
    monkeypatch.setattr(KnnMonitor, "_resident", lambda *_: None)
    train(chosen, tmp_path / "loaded")
    assert scores == [line["knn"] for line in metrics(tmp_path / "loaded") if "knn" in line]


def test_the_last_knn_score_is_told_wherever_a_run_stops(
    make_shards: MakeShards, tmp_path: Path, stop_after: Callable[[int], None], settings: MakeSettings
) -> None:
    data, val = make_shards((16,)), make_shards((8,), "held-out")
    stop_after(3)  # in the second epoch, after a line of the log without a score
    stopped = train(settings(data, data__val=str(val), run__knn_epochs="1"), tmp_path / "run")
    scores = [line.get("knn") for line in metrics(tmp_path / "run")]
    assert stopped.step == 3 and scores[2] is None
    assert stopped.knn is not None and stopped.knn == scores[1]


def test_a_request_to_stop_gives_up_a_score(
    make_shards: MakeShards,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    settings: MakeSettings,
) -> None:
    score = KnnMonitor.score

    def score_then_signal(self: KnnMonitor, *arguments: Any) -> tuple[float, str]:
        signal.raise_signal(signal.SIGUSR1)
        return score(self, *arguments)

    monkeypatch.setattr(KnnMonitor, "score", score_then_signal)
    chosen = settings(make_shards((16,)), data__val=str(make_shards((8,), "held-out")), run__knn_epochs="1")
    stopped = train(chosen, tmp_path / "run")
    assert (stopped.step, stopped.stopped_by, stopped.knn) == (2, signal.SIGUSR1, None)
    assert "epoch 1: no k-NN score: the run is asked to stop" in capsys.readouterr().err


def test_the_logged_loss_is_the_mean_of_all_steps_also_of_those_before_a_save(
    make_shards: MakeShards, tmp_path: Path, settings: MakeSettings
) -> None:
    data = make_shards((32,))
    each = train(settings(data, train__epochs="1"), tmp_path / "each")
    saving = {"run__log_steps": "4", "run__checkpoint_minutes": "0", "train__epochs": "1"}
    train(settings(data, **saving), tmp_path / "saving")
    losses = [line["loss"] for line in metrics(tmp_path / "each")]
    (line,) = metrics(tmp_path / "saving")
    assert each.step == 4 == len(losses)
    assert line["loss"] == pytest.approx(sum(losses) / 4, rel=1e-6)


def test_scoring_while_training_changes_nothing(
    make_shards: MakeShards, tmp_path: Path, settings: MakeSettings
) -> None:
    data, val = make_shards((16,)), make_shards((8,), "held-out")
    plain = train(settings(data), tmp_path / "plain")
    scored = train(settings(data, data__val=str(val), run__knn_epochs="1"), tmp_path / "scored")
    one, other = _tensors(plain), _tensors(scored)
    assert all(torch.equal(one[name], other[name]) for name in one)


def _tensors(result: TrainResult) -> dict[str, torch.Tensor]:
    return load_file(Path(result.checkpoint) / "model.safetensors")


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    make_shards: MakeShards,
    tmp_path: Path,
    stop_after: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    settings: MakeSettings,
) -> None:
    data = make_shards((24,))
    chosen = settings(data)
    stop_after(2)
    good = train(chosen, tmp_path / "run")
    stop_after(0)

    def poisoned(self: training.Trainer, batch: Any) -> Any:
        next(self.method.parameters()).data.fill_(float("nan"))
        return original(self, batch)

    original = training.Trainer._train_step
    monkeypatch.setattr(training.Trainer, "_train_step", poisoned)
    with pytest.raises(RunError, match="the loss or its gradient is not finite at step 2"):
        train(chosen, tmp_path / "run", resume=True)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [Path(good.checkpoint).name]


def test_a_state_that_is_none_of_a_run_is_refused(
    make_shards: MakeShards, tmp_path: Path, stop_after: Callable[[int], None], settings: MakeSettings
) -> None:
    chosen, run = settings(make_shards((24,))), tmp_path / "run"
    stop_after(1)
    train(chosen, run)
    stop_after(0)
    (folder,) = (run / "checkpoints").iterdir()
    good = json.loads((folder / "state.json").read_text())
    changes: tuple[dict[str, Any], ...] = (
        {"data": None},
        {"data": {"digest": 3, "samples": 24}},
        {"data": {"digest": good["data"]["digest"], "samples": "many"}},
        {"bad_images": {}},
        {"bad_images": [3]},
        {"scaler": 7},
        {"environment": []},
        {"environment": {"threads": [2]}},
    )
    for change in changes:
        changed = json.dumps(good | change).encode()
        (folder / "state.json").write_bytes(changed)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"]["state.json"] = {"bytes": len(changed), "sha256": hashlib.sha256(changed).hexdigest()}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(CheckpointError, match=f"state.json holds no state of a run .{next(iter(change))}"):
            train(chosen, run, resume=True)


def test_unreadable_images_are_counted_named_and_limited(
    make_shards: MakeShards, tmp_path: Path, settings: MakeSettings
) -> None:
    data = make_shards((20,), bad=(3, 7))
    result = train(settings(data, data__max_bad_samples="0.2"), tmp_path / "run")
    assert result.bad_images == 2
    assert "00003 in " in (tmp_path / "run" / "bad-images.txt").read_text()
    refused = r"more than data.max_bad_samples allows \(1 of 20\): 2 in data-000000.tar; the last: 0000[37]"
    with pytest.raises(DataError, match=refused):
        train(settings(data), tmp_path / "strict")


def test_a_folder_holds_one_run(make_shards: MakeShards, tmp_path: Path, settings: MakeSettings) -> None:
    data = make_shards((16,))
    train(settings(data), tmp_path / "run")
    with pytest.raises(RunError, match="leoclr train --resume"):
        train(settings(data), tmp_path / "run")


@pytest.mark.parametrize(
    ("before", "changes", "words"),
    [
        ({"processes": 2}, {}, "in 1 process, after 2: the same images in the same order; sums may differ in their"),
        ({"processes": 4}, {}, "in 1 process, after 4: .* same order, but BatchNorm with 2 groups in place of 4$"),
        ({"processes": 2}, {"backend": "simclr"}, "in 1 process, after 2: .* BatchNorm with 1 group in place of 2$"),
        ({"threads": 1000}, {}, r"with \d+ threads?, after 1000: sums may differ .*; OMP_NUM_THREADS=1000 keeps them$"),
        ({}, {}, None),
    ],
)
def test_resuming_elsewhere_says_what_is_not_the_same(
    make_shards: MakeShards,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    settings: MakeSettings,
    stop_after: Callable[[int], None],
    before: dict[str, Any],
    changes: dict[str, str],
    words: str | None,
) -> None:
    """With two groups of BatchNorm, or with one for each process."""
    chosen = settings(make_shards((16,)), train__epochs="1", **changes)
    monkeypatch.setattr(state, "environment", lambda device, ranks: environment(device, ranks) | before)
    stop_after(1)
    train(chosen, tmp_path / "run")
    monkeypatch.undo()
    train(chosen, tmp_path / "run", resume=True)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: the run goes on")]
    assert len(lines) == (0 if words is None else 1) and (words is None or re.search(words, lines[0]))


def test_resuming_on_other_data_is_refused(make_shards: MakeShards, tmp_path: Path, settings: MakeSettings) -> None:
    train(settings(make_shards((16,))), tmp_path / "run")
    with pytest.raises(RunError, match="trained on other data"):
        train(settings(make_shards((17,), "other")), tmp_path / "run", resume=True)


@pytest.mark.parametrize("indexed_again", [False, True])
def test_resuming_on_other_bytes_at_the_same_places_is_refused(
    indexed_again: bool,
    make_shards: MakeShards,
    tmp_path: Path,
    stop_after: Callable[[int], None],
    settings: MakeSettings,
) -> None:
    data = make_shards((16, 16))
    first, second = sorted(data.glob("*.tar"))
    stop_after(1)
    train(settings(data), tmp_path / "run")
    (path,) = data.glob("*.index.json")  # made by the run, without checksums
    copied = shutil.copytree(data, tmp_path / "copy", copy_function=shutil.copyfile)  # with other times
    shutil.copytree(tmp_path / "run", tmp_path / "run2")
    assert train(settings(copied), tmp_path / "run2", resume=True).step == 8
    index = Index.load(path)
    content = bytearray(second.read_bytes())
    for offset, length in zip(index.offset[16:], index.length[16:], strict=True):
        content[offset + length // 2] ^= 1
    second.write_bytes(content)
    if indexed_again:
        build_index([first, second]).save(path)
    with pytest.raises(RunError, match=f"{second.name}: sample .* has other bytes than when .* was saved"):
        train(settings(data), tmp_path / "run", resume=True)


def test_names_of_classes_may_be_learnt_later(
    make_shards: MakeShards, tmp_path: Path, stop_after: Callable[[int], None], settings: MakeSettings
) -> None:
    data = make_shards((16,))
    stop_after(1)
    train(settings(data), tmp_path / "run")
    (shard,) = data.glob("*.tar")
    build_index([shard], ("a", "b", "c", "d")).save(next(data.glob("*.index.json")))
    assert train(settings(data), tmp_path / "run", resume=True).step == 4


def test_moved_data_is_remembered(
    make_shards: MakeShards, tmp_path: Path, stop_after: Callable[[int], None], settings: MakeSettings
) -> None:
    data = make_shards((16,), name="old/train")
    make_shards((8,), name="old/val")
    stop_after(1)
    train(settings(data), tmp_path / "run")
    (tmp_path / "old").rename(tmp_path / "new")
    assert train(settings(tmp_path / "new" / "train"), tmp_path / "run", resume=True).step == 4
    noted = RunFolder(tmp_path / "run").read()["data"]
    assert noted["train"] == [str(tmp_path / "new" / "train")] and noted["val"] == [str(tmp_path / "new" / "val")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.batch_size": "64"}, "larger than the data set of 16 images; use --batch-size 16"),
        ({"moco.bn_splits": "3"}, "cannot be split into groups of two images or more for BatchNorm, 3 in number"),
        ({"encoder.backbone": "resnet19"}, "no classifier 'resnet19'"),
        ({"run.trackers": "mlflow"}, "mlflow is not installed: pip install mlflow"),
        ({"run.device": "cuda:99"}, "no CUDA GPU|there is no cuda:99"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_step(
    make_shards: MakeShards, tmp_path: Path, changes: dict[str, str], message: str, settings: MakeSettings
) -> None:
    data = make_shards((16,))
    with pytest.raises(LeoclrError, match=message):
        train(settings(data, **changes), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_queue_longer_than_the_data_is_warned_of(
    make_shards: MakeShards, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: MakeSettings
) -> None:
    train(settings(make_shards((16,)), moco__queue="17"), tmp_path / "run")
    assert "queue of 17 keys is longer than the data set of 16 images" in capsys.readouterr().err


def test_bf16_is_computed_or_refused_never_emulated(
    make_shards: MakeShards, tmp_path: Path, settings: MakeSettings
) -> None:
    chosen = settings(make_shards((16,)), train__precision="bf16")
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        assert train(chosen, tmp_path / "run").step == 4
    else:
        with pytest.raises(RunError, match="does not compute in bf16; take --precision float32"):
            train(chosen, tmp_path / "run")


@pytest.mark.parametrize("keep", ["1", "2"])
def test_what_is_saved_after_damaged_checkpoints_stays(
    make_shards: MakeShards, tmp_path: Path, stop_after: Callable[[int], None], keep: str, settings: MakeSettings
) -> None:
    chosen = settings(make_shards((40,)), run__keep=keep, run__checkpoint_minutes="0")
    stop_after(5)
    train(chosen, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    newest = sorted(checkpoints.iterdir())
    assert len(newest) == int(keep)
    save_checkpoint(checkpoints, 1, *_content(newest[-1]))
    for path in newest:
        (path / "model.safetensors").write_bytes(b"")
    stop_after(2)
    assert train(chosen, tmp_path / "run", resume=True).step == 2
    assert newest_checkpoint(checkpoints)[0] == checkpoints / "step-000000002"
    assert train(chosen, tmp_path / "run", resume=True).step == 5
    assert newest_checkpoint(checkpoints) == (checkpoints / "step-000000005", [])


def _content(checkpoint: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    loaded = load_checkpoint(checkpoint)
    return loaded.tensors, loaded.state


def test_a_run_without_a_sound_checkpoint_does_not_begin_anew(
    make_shards: MakeShards, tmp_path: Path, settings: MakeSettings
) -> None:
    chosen = settings(make_shards((16,)), run__keep="1")
    train(chosen, tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    (checkpoint / "model.safetensors").write_bytes(b"")
    for resume in (False, True):
        with pytest.raises(RunError, match=r"model\.safetensors has 0 bytes .* no checkpoint of .*run is sound"):
            train(chosen, tmp_path / "run", resume=resume)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_new_run_takes_nothing_from_one_that_saved_nothing(
    make_shards: MakeShards, tmp_path: Path, settings: MakeSettings
) -> None:
    RunFolder(tmp_path / "run").write({"settings": {"augmentation": {"executor": "pillow"}}})
    train(settings(make_shards((16,))), tmp_path / "run")
    assert RunFolder(tmp_path / "run").read()["settings"]["augmentation"]["executor"] == "fast"


def test_bad_images_are_the_runs_affair_and_not_the_knn_scores(
    make_shards: MakeShards, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: MakeSettings
) -> None:
    data, val = make_shards((16,), bad=(3,)), make_shards((12,), name="val", bad=(5,))
    chosen = settings(data, data__val=str(val), data__max_bad_samples="1", run__knn_epochs="1")
    assert train(chosen, tmp_path / "run").knn is not None
    assert "11 queries, 15 in the bank, bank from the training data; left out: 2 images that" in capsys.readouterr().err
    broken = settings(
        data, data__val=str(make_shards((4,), name="broken", bad=(0, 1, 2, 3))), data__max_bad_samples="1"
    )
    assert train(broken, tmp_path / "other").knn is None
    assert "epoch 2: no k-NN score: none of the 4 images can be decoded" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory; .*--batch-size"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out of memory; .*--batch-size"),
        (torch.distributed.DistNetworkError("address already in use"), "cannot reach each other"),
    ],
)
def test_what_torch_runs_out_of_is_one_line(
    make_shards: MakeShards,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    message: str,
    settings: MakeSettings,
) -> None:
    def fail(self: TrainStep, pixels: Any, step: int) -> Any:
        raise error

    monkeypatch.setattr(TrainStep, "__call__", fail)
    with pytest.raises(RunError, match=message):
        train(settings(make_shards((16,))), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "simclr", "data__batch_size": "1"}, "a batch of one has none"),
        ({"backend": "simclr", "train__accumulation": "8"}, "a batch of one has none"),
        ({"encoder__backbone": "vit_b_32", "encoder__stem": "imagenet", "encoder__width": "64"}, "images of 16 px"),
    ],
)
def test_what_would_train_nothing_is_refused(
    make_shards: MakeShards, tmp_path: Path, changes: dict[str, str], message: str, settings: MakeSettings
) -> None:
    with pytest.raises(RunError, match=message):
        train(settings(make_shards((16,)), **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("backend", ["moco", "simclr"])
def test_any_seed_trains(make_shards: MakeShards, tmp_path: Path, backend: str, settings: MakeSettings) -> None:
    chosen = settings(make_shards((16,)), train__seed=str(2**63 - 1), backend=backend, train__epochs="1")
    assert train(chosen, tmp_path / "run").step == 2


def test_a_tracker_that_cannot_start_stops_no_run(
    make_shards: MakeShards,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    settings: MakeSettings,
) -> None:
    def fail(self: Accelerator, *arguments: Any, **named: Any) -> None:
        raise OSError("no account")

    monkeypatch.setattr(Accelerator, "init_trackers", fail)
    assert train(settings(make_shards((16,)), run__trackers="tensorboard"), tmp_path / "run").step == 4
    assert "the trackers cannot start and are left out: no account" in capsys.readouterr().err


def test_accumulation_takes_as_many_steps(make_shards: MakeShards, tmp_path: Path, settings: MakeSettings) -> None:
    result = train(settings(make_shards((18,)), train__accumulation="2"), tmp_path / "run")
    assert result.step == 4


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
def test_every_optimizer_resumes(
    make_shards: MakeShards, tmp_path: Path, stop_after: Callable[[int], None], optimizer: str, settings: MakeSettings
) -> None:
    chosen = settings(make_shards((16,)), optimizer__name=optimizer, optimizer__warmup_epochs="1")
    whole = train(chosen, tmp_path / "whole")
    stop_after(1)
    train(chosen, tmp_path / "parts")
    stop_after(0)
    assert weights(train(chosen, tmp_path / "parts", resume=True)) == weights(whole)


def test_the_first_signal_only_asks(capsys: pytest.CaptureFixture[str]) -> None:
    with GracefulStop() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested == signal.SIGINT
    assert "saving" in capsys.readouterr().err


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA error: out of memory"), OSError("no descriptors")])
def test_a_score_that_fails_only_warns(
    error: Exception,
    make_shards: MakeShards,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    settings: MakeSettings,
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr("leoclr.cli.training.monitoring.knn_monitor.extract_features", fail)
    data, val = make_shards((16,)), make_shards((4,), name="val")
    chosen = settings(data, data__val=str(val), run__knn_epochs="1", train__epochs="1")
    assert train(chosen, tmp_path / "run").knn is None
    assert f"epoch 1: no k-NN score: {type(error).__name__}" in capsys.readouterr().err


def test_class_numbers_of_any_size_are_scored_while_training(
    make_shards: MakeShards, tmp_path: Path, settings: MakeSettings
) -> None:
    labels = (b"7", b"734298112", b"-1")
    data, val = (make_shards((count,), name=name, labels=labels) for name, count in (("train", 16), ("val", 6)))
    chosen = settings(data, data__val=str(val), run__knn_epochs="1", train__epochs="1")
    assert train(chosen, tmp_path / "run").knn is not None


def test_a_finished_run_may_be_extended_and_says_by_which_schedule(
    settings: MakeSettings, make_shards: MakeShards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = make_shards((16,)), tmp_path / "run"
    train(settings(data, train__epochs="1", run__log_steps="1"), run)
    longer = settings(data, train__epochs="3", run__log_steps="1")
    assert differences(settings(data, train__epochs="1"), longer, may_extend=True) == []
    assert differences(longer, settings(data, train__epochs="1")) == ["train.epochs: 3 -> 1"]
    result = training.train(longer, run, None, ["test"], True)
    assert result.step == result.steps == 6
    assert "extended from 1 to 3 epochs: after step 2 the learning rate" in capsys.readouterr().err
    about = json.loads((run / "run.json").read_text())
    assert about["settings"]["train"]["epochs"] == 3
    assert about["extensions"] == [{"after_step": 2, "epochs_before": 1, "epochs": 3}]
    rates = [json.loads(line)["lr"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    peak = longer.optimizer.lr
    expected = [learning_rate(step, 2 if step < 2 else 6, 0, peak) for step in range(6)]
    assert rates == pytest.approx(expected)
    training.train(longer, run, None, ["test"], True)  # which changes nothing any more
    assert len(json.loads((run / "run.json").read_text())["extensions"]) == 1
