"""OBoW: bags of words, their prediction and the vocabulary, against a reference that goes cell by cell."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from leoclr.backends.method import Facts, Progress
from leoclr.backends.methods import obow as obow_module
from leoclr.backends.methods.obow import OBoW, local_features, students_and_teachers, within
from leoclr.backends.settings import Pairs, RunFacts
from leoclr.datasets.policies.multicrop import MulticropViews
from leoclr.datasets.policies.obow import OBoWViews
from leoclr.datasets.views import POLICIES

LEOCLR = POLICIES["leoclr"].pairs
OWN = OBoWViews(patches=1).policy().pairs
MULTICROP = MulticropViews(small=1).policy().pairs
PAIRWISE = POLICIES["pairwise"].pairs
NOW = Progress(3, 10, 5)


def obow(facts: Facts, **options: object) -> OBoW:
    method = OBoW(obow_module.Settings.model_validate({"words": 9} | options), facts).double()
    for vocabulary, distance in zip(method._vocabularies(), (2.0, 3.0), strict=True):
        vocabulary.distance.fill_(distance)
    return method


def views(pairs: Pairs) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sides = {name: 6 if name.startswith("s") else 9 for pair in pairs for name in pair}
    return {name: torch.randn(6, 3, n, n, generator=generator, dtype=torch.float64) for name, n in sides.items()}


def maps_of(method: OBoW, image: Tensor) -> list[Tensor]:
    """The teacher's, of layer3 and layer4: 7 x 7 and 5 x 5 cells, of which 5 x 5 and 3 x 3 are looked at."""
    backbone = method.teacher.backbone
    third = backbone.get_submodule("layer3")(image)
    return [maps.detach()[:, :, 1:-1, 1:-1] for maps in (third, backbone.get_submodule("layer4")(third))]


def bag_of(cells: Tensor, words: Tensor, sharpness: float) -> list[float]:
    """Of one image: cells `(channels, height, width)`."""
    best = [0.0] * len(words)
    for cell in cells.flatten(1).T:
        codes = [math.exp(-sharpness * float(((cell - word) ** 2).sum())) for word in words]
        best = [max(old, code / sum(codes)) for old, code in zip(best, codes, strict=True)]
    return [value / sum(best) for value in best]


