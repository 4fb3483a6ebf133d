"""The methods: who is pulled to whom, what gets a gradient, what the queue and the key encoder do."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from leoclr.backends.losses import info_nce, nt_xent
from leoclr.backends.method import Facts, Progress
from leoclr.backends.methods import moco as moco_module
from leoclr.backends.methods import simclr as simclr_module
from leoclr.backends.methods.moco import MoCo
from leoclr.backends.methods.simclr import SimCLR
from leoclr.backends.networks.backbones import Backbone, build_backbone, narrow_convolution
from leoclr.backends.networks.batchnorm import SplitBatchNorm2d, split_batch_norm, sync_batch_norm
from leoclr.backends.networks.encoder import contrastive_encoder
from leoclr.backends.queue import KeyQueue
from leoclr.backends.spread import spread
from leoclr.datasets.views import POLICIES

LEOCLR = POLICIES["leoclr"].pairs


def tiny_backbone(seed: int = 0, norm: type[nn.Module] = nn.Identity) -> Backbone:
    torch.manual_seed(seed)
    layers = (nn.Conv2d(3, 6, 3), norm(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    backbone = cast(Backbone, nn.Sequential(*layers))
    backbone.feature_dim = 6
    return backbone


def facts(norm: type[nn.Module] = nn.Identity, layers: int = 2, hidden: int = 0) -> Facts:
    return Facts(lambda: tiny_backbone(norm=norm), projector=(layers, hidden, 4))


def moco(norm: type[nn.Module] = nn.Identity, **options: Any) -> MoCo:
    options = {"queue": 12, "momentum": 0.9, "temperature": 0.2, "bn_splits": 1} | options
    return MoCo(moco_module.Settings(**options), facts(norm)).double()


def simclr(norm: type[nn.Module] = nn.Identity) -> SimCLR:
    return SimCLR(simclr_module.Settings(temperature=0.2), facts(norm)).double()


def at(step: int) -> Progress:
    return Progress(step, 10, 5)


def views(batch: int = 5, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(batch, 3, 5, 5, generator=generator, dtype=torch.float64) for name in ("x", "x1", "x2")}


@pytest.mark.parametrize(
    ("layers", "hidden", "shapes"),
    [(1, 0, [(4, 6)]), (2, 0, [(6, 6), (4, 6)]), (2, 9, [(9, 6), (4, 9)]), (3, 9, [(9, 6), (9, 9), (4, 9)])],
)
def test_the_projector_is_linear_layers_with_relus_between(
    layers: int, hidden: int, shapes: list[tuple[int, int]]
) -> None:
    encoder = contrastive_encoder(tiny_backbone(), layers, hidden, 4).double()
    linear = cast(nn.Sequential, encoder.projector)[::2]
    assert [tuple(layer.weight.shape) for layer in linear if isinstance(layer, nn.Linear)] == shapes
    expected = encoder.backbone(views()["x"])
    for number, layer in enumerate(linear):
        expected = layer(expected.relu() if number else expected)
    assert torch.allclose(encoder(views()["x"]), expected / expected.norm(dim=1, keepdim=True))


def test_the_leoclr_graph_pulls_both_crops_to_the_original_and_never_to_each_other() -> None:
    policy = POLICIES["leoclr"]
    assert set(policy.pairs) == {("x", "x1"), ("x", "x2")}
    assert {name: view.kind for name, view in policy.views.items()} == {"x": "whole", "x1": "crop", "x2": "crop"}


def test_moco_with_leoclr_views_is_equation_3() -> None:
    backend, images = moco(), views()
    loss = backend(images, LEOCLR, at(0)).loss
    u, (v1, v2) = backend.encoder(images["x"]), (backend.key_encoder(images[name]) for name in ("x1", "x2"))
    expected = sum(info_nce(u, [v], backend.queue.keys, 0.2).item() for v in (v1, v2))
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert moco(reduction="mean")(images, LEOCLR, at(0)).loss.item() == pytest.approx(expected / 2, rel=1e-12)


def test_the_crops_of_an_image_do_not_act_on_each_other_under_simclr() -> None:
    """The gradient with respect to one crop does not depend on the other crop of the same image."""

    def gradient(other: Tensor) -> Tensor:
        images = views() | {"x2": other}
        images["x1"].requires_grad_()
        return torch.autograd.grad(simclr()(images, LEOCLR, at(0)).loss, images["x1"])[0]

    torch.testing.assert_close(gradient(views(seed=1)["x2"]), gradient(views(seed=2)["x2"]), rtol=1e-12, atol=1e-14)


def test_the_crops_of_an_image_do_not_act_on_each_other_under_moco() -> None:
    """The loss is a sum of one term for each crop: what one crop adds does not depend on the other."""
    first, second, other = views()["x1"], views()["x2"], views(seed=1)["x2"]

    def loss(x1: Tensor, x2: Tensor) -> float:
        return float(moco()(views() | {"x1": x1, "x2": x2}, LEOCLR, at(0)).loss.detach())

    changed = views(seed=2)["x1"]
    assert loss(changed, second) - loss(first, second) == pytest.approx(loss(changed, other) - loss(first, other))
    assert abs(loss(changed, second) - loss(first, second)) > 1e-3


def test_keys_get_no_gradient_and_the_original_does() -> None:
    backend = moco()
    images = {name: view.requires_grad_() for name, view in views().items()}
    backend(images, LEOCLR, at(0)).loss.backward()
    assert images["x"].grad is not None and images["x"].grad.abs().max() > 0
    assert images["x1"].grad is None and images["x2"].grad is None
    assert all(parameter.grad is None for parameter in backend.key_encoder.parameters())


def test_simclr_learns_through_every_view() -> None:
    backend = simclr()
    images = {name: view.requires_grad_() for name, view in views().items()}
    backend(images, LEOCLR, at(0)).loss.backward()
    assert all(view.grad is not None and view.grad.abs().max() > 0 for view in images.values())


def test_simclr_with_leoclr_views_is_the_sum_of_its_two_pairs() -> None:
    backend, images = simclr(), views()
    u, v1, v2 = (backend.encoder(images[name]) for name in ("x", "x1", "x2"))
    expected = nt_xent(u, v1, 0.2) + nt_xent(u, v2, 0.2)
    assert backend(images, LEOCLR, at(0)).loss.item() == pytest.approx(expected.item(), rel=1e-12)


def test_the_momentum_update_is_exact() -> None:
    backend = moco()
    with torch.no_grad():
        for parameter in backend.encoder.parameters():
            parameter.add_(1.0)
    before = [parameter.clone() for parameter in backend.key_encoder.parameters()]
    backend.after_update(at(0))
    for now, old, query in zip(backend.key_encoder.parameters(), before, backend.encoder.parameters(), strict=True):
        torch.testing.assert_close(now, 0.9 * old + 0.1 * query, rtol=1e-14, atol=1e-15)


def test_the_queue_is_first_in_first_out_across_the_end_of_the_ring() -> None:
    queue = KeyQueue(5, 2, seed=0)
    history = list(queue.keys.clone())
    for number, count in enumerate((2, 2, 3, 7, 1)):
        keys = torch.full((count, 2), float(number)) + torch.arange(count)[:, None] / 10
        queue.enqueue(keys)
        history = [*history, *keys][-5:]
        head = int(queue.head)
        in_order = torch.cat([queue.keys[head:], queue.keys[:head]])
        torch.testing.assert_close(in_order, torch.stack(history))


@pytest.mark.parametrize(("enqueue", "expected"), [("first", ["x1"]), ("last", ["x2"]), ("all", ["x1", "x2"])])
def test_the_keys_enter_the_queue_after_their_step(enqueue: str, expected: list[str]) -> None:
    backend, images = moco(enqueue=enqueue), views()
    before = backend.queue.keys.clone()
    backend(images, LEOCLR, at(0))
    assert torch.equal(backend.queue.keys, before)  # no key of a batch is among its own negatives
    keys = torch.cat([backend.key_encoder(images[name]) for name in expected])
    backend.after_update(at(0))
    torch.testing.assert_close(backend.queue.keys[: len(keys)], keys)
    assert torch.equal(backend.queue.keys[len(keys) :], before[len(keys) :])


def test_accumulated_micro_batches_see_the_negatives_of_one_step() -> None:
    whole, parts, images = moco(), moco(), views(batch=6)
    full = whole(images, LEOCLR, at(0)).loss
    losses = [
        parts({name: view[start : start + 3] for name, view in images.items()}, LEOCLR, at(0)).loss for start in (0, 3)
    ]
    assert full.item() == pytest.approx(sum(loss.item() for loss in losses) / 2, rel=1e-12)
    whole.after_update(at(0))
    parts.after_update(at(0))
    torch.testing.assert_close(whole.queue.keys, parts.queue.keys)


def test_split_batch_norm_is_batch_norm_of_each_group() -> None:
    torch.manual_seed(0)
    images = torch.randn(12, 3, 4, 4)
    plain, split = nn.Sequential(nn.BatchNorm2d(3)), nn.Sequential(nn.BatchNorm2d(3))
    split_batch_norm(split, 3)
    expected = torch.cat([plain(group) for group in images.chunk(3)])
    torch.testing.assert_close(split(images), expected)
    assert isinstance(split[0], SplitBatchNorm2d) and list(split.state_dict()) == list(plain.state_dict())
    means = torch.stack([group.mean(dim=(0, 2, 3)) for group in images.chunk(3)]).mean(dim=0)
    torch.testing.assert_close(split[0].running_mean, 0.1 * means)


def test_batch_norm_with_an_activation_in_it_is_split_and_synchronised_with_it() -> None:
    """timm's BatchNormAct2d, which is a BatchNorm2d and more."""
    torch.manual_seed(0)
    images = torch.randn(8, 3, 4, 4)
    plain = nn.Sequential(BatchNormAct2d(3))
    split = copy.deepcopy(plain)
    split_batch_norm(split, 4)
    split = copy.deepcopy(split)  # as MoCo's key encoder is one
    expected = torch.cat([copy.deepcopy(plain)(group) for group in images.chunk(4)])
    torch.testing.assert_close(split(images), expected)
    assert split(images).min() == 0 and list(split.state_dict()) == list(plain.state_dict())
    plain(images), plain(images)
    torch.testing.assert_close(split[0].running_mean, plain[0].running_mean, atol=0.01, rtol=0.05)
    torch.testing.assert_close(split.eval()(images), plain.eval()(images), atol=0.05, rtol=0.05)
    synchronised = sync_batch_norm(copy.deepcopy(plain)).eval()
    assert any(isinstance(layer, nn.SyncBatchNorm) for layer in synchronised.modules())
    torch.testing.assert_close(synchronised(images), plain(images))
    assert list(synchronised.state_dict()) == list(plain.state_dict())


