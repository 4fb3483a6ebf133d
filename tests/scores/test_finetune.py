"""Fine-tuning: it learns, it resumes to the same bits, and the parts of the labels are those that were asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from leoclr.backends.networks.backbones import Backbone, build_backbone
from leoclr.datasets.errors import EvaluationError
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.locate import open_data
from leoclr.evals.accuracy import predictions
from leoclr.evals.classes import own_classes
from leoclr.evals.features.preprocessing import Preprocessing, WholeImage
from leoclr.evals.finetuning.finetune import Diverged, FinetuningRecipe, finetune, network_predictions
from leoclr.evals.finetuning.label_subsets import balanced_subset, label_subset, parse_percent
from leoclr.evals.finetuning.labelled_crops import LabelledCrops
from leoclr.evals.finetuning.supervised import Schedule
from leoclr.evals.work import Work

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
RECIPE = FinetuningRecipe(Schedule(2, "cosine"), backbone_lr=0.01, head_lr=0.3, weight_decay=1e-4, batch_size=16)


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    network = build_backbone("resnet18", "cifar", 8)
    network(torch.randn(32, 3, 16, 16))
    return network.eval().requires_grad_(False)


@pytest.fixture
def index(make_tinted: Callable[..., Path]) -> Index:
    return open_data([str(make_tinted("train", [number % 3 for number in range(48)]))])


@pytest.fixture
def crops(index: Index) -> LabelledCrops:
    return LabelledCrops(index, 16, MEAN, STD, batch_size=16, seed=0)


def tuned(
    backbone: Backbone, crops: LabelledCrops, recipe: FinetuningRecipe = RECIPE, **options: Any
) -> dict[str, Tensor]:
    return finetune(backbone, backbone.feature_dim, crops, recipe, workers=0, **options).state_dict()


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_a_network_learns_and_the_encoder_it_started_from_stays(
    backbone: Backbone, crops: LabelledCrops, make_tinted: Callable[..., Path]
) -> None:
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    generator = torch.get_rng_state()
    longer = replace(RECIPE, schedule=Schedule(15, "cosine"))
    network = finetune(backbone, backbone.feature_dim, crops, longer, workers=0)
    assert same(before, backbone.state_dict()) and torch.equal(generator, torch.get_rng_state())
    assert not same(before, {n.removeprefix("0."): t for n, t in network.state_dict().items() if n.startswith("0.")})
    test = open_data([str(make_tinted("test", [0, 0, 0, 0, 1, 1, 2, 2], seed=9))])
    preprocessing = Preprocessing(WholeImage(16), MEAN, STD)
    found, outputs = network_predictions(network, test, own_classes(test), preprocessing, workers=0)
    assert found.accuracies().keys() == {"top1"} and found.accuracies()["top1"] > 0.8 and outputs.skipped == ()


def test_the_same_seed_gives_the_same_bits_whatever_the_workers(backbone: Backbone, crops: LabelledCrops) -> None:
    first = tuned(backbone, crops)
    again = finetune(backbone, backbone.feature_dim, crops, RECIPE, workers=1).state_dict()
    assert same(first, again)
    assert not same(first, tuned(backbone, replace(crops, seed=1)))


def test_a_resumed_training_ends_with_the_bits_of_an_uninterrupted_one(
    backbone: Backbone, crops: LabelledCrops, tmp_path: Path
) -> None:
    """With dropout, whose draws must not depend on where a session began."""
    state, seen = tmp_path / "state.safetensors", [0]
    dropping = nn.Sequential(backbone, nn.Dropout(0.5))

    def stop(images: int) -> None:
        seen.append(images)
        if sum(seen) > 48:  # in the second epoch
            raise KeyboardInterrupt

    whole = finetune(dropping, backbone.feature_dim, crops, RECIPE, workers=0).state_dict()
    with pytest.raises(KeyboardInterrupt):
        finetune(dropping, backbone.feature_dim, crops, RECIPE, workers=0, state=state, advance=stop)
    assert state.exists()
    seen.clear()
    resumed = finetune(
        dropping, backbone.feature_dim, crops, RECIPE, workers=0, state=state, advance=seen.append
    ).state_dict()
    assert seen[0] == 48 and sum(seen) == 2 * 48 and same(whole, resumed)


@pytest.mark.parametrize(("images", "batch", "steps"), [(40, 25, [20, 20]), (41, 25, [20, 21]), (48, 16, [16] * 3),
                                                       (9, 2, [2, 2, 2, 3]), (3, 1, [3]), (7, 100, [7])])  # fmt: skip
def test_every_label_is_used_in_every_epoch(crops: LabelledCrops, images: int, batch: int, steps: list[int]) -> None:
    few = replace(crops, index=crops.index.subset(np.arange(images)), batch_size=batch)
    assert few.plan.steps_per_epoch == len(steps)
    for epoch in (0, 3):
        parts = [few.plan.step(epoch * len(steps) + step) for step in range(len(steps))]
        assert sorted(len(part.samples) for part in parts) == steps and {part.epoch for part in parts} == {epoch}
        assert sorted(np.concatenate([part.samples for part in parts]).tolist()) == list(range(images))


def test_encoder_and_new_layer_have_rates_of_their_own(backbone: Backbone, crops: LabelledCrops) -> None:
    still = tuned(backbone, crops, replace(RECIPE, backbone_lr=0.0, weight_decay=0.0))
    weights = dict(backbone.named_parameters())
    assert all(torch.equal(still[f"0.{name}"], weight) for name, weight in weights.items())
    moved = tuned(backbone, crops, replace(RECIPE, head_lr=0.0, weight_decay=0.0))
    start = torch.zeros(3, backbone.feature_dim).normal_(0, 0.01, generator=torch.Generator().manual_seed(0))
    assert torch.equal(moved["1.weight"], start) and not moved["1.bias"].any()
    assert any(not torch.equal(moved[f"0.{name}"], weight) for name, weight in weights.items())


def test_a_training_that_diverges_says_so(backbone: Backbone, crops: LabelledCrops) -> None:
    with pytest.raises(Diverged, match="diverged at learning rates 1e.30"):
        tuned(backbone, crops, replace(RECIPE, backbone_lr=1e30, head_lr=1e30))


def test_mean_per_class_weighs_classes_alike() -> None:
    scores = torch.tensor([[2.0, 1, 0], [2, 1, 0], [2, 1, 0], [2, 1, 0], [0, 1, 1]])
    labels = torch.tensor([0, 0, 0, 1, 1])
    assert predictions(scores, labels).mean_per_class() == pytest.approx((1 + 0.5) / 2)
    assert predictions(scores, labels).accuracies()["top1"] == pytest.approx(4 / 5)
    random = np.random.default_rng(0)
    many, truth = torch.from_numpy(random.normal(size=(200, 6))), torch.from_numpy(random.integers(0, 5, 200))
    per_class = [(many[truth == label].argmax(1) == label).double().mean().item() for label in range(5)]
    assert predictions(many, truth).mean_per_class() == pytest.approx(np.mean(per_class))


def test_a_subset_takes_the_share_of_every_class_and_larger_ones_hold_smaller_ones(index: Index) -> None:
    labels = np.repeat([0, 1, 2], [30, 15, 3])
    uneven = replace(index, label=labels)
    tenth, fifth = (balanced_subset(uneven, share, 0).numbers for share in (0.1, 0.2))
    assert np.bincount(labels[tenth]).tolist() == [3, 2, 1] and np.bincount(labels[fifth]).tolist() == [6, 3, 1]
    assert set(tenth) < set(fifth) and list(tenth) == sorted(tenth)
    assert not np.array_equal(fifth, balanced_subset(uneven, 0.2, 1).numbers)
    assert balanced_subset(uneven, 1.0, 0).numbers.tolist() == list(range(48))


def test_a_list_of_names_finds_its_samples(make_tinted: Callable[..., Path], tmp_path: Path) -> None:
    keys = ["n01/n01_10026", "n01/n01_2", "n02/n02_7", "n03_1"]
    index = open_data([str(make_tinted("keys", [0, 0, 1, 2], keys=keys))])
    names = tmp_path / "1percent.txt"
    names.write_text("n03_1.JPEG\nn01_10026.JPEG\n\nn02/n02_7\n")
    found = label_subset(index, str(names), seed=0)
    assert found.numbers.tolist() == [0, 2, 3] and found.share == 0.75
    assert "1percent.txt" in found.protocol and "3 images" in found.protocol


LISTS = {
    "out of step": ("n01_2.JPEG\nn09_5.JPEG\n", "1 names match no sample of the training data: n09_5.JPEG"),
    "another folder": ("n02/n01_2.JPEG\n", "1 names match no sample of the training data: n02/n01_2.JPEG"),
    "two meanings": ("same.png\n", "1 names match several samples of the training data: same.png"),
    "empty": ("\n\n", "the list is empty"),
}


@pytest.mark.parametrize("case", LISTS)
def test_a_list_out_of_step_is_refused(case: str, make_tinted: Callable[..., Path], tmp_path: Path) -> None:
    index = open_data([str(make_tinted("keys", [0, 0, 1], keys=["n01/n01_2", "a/same", "b/same"]))])
    content, expected = LISTS[case]
    (tmp_path / "list.txt").write_text(content)
    with pytest.raises(EvaluationError, match=f"list.txt: .*{expected}"):
        label_subset(index, str(tmp_path / "list.txt"), seed=0)


@pytest.mark.parametrize("text", ["0%", "101%", "-1%", "x%", "nan%"])
def test_shares_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(EvaluationError, match="above 0% and up to 100%"):
        parse_percent(text)
    assert parse_percent("0.5%") == 0.5


def test_work_is_done_once_and_for_its_identity_only(tmp_path: Path) -> None:
    work = Work(tmp_path / "work", {"lr": 0.1, "seed": 0})
    assert work.result() is None and work.state is not None
    work.state.parent.mkdir()
    work.state.write_bytes(b"half done")
    assert work.finish({"top1": 0.1 + 0.2}) == {"top1": 0.1 + 0.2}
    assert not work.state.exists()
    assert Work(tmp_path / "work", {"seed": 0, "lr": 0.1}).result() == {"top1": 0.1 + 0.2}
    assert Work(tmp_path / "work", {"seed": 1, "lr": 0.1}).result() is None
    next((tmp_path / "work").glob("*.json")).write_text("{")
    assert work.result() is None
    nothing = Work(None, {})
    assert nothing.finish({"top1": 1.0}) == {"top1": 1.0} and nothing.result() is None and nothing.state is None