def divergence(method: OBoW, student: Tensor, teacher: Tensor) -> Tensor:
    """The mean over stages of KL(bag, softmax)."""
    losses = []
    maps = maps_of(method, teacher)
    for cells, vocabulary, generator in zip(maps, method._vocabularies(), method.generators, strict=True):
        words = vocabulary.keys
        bags = torch.tensor([bag_of(image, words, 15 / float(vocabulary.distance)) for image in cells]).double()
        weights = generator(words / words.norm(dim=1, keepdim=True).clamp_min(1e-12))
        logits = 8 * method.encoder.backbone(student) @ (weights / weights.norm(dim=1, keepdim=True)).T
        log_shares = logits - logits.logsumexp(dim=1, keepdim=True)
        losses.append((torch.special.xlogy(bags, bags) - bags * log_shares).sum(dim=1).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize(
    ("pairs", "sizes"),
    [
        (OWN, [[("x1", "x"), ("x2", "x")], [("s1", "x")]]),
        (LEOCLR, [[("x1", "x"), ("x2", "x")]]),
        (PAIRWISE, [[("x1", "x2")]]),
        (MULTICROP, [[("x2", "x1"), ("x1", "x2")], [("s1", "x1"), ("s1", "x2")]]),
    ],
)
def test_students_predict_the_bags_that_the_teacher_sees(
    staged_facts: Facts, pairs: Pairs, sizes: list[list[tuple[str, str]]]
) -> None:
    """The mean over views of one size, the sum over sizes; the original is the teacher's under LeOCLR's views too."""
    assert set(students_and_teachers(pairs)) == {couple for size in sizes for couple in size}
    method, images = obow(staged_facts), views(pairs)
    terms = [torch.stack([divergence(method, images[s], images[t]) for s, t in size]).mean() for size in sizes]
    expected, output = torch.stack(terms).sum(), method(images, pairs, NOW)
    torch.testing.assert_close(output.loss, expected)
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    for ours, theirs in zip(
        torch.autograd.grad(output.loss, trained), torch.autograd.grad(expected, trained), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_what_the_teacher_sees_gets_no_gradient(staged_facts: Facts) -> None:
    method = obow(staged_facts)
    images = {name: view.requires_grad_() for name, view in views(LEOCLR).items()}
    method(images, LEOCLR, NOW).loss.backward()
    assert images["x"].grad is None and images["x1"].grad is not None and images["x2"].grad is not None
    assert all(parameter.grad is None for parameter in method.teacher.parameters())


def test_the_vocabulary_the_distance_and_the_teacher_move_after_the_step(staged_facts: Facts) -> None:
    method, images = obow(staged_facts, momentum=0.9, final_momentum=0.9), views(LEOCLR)
    before = [(vocabulary.keys.clone(), float(vocabulary.distance)) for vocabulary in method._vocabularies()]
    weight = method.teacher.backbone.get_parameter("layer3.0.weight").clone()
    with torch.no_grad():
        method.encoder.backbone.get_parameter("layer3.0.weight").add_(1.0)
    maps = maps_of(method, images["x"])
    method(images, LEOCLR, NOW)
    assert all(torch.equal(v.keys, words) for v, (words, _) in zip(method._vocabularies(), before, strict=True))
    method.after_update(NOW)
    places = torch.rand(2, 6, generator=torch.Generator().manual_seed(NOW.step))
    for number, (vocabulary, (words, distance)) in enumerate(zip(method._vocabularies(), before, strict=True)):
        nearest = torch.cdist(maps[number].flatten(2).transpose(1, 2), words).square().amin(dim=2).mean()
        assert float(vocabulary.distance) == pytest.approx(0.99 * distance + 0.01 * float(nearest))
        torch.testing.assert_close(vocabulary.keys[6:], words[6:])
        for image in range(6):
            side = maps[number].shape[3] - 2  # places of a square of 3 x 3
            row, column = divmod(int(places[number, image] * side * side), side)
            square = maps[number][image, :, row : row + 3, column : column + 3]
            torch.testing.assert_close(vocabulary.keys[image], square.mean(dim=(1, 2)))
    moved = method.teacher.backbone.get_parameter("layer3.0.weight")
    torch.testing.assert_close(moved, weight + 0.1)


def test_small_maps_keep_their_rim_and_are_averaged_whole() -> None:
    maps = torch.rand(2, 3, 2, 2)
    assert within(maps) is maps
    torch.testing.assert_close(local_features(maps, torch.tensor([0.0, 0.99])), maps.mean(dim=(2, 3)))


def test_health_tells_one_bag_for_all_images(staged_facts: Facts) -> None:
    method, images = obow(staged_facts), views(LEOCLR)
    healthy = method(images, LEOCLR, NOW).metrics
    assert 0 < healthy["bag_entropy"] < healthy["batch_entropy"] < 1
    images["x"] = images["x"][:1].expand(6, -1, -1, -1)
    collapsed = method(images, LEOCLR, NOW).metrics
    assert collapsed["bag_entropy"].item() == pytest.approx(collapsed["batch_entropy"].item())


def test_bags_are_float32_under_autocast(staged_facts: Facts) -> None:
    method = obow(staged_facts).float()
    images = {name: view.float() for name, view in views(LEOCLR).items()}
    with torch.autocast("cpu", torch.bfloat16):
        loss = method(images, LEOCLR, NOW).loss
        bags = method._bags({"x": images["x"]}, NOW)["x"]
    assert loss.dtype == torch.float32 and all(bag.dtype == torch.float32 for bag in bags)


def test_the_side_of_the_teacher_costs_one_pass() -> None:
    costs = {name: ({**POLICIES, "obow": OBoWViews().policy()})[name].pairs for name in ("leoclr", "pairwise", "obow")}
    facts = {name: RunFacts((), pairs, images=100, micro=4) for name, pairs in costs.items()}
    found = {name: obow_module.Settings().forward_passes(each) for name, each in facts.items()}
    assert found == {"leoclr": 7, "pairwise": 4, "obow": 22}
