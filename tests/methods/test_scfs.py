"""SCFS: the terms of the stages beside DINO's loss, against a reference that goes image by image and cell by cell."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from leoclr.backends.method import Facts, Progress
from leoclr.backends.methods import scfs as scfs_module
from leoclr.backends.methods.dino import DINO
from leoclr.backends.methods.scfs import SCFS, cosine_map, halves
from leoclr.backends.settings import Pairs
from leoclr.cli.config.plugins import method_settings
from leoclr.datasets.policies.multicrop import MulticropViews
from leoclr.datasets.views import POLICIES

LEOCLR = POLICIES["leoclr"].pairs
MULTICROP = MulticropViews(small=2).policy().pairs
SYMMETRIC = POLICIES["pairwise-symmetric"].pairs
NOW = Progress(1, 10, 5)
SMALL = {"hidden": 7, "dim": 5, "outputs": 8, "stage_bottleneck": 3, "stage_hidden": 4, "stage_dim": 5}


def scfs(facts: Facts, **options: object) -> SCFS:
    method = SCFS(scfs_module.Settings.model_validate(SMALL | {"stages": (4, 3)} | options), facts).double()
    with torch.no_grad():
        for parameter in method.teacher_heads.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
        method.stage_centre.copy_(torch.linspace(-0.2, 0.2, 10).view(2, 5))
    return method


def views(pairs: Pairs) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sides = {name: 6 if name.startswith("s") else 8 for pair in pairs for name in pair}
    return {name: torch.randn(6, 3, n, n, generator=generator, dtype=torch.float64) for name, n in sides.items()}


def maps_of(backbone: nn.Module, image: Tensor) -> list[Tensor]:
    """Of layer3 and layer4."""
    third = backbone.get_submodule("layer3")(image)
    return [third, backbone.get_submodule("layer4")(third)]


def softmax_ce(target: Tensor, logits: Tensor) -> Tensor:
    return -(target * (logits - logits.logsumexp(dim=1, keepdim=True))).sum(dim=1).mean()


def reference(method: SCFS, images: dict[str, Tensor], large: Pairs, searches: Pairs) -> Tensor:
    """The loss of the stages, from the paper."""
    total = torch.zeros((), dtype=torch.float64)
    for stage in range(2):
        head, teacher_head = method.heads[stage], method.teacher_heads[stage]
        student = {name: maps_of(method.encoder.backbone, image)[stage] for name, image in images.items()}
        teacher = {name: maps_of(method.teacher.backbone, image)[stage].detach() for name, image in images.items()}
        whole, found = [], []
        for anchor, positive in large:
            logits = (teacher_head(teacher[positive]).detach() - method.stage_centre[stage]) / 0.04
            whole.append(softmax_ce(logits.softmax(dim=1), head(student[anchor]) / 0.1))
        for anchor, positive in searches:
            weighted = teacher[positive].clone()
            for image in range(len(weighted)):
                sought = student[anchor][image].detach().mean(dim=(1, 2))
                for row in range(weighted.shape[2]):
                    for column in range(weighted.shape[3]):
                        cell = teacher[positive][image, :, row, column]
                        weighted[image, :, row, column] *= (sought @ cell) / (sought.norm() * cell.norm()).clamp_min(
                            1e-30
                        )
            target = (teacher_head(weighted).detach() / 0.04).softmax(dim=1)
            found.append(softmax_ce(target, head(student[anchor]) / 0.1))
        total = total + (torch.stack(whole).mean() + torch.stack(found).mean()) / 2
    return total


@pytest.mark.parametrize(
    ("pairs", "large", "searches"),
    [
        (MULTICROP, (("x2", "x1"), ("x1", "x2")), (("s1", "x1"), ("s2", "x1"))),
        (LEOCLR, LEOCLR, LEOCLR),
        (SYMMETRIC, SYMMETRIC, SYMMETRIC),
    ],
)
def test_each_stage_adds_the_mean_of_its_two_halves(
    staged_facts: Facts, pairs: Pairs, large: Pairs, searches: Pairs
) -> None:
    method, images = scfs(staged_facts), views(pairs)
    assert halves(pairs) == (list(large), list(searches))
    expected = DINO.forward(method, images, pairs, NOW).loss + reference(method, images, large, searches)
    output = method(images, pairs, NOW)
    torch.testing.assert_close(output.loss, expected)
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    for ours, theirs in zip(
        torch.autograd.grad(output.loss, trained), torch.autograd.grad(expected, trained), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    assert 0 < output.metrics["map_entropy"] <= 1 and output.metrics["stage_loss"] > 0


def test_what_is_searched_gets_no_gradient_and_the_teacher_follows(staged_facts: Facts) -> None:
    method = scfs(staged_facts, momentum=0.9, final_momentum=0.9)
    images = {name: view.requires_grad_() for name, view in views(LEOCLR).items()}
    method(images, LEOCLR, NOW).loss.backward()
    assert images["x"].grad is not None and images["x1"].grad is None and images["x2"].grad is None
    assert all(parameter.grad is None for parameter in method.teacher_heads.parameters())
    before = [parameter.clone() for parameter in method.teacher_heads.parameters()]
    centre, logits = method.stage_centre.clone(), []
    for name in ("x1", "x2"):
        maps = maps_of(method.teacher.backbone, images[name].detach())
        logits.append(torch.stack([head(each) for head, each in zip(method.teacher_heads, maps, strict=True)]))
    method.after_update(NOW)
    torch.testing.assert_close(method.stage_centre, 0.9 * centre + 0.1 * torch.cat(logits, dim=1).mean(dim=1).detach())
    for now, old, own in zip(method.teacher_heads.parameters(), before, method.heads.parameters(), strict=True):
        torch.testing.assert_close(now, 0.9 * old + 0.1 * own)


def test_a_search_finds_the_cells_that_show_the_same() -> None:
    searched = torch.zeros(1, 2, 1, 3, dtype=torch.float64)
    searched[0, 0], searched[0, 1] = torch.tensor([2.0, 0.0, 1.0]), torch.tensor([0.0, 5.0, 1.0])
    crop = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    crop[0, 0] = 3.0
    found = cosine_map(crop, searched)
    torch.testing.assert_close(found, torch.tensor([[[1.0, 0.0, math.sqrt(0.5)]]], dtype=torch.float64))


def test_a_backbone_without_stages_is_refused_in_one_line(tiny_facts: Facts) -> None:
    with pytest.raises(
        ValueError, match="needs the feature maps of a ResNet's stages or a ViT's blocks, and has no layer3"
    ):
        scfs(tiny_facts)


def test_losses_are_float32_under_autocast(staged_facts: Facts) -> None:
    method = scfs(staged_facts).float()
    with torch.autocast("cpu", torch.bfloat16):
        output = method({name: view.float() for name, view in views(LEOCLR).items()}, LEOCLR, NOW)
    assert output.loss.dtype == output.metrics["stage_loss"].dtype == torch.float32


def test_settings_that_extend_another_methods_are_read_from_both_files() -> None:
    settings = method_settings("scfs")
    assert settings.default_views == "multicrop" and {"centre_momentum", "stages"} <= settings.model_fields.keys()
