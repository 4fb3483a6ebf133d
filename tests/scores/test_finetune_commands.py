"""`leoclr eval semisup`, `label-curve`, `transfer`, `linear --protocol`: from a run folder to a table and a record."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from leoclr.backends.networks.backbones import build_backbone
from leoclr.cli.config.settings import Settings
from leoclr.cli.run.checkpoint import save_checkpoint
from leoclr.cli.run.folder import RunFolder
from leoclr.cli.scoring.finetuning import label_recipe
from leoclr.cli.scoring.transfer_data import data_set_name, transfer_data
from leoclr.datasets.errors import DataError, EvaluationError
from leoclr.datasets.packing.arrangement import arrange
from leoclr.datasets.packing.sources import open_source
from leoclr.datasets.shards.index import Index
from leoclr.evals.finetuning.hyperparameters import (
    LEARNING_RATES,
    WEIGHT_DECAYS,
    GridPoint,
    best,
    edges,
    grid,
    logarithmic,
)

SETTINGS = Settings.model_validate(
    {"data": {"image_size": 16}, "encoder": {"backbone": "resnet18", "stem": "cifar", "width": 16}}
).model_dump(mode="json")
QUICK = ("--epochs", 1, "--train-batch", 16, "--workers", 0, "--backbone-lr", 0.01, "--head-lr", 0.3)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def data(tmp_path: Path, make_tinted: Callable[..., Path]) -> Path:
    make_tinted("data/train", [number % 3 for number in range(60)], seed=1)
    make_tinted("data/test", [0, 1, 2, 0, 0, 0] * 4, seed=2)
    return tmp_path / "data"


@pytest.fixture
def make_run(tmp_path: Path, data: Path) -> Callable[..., Path]:
    def make(name: str = "first", seed: int = 0, broken: bool = False) -> Path:
        torch.manual_seed(seed)
        backbone = build_backbone("resnet18", "cifar", 16)
        backbone(torch.randn(16, 3, 16, 16))
        if broken:
            torch.nn.init.constant_(backbone.get_parameter("layer4.1.bn2.bias"), float("nan"))
        folder = RunFolder(tmp_path / "runs" / name)
        sources = {"train": [str(data / "train")], "val": []}
        folder.write({"settings": SETTINGS, "data": sources, "started": "2026-01-01T00:00:00+00:00"})
        model = {f"encoder.backbone.{key}": tensor for key, tensor in backbone.state_dict().items()}
        save_checkpoint(folder.checkpoints, 5, {"model": model}, {"settings": SETTINGS})
        return folder.path

    return make


@pytest.fixture
def leoclr(command_line: Run) -> Run:
    return partial(command_line, "eval")


def record(folder: Path, kind: str) -> dict[str, Any]:
    (path,) = (folder / "evals").glob(f"{kind}-*.json")
    return dict(json.loads(path.read_text()))


def test_linear_by_sgd_tells_its_protocol_and_is_not_done_twice(leoclr: Run, make_run: Callable[..., Path]) -> None:
    run = make_run()
    arguments = ("linear", run, "--protocol", "sgd", "--lr", 1, "--lr", 30, "--epochs", 2, "--train-batch", 16)
    code, out, _ = leoclr(*arguments, "--seed", 3)
    assert code == 0 and "linear probe by SGD" in out and "per class" not in out
    found = record(run, "linear")
    protocol = " ".join(found["protocol"])
    assert (
        "momentum 0.9" in protocol and "x 0.1 at 1.2 and 1.6" in protocol and "learning rate out of 1, 30" in protocol
    )
    assert "random crops of 0.08-1 of the area to 16 px" in protocol and "seed 3" in protocol
    assert found["details"]["backbone_unchanged"] and len(found["details"]["holdout"]) == 2
    (state,) = (run / "evals" / "work").glob("*.safetensors")
    written = state.stat().st_mtime_ns
    assert leoclr(*arguments, "--seed", 3)[0] == 0
    assert state.stat().st_mtime_ns == written and record(run, "linear")["results"] == found["results"]


def test_the_test_set_has_no_influence_on_what_is_chosen(
    leoclr: Run, make_run: Callable[..., Path], make_tinted: Callable[..., Path]
) -> None:
    run = make_run()
    wrong = make_tinted("wrong", [1, 2, 0, 1, 1, 1] * 4, seed=2)
    sgd = ("linear", run, "--protocol", "sgd", "--lr", 0.01, "--lr", 30, "--epochs", 1, "--train-batch", 16)
    honest, other = (json.loads(leoclr(*sgd, *extra, "--json")[1]) for extra in ((), ("--data", wrong)))
    assert honest["details"] == other["details"] and honest["data"] != other["data"]
    transfer = ("transfer", run, "--data", "data", "--lr", 0.001, "--lr", 0.1, "--weight-decay", 0, *QUICK[:6])
    honest, other = (json.loads(leoclr(*transfer, *extra, "--json")[1]) for extra in ((), ("--test-data", wrong)))
    assert honest["details"]["grid"] == other["details"]["grid"]
    assert honest["details"]["learning_rate"] == other["details"]["learning_rate"]


def test_lbfgs_agrees_with_scikit_learn(leoclr: Run, make_run: Callable[..., Path]) -> None:
    run = make_run()
    expected, found = (
        json.loads(leoclr("linear", run, "--protocol", p, "--json")[1]) for p in ("scikit-learn", "lbfgs")
    )
    assert found["details"]["c"] == expected["details"]["c"]
    assert found["results"]["linear"]["top1"] == pytest.approx(expected["results"]["linear"]["top1"], abs=0.05)
    assert "computed by torch" in " ".join(found["protocol"])


def test_semisup_by_share_and_by_list(leoclr: Run, make_run: Callable[..., Path], tmp_path: Path, data: Path) -> None:
    run = make_run()
    code, out, _ = leoclr("semisup", run, "--labels", "20%", *QUICK)
    assert code == 0 and "fine-tuned, 12 labels" in out and "per class %" in out
    assert "all 12 images each epoch, in 1 step of 12" in out
    found = record(run, "semisup")
    protocol = " ".join(found["protocol"])
    assert "labels of 20 % of each class, 12 images (seed 0)" in protocol and "0.01 (encoder) and 0.3" in protocol
    assert "fine-tuned from its weights" in protocol and "1 epoch, x" in protocol
    assert found["data"]["train"]["digest"] == Index.load(data / "train" / "data.index.json").digest

    (tmp_path / "names.txt").write_text("".join(f"{number:05d}.png\n" for number in range(9)))
    listed = json.loads(leoclr("semisup", run, "--labels", "names.txt", *QUICK, "--json")[1])
    assert listed["details"]["labels"] == 9 and listed["results"].keys() == {"finetuned"}


def test_test_images_that_a_fine_tuned_network_is_not_scored_on_are_noted(
    leoclr: Run, make_run: Callable[..., Path], make_shards: Callable[..., Path]
) -> None:
    test = make_shards((1000,), "damaged", classes=3, bad=(7,))
    for _ in range(2):  # the second time from what is kept
        code, out, err = leoclr("semisup", make_run(), "--labels", "20%", "--data", test, *QUICK, "--json")
        assert code == 0, err
        assert "test data: 1 of 1,000 images left out, 00007" in err
        assert "1 of 1,000 images left out" in " ".join(json.loads(out)["notes"])


def test_the_paper_s_epochs_are_the_defaults() -> None:

    one, ten = label_recipe(0.01, 500, None, None, None, 256), label_recipe(0.1, 500, None, None, None, 256)
    assert (one.schedule.epochs, ten.schedule.epochs) == (60, 30)
    assert one.head_lr > one.backbone_lr > 0 and label_recipe(0.01, 500, 5, 0.0, 0.1, 8).backbone_lr == 0.0


def test_a_curve_over_labels_is_drawn_and_its_points_are_done_once(leoclr: Run, make_run: Callable[..., Path]) -> None:
    first, second = make_run("first"), make_run("second", seed=1)
    single = json.loads(leoclr("semisup", first, "--labels", "50%", *QUICK, "--json")[1])
    two = ("--labels", "50%", "--labels", "10%", *QUICK)
    code, out, _ = leoclr("label-curve", first, second, *two, "-o", "curve.json")
    assert code == 0 and "first top-1 %" in out and "second top-1 %" in out
    found = json.loads(Path("curve.json").read_text())
    results = [curve["results"] for curve in found["curves"]]
    assert [list(result) for result in results] == [["10%", "50%"]] * 2
    assert results[0]["50%"] == single["results"]["finetuned"]
    assert found["curves"][0]["details"]["points"]["50%"] == single["details"]["training"]  # its seconds too
    with Image.open("curve.png") as picture:
        assert picture.size[0] >= 800 and len(picture.getcolors(1 << 20) or ()) > 5
    work = {path: path.stat().st_mtime_ns for path in first.glob("evals/work/*")}
    assert len(work) == 2 and all(path.suffix == ".json" for path in work)
    assert found["comparisons"][0]["tests"].keys() == {"10%", "50%"} and "McNemar" in out
    (own,) = second.glob("evals/label-curve-*.json")  # each run has its own curve
    assert json.loads(own.read_text())["results"] == results[1]
    again = leoclr("label-curve", first, *two, "--labels", "100%", "--json")[1]
    assert json.loads(again)["curves"][0]["results"].items() >= results[0].items()
    assert all(path.stat().st_mtime_ns == written for path, written in work.items())
    assert list(first.glob("evals/label-curve-*.png"))


def test_shares_of_the_same_images_are_one_point(leoclr: Run, make_run: Callable[..., Path]) -> None:
    code, out, err = leoclr("label-curve", make_run(), "--labels", "1%", "--labels", "2%", "--labels", "50%", *QUICK)
    assert code == 0 and "1 %, 2 %" in out and "1 % and 2 % of the labels are the same 3 images" in err


def test_transfer_searches_then_trains_on_all(leoclr: Run, make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run()
    arguments = ("transfer", run, "--data", tmp_path / "data", "--lr", 0.01, "--lr", 1e30, "--weight-decay", 0)
    code, out, err = leoclr(*arguments, "--weight-decay", 1e-4, "--metric", "mean-per-class", *QUICK[:6])
    assert (
        code == 0
        and f"{tmp_path.name} test, fine-tuned" in out
        and "search 4 of 4: lr 1e+30, weight decay 0.0001: diverged" in err
    )
    found = record(run, "transfer")
    assert [point["mean_per_class"] is None for point in found["details"]["grid"]] == [False, False, True, True]
    assert found["details"]["learning_rate"] == 0.01 and found["details"]["training"]["images"] == 60
    assert found["results"]["finetuned"].keys() == {
        f"{metric}{half}" for metric in ("top1", "mean_per_class") for half in ("", "_image_half_width")
    }
    assert "reported with: per class accuracy" in " ".join(found["protocol"])
    assert len(list((run / "evals" / "work").glob("*.json"))) == 5
    assert not list((run / "evals" / "work").glob("*.safetensors"))[4:]


def test_transfer_by_a_linear_probe(leoclr: Run, make_run: Callable[..., Path], data: Path) -> None:
    run = make_run()
    data.rename(data.with_name("birds"))
    code, out, _ = leoclr("transfer", run, "--data", "birds", "--mode", "linear", "--metric", "mean-per-class")
    assert code == 0 and "birds test, linear probe" in out and "per class %" in out
    found = record(run, "transfer-linear")
    assert len(found["details"]["holdout"]) == 12 and found["details"]["chosen_by"] == "mean_per_class"
    assert found["results"]["holdout"].keys() == {"mean_per_class"}


@pytest.mark.parametrize(
    ("spec", "name"),
    [("shards/birds", "birds"), ("shards/birds/train", "birds"), ("birds/train-{000..009}.tar", "birds"),
     ("/data/imagenet-{000..999}.tar", "imagenet"), ("s3://bucket/cars/shards/train-000.tar", "cars")]
)  # fmt: skip
def test_a_data_set_is_named_by_what_is_no_split(spec: str, name: str) -> None:
    assert data_set_name(spec) == name


@pytest.mark.parametrize("spec", ["shards", "shards/train"])
def test_a_data_set_in_folders_of_usual_names_is_named_by_its_shards(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shards" / "train").mkdir(parents=True)
    (tmp_path / "shards" / "train" / "birds-000000.tar").touch()
    monkeypatch.chdir(tmp_path)
    assert data_set_name(spec) == "birds"


def test_the_grid_is_simclr_s() -> None:
    assert LEARNING_RATES[0] == 1e-4 and LEARNING_RATES[-1] == 0.1 and len(LEARNING_RATES) == 7
    assert WEIGHT_DECAYS[:2] == (0.0, 1e-6) and len(WEIGHT_DECAYS) == 8
    assert logarithmic(1, 100, 3) == (1.0, 10.0, 100.0)
    points = grid([0.1, 0.01], [0.0, 1e-3])
    assert points[0] == GridPoint(0.01, 0.0) and len(points) == 4 and GridPoint(0.1, 1e-3).decay_for_sgd == 0.01
    found = {point: value for point, value in zip(points, (0.5, None, 0.7, 0.7), strict=True)}
    assert best(found) == GridPoint(0.1, 0.0)
    wide = grid(LEARNING_RATES, WEIGHT_DECAYS)
    assert len(edges(GridPoint(0.1, 0.0), wide)) == 1 and not edges(GridPoint(LEARNING_RATES[3], 1e-5), wide)


PROBLEMS = {
    "a name out of step": (("semisup", "--labels", "wrong.txt"), "wrong.txt: 1 names match no sample"),
    "no list": (("semisup", "--labels", "10"), "10: cannot be read"),
    "a class without labels": (("semisup", "--labels", "two.txt"), "'red' of 3 classes have no training sample"),
    "no rate": (("linear", "--protocol", "sgd", "--lr", "0"), "--lr 0: a learning rate is a number above 0"),
    "birdsnap": (("transfer", "--data", "birdsnap"), "birdsnap is in no library"),
    "not there": (("transfer", "--data", "cars"), "cars: not found or damaged in data; nobody offers it"),
    "diverged": (
        ("semisup", "--labels", "50%", *QUICK, "--epochs", "4", "--head-lr", "1e30"),
        "fine-tuning diverged at",
    ),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_problems_are_one_line(case: str, leoclr: Run, make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run()
    (tmp_path / "wrong.txt").write_text("00001.png\nx.png\n")
    (tmp_path / "two.txt").write_text("00000.png\n00001.png\n")
    (command, *arguments), expected = PROBLEMS[case]
    code, out, err = leoclr(command, run, *arguments)
    assert code == 2 and not out and err.startswith("error: ") and err.count("\n") == 1 and expected in err


def test_different_data_and_a_broken_encoder_are_one_line(
    leoclr: Run, make_run: Callable[..., Path], make_tinted: Callable[..., Path]
) -> None:
    first, second = make_run("first"), make_run("second")
    elsewhere = str(make_tinted("elsewhere/train", [0, 1, 2] * 4))
    description = RunFolder(second).read()
    RunFolder(second).write({**description, "data": {"train": [elsewhere], "val": []}})
    code, _, err = leoclr("label-curve", first, second, "--labels", "50%", *QUICK)
    assert code == 2 and err.count("\n") == 1 and "come with different data" in err
    code, _, err = leoclr("linear", make_run("broken", broken=True), "--protocol", "sgd", "--epochs", 1)
    assert code == 2 and err.count("\n") == 1 and "NaN or infinite" in err


def photograph(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "JPEG")


def test_pets_and_cars_are_packed_as_the_files_that_they_are(tmp_path: Path) -> None:
    pets = tmp_path / "oxford-iiit-pet"
    (pets / "annotations").mkdir(parents=True)
    for split in ("trainval", "test"):
        names = [f"Abyssinian_{split}", f"beagle_{split}"]
        lines = [f"{name} {label} {label} 1\n" for label, name in enumerate(names, 1)]
        (pets / "annotations" / f"{split}.txt").write_text("".join(lines))
        for number, name in enumerate(names):
            photograph(pets / "images" / f"{name}.jpg", number)
    cars = tmp_path / "stanford_cars"
    (cars / "devkit").mkdir(parents=True)
    kind = np.dtype([("class", np.uint8), ("fname", object)])
    for split, file in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        savemat(cars / file, {"annotations": np.array([(1, "1.jpg"), (2, "2.jpg")], kind)})
        for number in (1, 2):
            photograph(cars / f"cars_{split}" / f"{number}.jpg", number)
    savemat(cars / "devkit" / "cars_meta.mat", {"class_names": np.array(["Audi TT", "Ram C/V"], object)})

    for name, classes in (("pets", ("Abyssinian", "Beagle")), ("cars", ("Audi TT", "Ram C-V"))):
        with open_source(name, tmp_path, root=tmp_path) as source:
            arranged = arrange(source)
            assert arranged.classes == classes
            assert {split: len(pictures) for split, pictures in arranged.splits.items()} == {"train": 2, "test": 2}
            first = arranged.splits["train"][0]
            files = {path.read_bytes() for path in tmp_path.rglob("*.jpg")}
            assert source.read(first.path) in files and first.label == 0
        found = transfer_data([name], [], tmp_path, download=False)
        assert Index.load(Path(found.train[0]) / f"{name}.index.json").classes == classes
    assert found.metric == "top1" and transfer_data(["pets"], [], tmp_path, False).metric == "mean_per_class"
    with pytest.raises(DataError, match="birdsnap is in no library"):
        transfer_data(["birdsnap"], [], tmp_path, False)
    with pytest.raises(EvaluationError, match="leave out --test-data x"):
        transfer_data(["pets"], ["x"], tmp_path, False)


@pytest.mark.parametrize(
    ("share", "images", "rates"),
    [(0.01, 12_811, (0.02, 5.0)), (0.01, 500, (0.02, 0.2)), (0.1, 128_116, (0.01, 0.2)), (1.0, 500, (0.01, 0.2))],
)
def test_rates_are_swavs_where_it_had_as_many_images(share: float, images: int, rates: tuple[float, float]) -> None:
    recipe = label_recipe(share, images, None, None, None, 256)
    assert (recipe.backbone_lr, recipe.head_lr) == rates
    assert label_recipe(share, images, 3, 0.5, 0.7, 256).head_lr == 0.7
