"""Detection: AP against figures worked out by hand, training that learns and resumes, and the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torchvision.models.detection import FasterRCNN

from leoclr.backends.networks.backbones import build_backbone
from leoclr.datasets.errors import EvaluationError
from leoclr.datasets.voc import BoxedImages, read_voc
from leoclr.evals.detection import detector as detection
from leoclr.evals.detection.detector import (
    PAPER,
    SMALL,
    DetectionRecipe,
    average_precision,
    detect,
    shortened,
    train_detector,
)
from leoclr.evals.detection.model import build_detector

CPU = torch.device("cpu")
MICRO = DetectionRecipe(8, 2, 0.02, (6, 7), 2, (64,), 16, 200, 20)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Twelve pictures of a red or a blue square on noise, in the layout of PASCAL VOC."""
    root, random = tmp_path / "voc", np.random.default_rng(0)
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    for number in range(12):
        image = Image.fromarray(random.integers(0, 60, (64, 80, 3)).astype(np.uint8))
        left, top = int(random.integers(0, 40)), int(random.integers(0, 24))
        colour = ("red", "blue")[number % 2]
        ImageDraw.Draw(image).rectangle((left, top, left + 35, top + 35), fill=colour)
        image.save(root / "JPEGImages" / f"{number}.png")
        (root / "Annotations" / f"{number}.xml").write_text(
            f"<annotation><object><name>{colour}</name><bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin>"
            f"<xmax>{left + 36}</xmax><ymax>{top + 36}</ymax></bndbox></object></annotation>"
        )
    (root / "ImageSets/Main/trainval.txt").write_text("\n".join(map(str, range(8))))
    (root / "ImageSets/Main/test.txt").write_text("\n".join(map(str, range(8, 12))))
    return root


@pytest.fixture
def splits(voc: Path) -> tuple[BoxedImages, BoxedImages]:
    return read_voc([voc], "trainval", "test")


def micro_detector(seed: int = 0) -> FasterRCNN:
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", "imagenet", 4)
    sizes: dict[str, Any] = {"short_sides": (64,), "regions": 16, "candidates": 200, "proposals": 20}
    return build_detector(backbone, 2, mean=(0.5,) * 3, std=(0.25,) * 3, seed=seed, **sizes)


def found(boxes: list[list[float]], labels: list[int], scores: list[float]) -> dict[str, Any]:
    return {"boxes": np.array(boxes).reshape(-1, 4), "labels": np.array(labels), "scores": np.array(scores)}


def test_average_precision_of_boxes_worked_out_by_hand(splits: tuple[BoxedImages, BoxedImages]) -> None:
    _, test = splits  # two red and two blue squares, one an image
    exact = [found(image.boxes.tolist(), image.labels.tolist(), [0.9]) for image in test.images]
    assert average_precision(test, exact) == {"ap": 1, "ap50": 1, "ap75": 1, "classes": {"blue": 1, "red": 1}}
    nothing = [found([], [], [])] * 4
    assert average_precision(test, nothing)["ap50"] == 0

    # Shifted by 6 of 36 pixels: an overlap of 30/42 = 0.714, so right up to a threshold of 0.70, 5 of the 10.
    shifted = [found((image.boxes + [6, 0, 6, 0]).tolist(), image.labels.tolist(), [0.9]) for image in test.images]
    scores = average_precision(test, shifted)
    assert scores["ap50"] == 1 and scores["ap75"] == 0 and scores["ap"] == pytest.approx(0.5)

    # One of two red squares: recall ends at 0.5, which 51 of the 101 recalls do not exceed.
    half = [exact[0], *[found([], [], [])] * 3]
    assert average_precision(test, half)["classes"] == {"blue": 0, "red": pytest.approx(51 / 101)}


def test_difficult_objects_neither_count_nor_hurt(splits: tuple[BoxedImages, BoxedImages]) -> None:
    _, test = splits
    hard = replace(test.images[0], difficult=np.array([True]))
    marked = replace(test, images=(hard, *test.images[1:]))
    exact = [found(image.boxes.tolist(), image.labels.tolist(), [0.9]) for image in test.images]
    missed = [found([], [], []), *exact[1:]]
    assert average_precision(marked, exact)["ap"] == average_precision(marked, missed)["ap"] == 1
    assert average_precision(test, missed)["ap"] < 1


def test_the_papers_schedule() -> None:
    assert (PAPER.iterations, PAPER.batch_size, PAPER.lr) == (24_000, 16, 0.02)
    assert (PAPER.short_sides[0], PAPER.short_sides[-1]) == (480, 800)
    factors = [PAPER.factor(step) for step in (0, 50, 100, 17_999, 18_000, 21_999, 22_000)]
    assert factors == pytest.approx([0.001, 0.5005, 1, 1, 0.1, 0.1, 0.01])
    assert shortened(SMALL, 100).decays == (75, 90) and shortened(SMALL, 100).warmup == 10


def test_body_and_head_start_from_the_encoder() -> None:
    backbone = build_backbone("resnet18", "imagenet", 4)
    sizes: dict[str, Any] = {"short_sides": (64,), "regions": 16, "candidates": 200, "proposals": 20}
    detector = build_detector(backbone, 2, mean=(0.5,) * 3, std=(0.25,) * 3, seed=0, **sizes)
    images = torch.randn(1, 3, 64, 80)
    body, head = detector.backbone.eval(), detector.roi_heads.box_head.eval()
    features = backbone.eval().get_submodule("layer1")(
        backbone.maxpool(torch.relu(backbone.bn1(backbone.conv1(images))))  # type: ignore[operator]
    )
    for name in ("layer2", "layer3"):
        features = backbone.get_submodule(name)(features)
    assert torch.equal(body(images), features) and features.shape[2:] == (4, 5)
    head.norm = torch.nn.Identity()
    assert torch.equal(head(features), backbone.get_submodule("layer4")(features).mean(dim=(2, 3)))
    assert all(parameter.requires_grad for parameter in detector.parameters())


