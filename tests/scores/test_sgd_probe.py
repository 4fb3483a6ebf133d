"""The linear probe by SGD: MoCo's protocol, several rates at once, resumable, on an encoder that stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from leoclr.backends.networks.backbones import Backbone, build_backbone
from leoclr.datasets.errors import EvaluationError
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.locate import open_data
from leoclr.evals.classes import stratified_holdout
from leoclr.evals.features.extract import Features, extract_features
from leoclr.evals.features.preprocessing import Preprocessing, WholeImage
from leoclr.evals.finetuning.labelled_crops import LabelledCrops
from leoclr.evals.finetuning.supervised import Schedule
from leoclr.evals.probes.sgd import SgdProbe, fit_sgd_probe

CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
RATES = (0.01, 1.0, 30.0)
THREE = Schedule(3)


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    network = build_backbone("resnet18", "cifar", 8)
    network(torch.randn(32, 3, 16, 16))
    return network.eval()


@pytest.fixture
def crops(make_tinted: Callable[..., Path]) -> LabelledCrops:
    index = open_data([str(make_tinted("train", [number % 3 for number in range(60)]))])
    return LabelledCrops(index, 16, MEAN, STD, batch_size=16, seed=0)


def held_out(backbone: nn.Module, index: Index) -> Features:
    numbers = stratified_holdout(index.label, 0.2, 0)[1]
    found = extract_features(backbone, index.subset(numbers), Preprocessing(WholeImage(16), MEAN, STD), workers=0)
    return Features(found.features, found.labels, numbers)


def fit(backbone: Backbone, crops: LabelledCrops, **options: Any) -> SgdProbe:
    given: dict[str, Any] = {"schedule": THREE, "workers": 0, **options}
    return fit_sgd_probe(backbone, crops, backbone.feature_dim, **given)


def test_a_probe_is_moco_s_loop_step_by_step(backbone: Backbone, crops: LabelledCrops) -> None:
    """The same by hand: weights from N(0, 0.01), gradients from the formula, momentum, steps at 60 % and 80 %."""
    found = fit(backbone, crops, learning_rates=[3.0], schedule=Schedule(5))
    weight = torch.zeros(3, backbone.feature_dim).normal_(0, 0.01, generator=torch.Generator().manual_seed(0))
    bias, momentum = torch.zeros(3), [torch.zeros(3, backbone.feature_dim), torch.zeros(3)]
    assert crops.plan.steps_per_epoch == 4
    for step, (images, labels, _) in enumerate(crops.batches(0, 20, CPU, 0)):
        rate = 3.0 * {0: 1.0, 1: 1.0, 2: 1.0, 3: 0.1, 4: 0.01}[step // 4]
        with torch.no_grad():
            features = backbone(images)
        errors = (F.softmax(features @ weight.T + bias, dim=1) - F.one_hot(labels, 3)) / len(labels)
        for number, slope in enumerate((errors.T @ features, errors.sum(dim=0))):
            momentum[number] = 0.9 * momentum[number] + slope
        weight, bias = weight - rate * momentum[0], bias - rate * momentum[1]
    np.testing.assert_allclose(found.weight, weight.numpy(), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.bias, bias.numpy(), rtol=1e-3, atol=1e-4)


def test_rates_together_give_the_bits_of_each_alone(backbone: Backbone, crops: LabelledCrops) -> None:
    held = held_out(backbone, crops.index)
    together = fit(backbone, crops, learning_rates=RATES, held=held)
    assert tuple(together.holdout) == RATES and together.learning_rate in RATES
    alone = fit(backbone, crops, learning_rates=[together.learning_rate])
    assert np.array_equal(together.weight, alone.weight) and np.array_equal(together.bias, alone.bias)
    assert alone.holdout == {}


def test_the_choice_is_that_of_layers_that_never_saw_the_holdout(backbone: Backbone, crops: LabelledCrops) -> None:
    """Wrong labels in the hold-out change what is reported of it, and not the layers that it judges."""
    held = held_out(backbone, crops.index)
    honest = fit(backbone, crops, learning_rates=RATES, held=held)
    relabelled = crops.index.label.copy()
    relabelled[held.numbers] = (relabelled[held.numbers] + 1) % 3
    other = fit(backbone, replace(crops, index=replace(crops.index, label=relabelled)), learning_rates=RATES, held=held)
    assert honest.holdout == other.holdout
    assert not np.array_equal(honest.weight, other.weight)  # the layer that is reported learns from all labels


def test_a_resumed_probe_is_that_of_an_uninterrupted_one(
    backbone: Backbone, crops: LabelledCrops, tmp_path: Path
) -> None:
    held, state = held_out(backbone, crops.index), tmp_path / "probe.safetensors"
    whole = fit(backbone, crops, learning_rates=RATES, held=held)
    seen: list[int] = []

    def stop(images: int) -> None:
        seen.append(images)
        if sum(seen) > 60:  # in the second of three epochs
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(backbone, crops, learning_rates=RATES, held=held, state=state, advance=stop)
    seen.clear()
    resumed = fit(backbone, crops, learning_rates=RATES, held=held, state=state, advance=seen.append)
    assert seen[0] == 60 and sum(seen) == 3 * 60 and len(seen) == 1 + 8
    assert np.array_equal(resumed.weight, whole.weight) and resumed.holdout == whole.holdout


def test_a_damaged_state_is_not_taken_up(backbone: Backbone, crops: LabelledCrops, tmp_path: Path) -> None:
    state = tmp_path / "probe.safetensors"
    whole = fit(backbone, crops, state=state)
    state.write_bytes(state.read_bytes()[:-100])
    assert np.array_equal(fit(backbone, crops, state=state).weight, whole.weight)


@pytest.mark.parametrize("change", ["epochs", "shape", "names"])
def test_a_state_of_something_else_is_not_taken_up(
    change: str, backbone: Backbone, crops: LabelledCrops, tmp_path: Path
) -> None:
    state = tmp_path / "probe.safetensors"
    whole = fit(backbone, crops, state=state)
    tensors = load_file(state)
    first = next(name for name in sorted(tensors))
    if change == "shape":
        tensors[first] = torch.zeros(7, 7)
    elif change == "names":
        tensors[f"{first}2"] = tensors.pop(first)
    save_file(tensors, state, {"epochs": "three" if change == "epochs" else "1"})
    assert np.array_equal(fit(backbone, crops, state=state).weight, whole.weight)


class Restless(nn.Module):
    """A frozen network that counts its images in a buffer all the same."""

    def __init__(self, network: Backbone) -> None:
        super().__init__()
        self.network = network
        self.count: Tensor
        self.register_buffer("count", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.count.add_(len(images))
        features: Tensor = self.network(images)
        return features


def test_a_backbone_that_changes_is_noticed(backbone: Backbone, crops: LabelledCrops) -> None:
    with pytest.raises(EvaluationError, match="weights or buffers changed"):
        fit_sgd_probe(Restless(backbone), crops, backbone.feature_dim, schedule=THREE, workers=0)


def test_the_backbone_is_in_evaluation_mode_and_gets_its_mode_back(backbone: Backbone, crops: LabelledCrops) -> None:
    backbone.train()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    state = torch.get_rng_state()
    trained = fit(backbone, crops)
    assert backbone.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    assert np.array_equal(trained.weight, fit(backbone.eval(), crops).weight)


def test_a_rate_that_diverges_is_not_chosen_and_alone_is_an_error(backbone: Backbone, crops: LabelledCrops) -> None:
    held = held_out(backbone, crops.index)
    found = fit(backbone, crops, learning_rates=(1.0, 1e38), held=held)
    assert found.learning_rate == 1.0 and found.holdout[1e38] == 0.0
    with pytest.raises(EvaluationError, match="diverged at every learning rate"):
        fit(backbone, crops, learning_rates=[1e38])


def test_crops_are_a_function_of_seed_epoch_and_sample(crops: LabelledCrops) -> None:
    first = [images for images, _, _ in crops.batches(0, 6, CPU, 0)]
    again = [images for images, _, _ in crops.batches(4, 6, CPU, 1)]
    assert all(torch.equal(a, b) for a, b in zip(first[4:], again, strict=True))
    assert not torch.equal(first[0], first[4])
    _, labels, samples = next(crops.batches(0, 1, CPU, 0))
    assert labels.tolist() == [int(sample) % 3 for sample in samples]


def test_less_data_than_a_batch_is_one_batch(backbone: Backbone, crops: LabelledCrops) -> None:
    small = replace(crops, index=crops.index.subset(np.arange(7)))
    assert small.plan.steps_per_epoch == 1
    assert np.isfinite(fit(backbone, small).weight).all()


@pytest.mark.parametrize(("epochs", "falls"), [(100, (60, 80)), (10, (6, 8)), (5, (3, 4)), (1, ())])
def test_rates_fall_after_three_and_four_fifths(epochs: int, falls: tuple[int, ...]) -> None:
    factors = [Schedule(epochs).factor(epoch) for epoch in range(epochs)]
    assert [epoch for epoch in range(1, epochs) if factors[epoch] != factors[epoch - 1]] == list(falls)
    assert factors[0] == 1.0 and (not falls or factors[-1] == pytest.approx(0.01))
    cosine = Schedule(epochs, "cosine")
    assert cosine.factor(0) == 1.0 and cosine.factor(epochs / 2) == pytest.approx(0.5)