def test_shuffled_keys_come_back_in_order() -> None:
    shuffled, plain, images = moco(nn.BatchNorm2d, bn_splits=5), moco(nn.BatchNorm2d), views()
    for backend in (shuffled, plain):
        backend.eval()  # so that a key does not depend on the images beside it
    losses = [backend(images, LEOCLR, at(3)).loss.item() for backend in (shuffled, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


@pytest.mark.parametrize(
    ("norm", "keys", "views_of_simclr"), [(nn.Identity, [10], [15]), (nn.BatchNorm2d, [5, 5], [5, 5, 5])]
)
def test_views_are_encoded_in_one_pass_where_there_are_no_batch_statistics(
    norm: type[nn.Module], keys: list[int], views_of_simclr: list[int]
) -> None:
    backend, end_to_end = moco(norm, bn_splits=5), simclr(norm)
    for encoder, passes, method in (
        (backend.key_encoder, keys, backend),
        (end_to_end.encoder, views_of_simclr, end_to_end),
    ):
        seen: list[int] = []
        encoder.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(len(inputs[0])))
        method(views(), LEOCLR, at(0))
        assert seen == passes


def test_spread_tells_collapse_from_an_even_sphere() -> None:
    torch.manual_seed(0)
    sphere = nn.functional.normalize(torch.randn(2000, 16), dim=1)
    deviation, rank = spread(sphere)
    assert deviation.item() == pytest.approx(1, abs=0.02) and rank.item() > 15.5
    deviation, rank = spread(sphere[:1].repeat(100, 1))
    assert deviation.item() < 1e-6 and rank.item() < 1.01


@pytest.mark.parametrize(
    ("name", "stem", "width", "dimension"),
    [("resnet18", "imagenet", 64, 512), ("resnet18", "cifar", 16, 128), ("resnet34", "cifar", 8, 64)],
)
def test_backbones_give_pooled_features(name: str, stem: str, width: int, dimension: int) -> None:
    backbone = build_backbone(name, stem, width).eval()
    assert backbone.feature_dim == dimension
    assert backbone(torch.zeros(2, 3, 32, 32)).shape == (2, dimension)


def test_any_torchvision_classifier_is_a_backbone() -> None:
    backbone = build_backbone("mobilenet_v3_small").eval()
    assert backbone(torch.zeros(1, 3, 32, 32)).shape == (1, backbone.feature_dim)
    with pytest.raises(ValueError, match="resnet18"):
        build_backbone("resnet19")
    with pytest.raises(ValueError, match="resnet50"):
        build_backbone("resnet50", width=32)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3", "timm:mobilenetv3_small_050", "timm:resnet10t"])
def test_features_in_training_are_those_that_the_name_promises(name: str) -> None:
    backbone = build_backbone(name)
    assert backbone.train()(torch.randn(2, 3, 96, 96)).shape == (2, backbone.feature_dim)
    assert narrow_convolution(backbone, 96) is None


def test_what_no_image_of_a_size_goes_through_is_told() -> None:
    with pytest.raises(ValueError, match="it does not take images of 64 px .*[Ww]rong image height"):
        narrow_convolution(build_backbone("vit_b_32"), 64)
    backbone = build_backbone("resnet18", width=8)
    backbone.feature_dim = 3
    with pytest.raises(ValueError, match=r"shape \(1, 64\) instead of \(1, 3\)"):
        narrow_convolution(backbone, 32)


def test_a_look_at_the_convolutions_leaves_every_part_its_mode() -> None:
    backbone = build_backbone("resnet18", "cifar", 8)
    next(part for part in backbone.modules() if isinstance(part, nn.BatchNorm2d)).eval()
    modes = [part.training for part in backbone.modules()]
    assert narrow_convolution(backbone, 32) is None
    assert [part.training for part in backbone.modules()] == modes


def test_the_cifar_stem_keeps_the_resolution() -> None:
    backbone = build_backbone("resnet18", "cifar", 8)
    shape = backbone.get_submodule("layer1")(backbone.get_submodule("conv1")(torch.zeros(1, 3, 32, 32))).shape
    assert shape == (1, 8, 32, 32)