def test_an_encoder_that_is_no_resnet_with_the_imagenet_stem_is_refused() -> None:
    sizes: dict[str, Any] = {"short_sides": (64,), "regions": 16, "candidates": 200, "proposals": 20}
    for backbone in (build_backbone("resnet18", "cifar", 4), build_backbone("mobilenet_v3_small")):
        with pytest.raises(EvaluationError, match="ResNet with the imagenet stem"):
            build_detector(backbone, 2, mean=(0.5,) * 3, std=(0.25,) * 3, seed=0, **sizes)


def test_training_resumes_to_the_same_weights(splits: tuple[BoxedImages, BoxedImages], tmp_path: Path) -> None:
    train, _ = splits
    whole, parts = micro_detector(), micro_detector()
    train_detector(whole, train, MICRO, seed=3, device=CPU)

    state = tmp_path / "state.safetensors"
    steps = 0

    def stop(count: int) -> None:
        nonlocal steps
        steps += count
        if steps == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_detector(parts, train, MICRO, seed=3, device=CPU, state=state, steps_between_states=2, advance=stop)
    parts = micro_detector()
    before = torch.random.get_rng_state()
    train_detector(parts, train, MICRO, seed=3, device=CPU, state=state, steps_between_states=2)
    assert torch.equal(before, torch.random.get_rng_state())
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name


def test_the_loader_flips_boxes_with_their_images(splits: tuple[BoxedImages, BoxedImages]) -> None:
    batches = detection._Batches(splits[0], 8, seed=0)
    flipped = 0
    for step in range(4):
        batch = batches[step]
        for pixels, target in zip(batch.images, batch.targets, strict=True):
            left, top, right, bottom = target["boxes"][0].int().tolist()
            inside = pixels[:, top:bottom, left:right].float().mean(dim=(1, 2))
            assert inside[0 if target["labels"][0] == 2 else 2] == 255  # red or blue, to the edge
        originals = [image.boxes[0].tolist() for image in splits[0].images]
        flipped += sum(target["boxes"][0].tolist() not in originals for target in batch.targets)
    assert 8 <= flipped <= 24
    keys = [tuple(sorted(float(image.sum()) for image in batches[step].images)) for step in range(2)]
    assert keys[0] == keys[1]  # an epoch holds every image once


@pytest.mark.slow
def test_a_detector_learns(splits: tuple[BoxedImages, BoxedImages]) -> None:
    train, test = splits
    detector = micro_detector()
    untrained = average_precision(test, detect(detector, test, CPU))["ap50"]
    recipe = replace(MICRO, iterations=300, decays=(240, 280), warmup=20, batch_size=4)
    train_detector(detector, train, recipe, seed=0, device=CPU)
    trained = average_precision(test, detect(detector, test, CPU))["ap50"]
    assert untrained < 0.2 and trained > 0.6


@pytest.fixture
def leoclr(command_line: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`leoclr eval detection weights.pth ...` on a micro encoder."""
    monkeypatch.setattr("leoclr.cli.scoring.detection_score.SMALL", MICRO)
    torch.manual_seed(1)
    torch.save(build_backbone("resnet18", "imagenet", 4).state_dict(), tmp_path / "weights.pth")
    return partial(command_line, "eval", "detection", "weights.pth", "--workers", 0, "--preset", "small")


def test_the_command_reports_and_remembers(
    leoclr: Run, voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = leoclr("--data", voc, "-o", "found.json")
    assert code == 0, err
    record = json.loads((tmp_path / "found.json").read_text())
    assert record["results"]["detection"].keys() == {"ap50", "ap", "ap75"}
    assert record["data"]["train"]["samples"] == 8 and record["data"]["test"]["split"] == "test"
    assert "AP50" in out and "8 iterations of 2 images" in out and "pycocotools" in out
    assert "not the paper's ResNet-50" in err

    with monkeypatch.context() as patched:
        patched.setattr("leoclr.cli.scoring.detection_score.train_detector", None)
        code, out, _ = leoclr("--data", voc, "--json")
    assert code == 0 and json.loads(out)["results"] == record["results"]

    code, out, _ = leoclr("--data", voc, "--random", "--json")
    assert code == 0 and json.loads(out)["checkpoint"]["digest"] != record["checkpoint"]["digest"]
    assert "random weights" in json.loads(out)["protocol"][0]


def test_wrong_data_is_one_line(leoclr: Run, tmp_path: Path) -> None:
    for arguments, expected in (((), "--data FOLDER"), (("--data", tmp_path), "layout of PASCAL VOC")):
        code, out, err = leoclr(*arguments)
        assert code == 2 and not out and expected in err.splitlines()[-1] and err.startswith("error: ")
    (tmp_path / "not.tar").write_bytes(b"x" * 2000)
    code, _, err = leoclr("--data", tmp_path / "not.tar")
    assert code == 2 and "cannot be unpacked" in err


def test_an_image_that_cannot_be_decoded_is_told_before_the_training(
    leoclr: Run, voc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leoclr.cli.scoring.detection_score.train_detector", None)
    key = (voc / "ImageSets" / "Main" / "test.txt").read_text().split()[-1]
    (image,) = (voc / "JPEGImages").glob(f"{key}.*")
    image.write_bytes(image.read_bytes()[:-40])  # its header is whole
    code, out, err = leoclr("--data", voc)
    assert code == 2 and not out and err.splitlines()[-1].startswith(f"error: {image}: ")
    assert f"take {key} out of the split" in err
