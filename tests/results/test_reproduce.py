"""`leoclr reproduce`: recipes are sound, steps are done once, and the table says what was found."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from leoclr.cli.commands.app import main
from leoclr.cli.commands.eval.group import COMMANDS
from leoclr.cli.config.settings import Settings
from leoclr.cli.recipes.definition import Recipe, load_recipe, names
from leoclr.cli.recipes.results import cells, forward_passes, half_width, seconds_of, write_result
from leoclr.cli.recipes.steps import RecipePlan
from leoclr.cli.recipes.table import as_grid, as_json, as_markdown, as_picture

MakeShards = Callable[..., Path]

MOCO = '"MoCo-v2".arguments = ["--backend", "moco", "--views", "pairwise"]\n'
TINY = """
title = "A tiny table"
source = "no paper"
tolerance = 1.0
seeds = [0]
[data]
pictures = "some pictures"
[pretrain.short]
data = "pictures"
epochs = 4
arguments = ["--backbone", "resnet18", "--set", "encoder.width=16", "--set", "encoder.stem=cifar",
  "--set", "data.image_size=16", "--batch-size", "8", "--set", "moco.queue=16", "--set", "moco.bn_splits=1",
  "--set", "run.trackers="]
[methods]
"MoCo-v2".arguments = ["--backend", "moco", "--views", "pairwise"]
"LeOCLR" = { arguments = ["--backend", "moco", "--views", "leoclr"], epochs = 0.5 }
[[columns]]
name = "k-NN"
pretrain = "short"
command = ["knn"]
metric = "weighted.top1"
paper = { "LeOCLR" = 79.59 }
[[columns]]
name = "k-NN, majority"
pretrain = "short"
command = ["knn"]
metric = "majority.top1"
"""

ANOTHER_COLUMN = """
[[columns]]
name = "linear"
pretrain = "short"
command = ["linear"]
metric = "linear.top1"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture
def data(make_shards: MakeShards) -> Path:
    make_shards((24,), name="pictures/train")
    make_shards((12,), name="pictures/test")
    return make_shards((8,), name="pictures/val").parent


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def reproduce(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["reproduce", *map(str, arguments)])
    return int(stopped.value.code or 0)


@pytest.mark.parametrize("name", names())
def test_every_recipe_is_made_of_commands_that_exist(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load_recipe(name)
    assert all(column.command[0] in COMMANDS for column in recipe.columns)
    plan = RecipePlan(
        recipe, Path("out"), {name: f"shards/{name}" for name in recipe.data}, scale=0.01, seeds=recipe.seeds
    )
    for unit in plan.units():
        with pytest.raises(SystemExit, match="0"):  # which reads the same flags, and needs no data
            main(["show-config", *unit.pretraining().arguments[1:]])
        epochs = recipe.pretrain[unit.pretrain].epochs * recipe.methods[unit.method].epochs
        shown = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines())
        assert shown["train.epochs"] == str(max(1, round(0.01 * epochs)))


def test_table_1_lists_every_row_with_what_is_known_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce("table1") == 0
    lines = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines() if "  " in line}
    assert lines["LeOCLR"].split() == ["LeOCLR", "moco", "leoclr", "76.20"]
    assert "swav  " in lines["SwAV"] and "multicrop" in lines["SwAV"] and "75.3 (authors" in lines["SwAV"]
    assert lines["HEXA"].split()[1:3] == ["-", "-"] and len(lines) >= 19
    assert reproduce("table1", "--json") == 0
    table = json.loads(capsys.readouterr().out)
    found = {row["method"]: row for row in table["methods"]}
    assert found["LeOCLR"]["paper"] == {"linear": 76.2} and found["HEXA"]["backend"] is None


def test_a_row_is_trained_with_its_own_views_and_with_the_original_as_anchor(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("table1", "--data", data, "--output", tmp_path / "out", "--dry-run", "--scale", "0.01", "--any-data")
    assert reproduce(*arguments, "--method", "BYOL", "--method", "MoCo-v2", "--leoclr") == 0
    trainings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("leoclr train")]
    assert [line.count("--views leoclr") for line in trainings] == [0, 1, 0, 1]
    assert ["--backend byol" in line for line in trainings] == [True, True, False, False]
    assert "--views pairwise" in trainings[2] and "--views pairwise" not in trainings[3]
    for wrong, word in (("HEXA", "cannot be trained here"), ("BYOLL", "is no method of the recipe")):
        assert reproduce(*arguments, "--method", wrong) == 2
        assert f"--method {wrong}: {word}; there are MoCo-v2, " in capsys.readouterr().err


def test_the_steps_are_commands_one_could_type(
    recipe: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce(recipe, "--data", data, "--output", tmp_path / "out", "--seeds", "2", "--dry-run") == 0
    planned = capsys.readouterr().out.splitlines()
    assert len(planned) == 8  # two methods, two seeds; both columns are figures of one evaluation
    assert all(line.startswith("leoclr train --backbone resnet18 ") for line in planned[::2])
    assert all(line.startswith("leoclr eval knn ") for line in planned[1::2])
    assert [line.split("--epochs ")[1][0] for line in planned[::2]] == ["4", "2", "4", "2"]
    assert [line.split("--seed ")[1][0] for line in planned[::2]] == ["0", "0", "1", "1"]
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipe of one method, its shards, and in `out` what `leoclr reproduce` made of them."""
    folder = tmp_path_factory.mktemp("finished")
    for split, images in (("train", 24), ("test", 12), ("val", 8)):
        for number in range(images):
            path = folder / "pictures" / split / f"class-{number % 4}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (60 * (number % 4), 10 * number, 90)).save(path)
    (folder / "tiny.toml").write_text(TINY.replace(MOCO, ""))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        with pytest.raises(SystemExit, match="0"):
            main(["shard", str(folder / "pictures"), str(folder / "shards")])
        words = ["--data", str(folder / "shards"), "--output", str(folder / "out"), "--scale", "0.5"]
        assert reproduce(folder / "tiny.toml", *words) == 0
    return folder


@pytest.fixture
def again(finished: Path, tmp_path: Path) -> list[str]:
    """The arguments that made `finished`, for a copy of it in `tmp_path`."""
    shutil.copytree(finished / "out", tmp_path / "out")
    shutil.copy(finished / "tiny.toml", tmp_path)
    recipe, shards, output = (str(path) for path in (tmp_path / "tiny.toml", finished / "shards", tmp_path / "out"))
    return [recipe, "--data", shards, "--output", output, "--scale", "0.5"]


def test_a_recipe_sets_its_figures_beside_the_papers(finished: Path) -> None:
    table = json.loads((finished / "out" / "table.json").read_text())
    assert [(cell["figure"], cell["method"]) for cell in table["cells"]] == [
        ("k-NN", "LeOCLR"),
        ("k-NN, majority", "LeOCLR"),
    ]
    leoclr = table["cells"][0]
    assert leoclr["paper"] == 79.59 and leoclr["difference"] == pytest.approx(leoclr["mean"] - 79.59)
    assert leoclr["reproduced"] is None  # a trial
    assert leoclr["forward_passes"] == 5 * 24 * 1
    assert leoclr["values"] == [leoclr["mean"]] and leoclr["half_width"] is None
    assert any("scale 0.5" in note for note in table["notes"])
    assert "| k-NN | LeOCLR | 79.59 |" in (finished / "out" / "table.md").read_text()
    with Image.open(finished / "out" / "table.png") as picture:
        assert picture.width == 1600


def test_a_result_keeps_the_record_and_says_nothing_of_this_machine(finished: Path) -> None:
    (path,) = (finished / "out" / "results").glob("*.json")
    assert str(finished) not in path.read_text()  # a result may be shown to others
    record = json.loads(path.read_text())["scores"]["k-NN"]
    assert record["protocol"] and record["checkpoint"]["digest"] and record["data"]["test"]["digest"]


def test_what_is_done_is_not_done_again(again: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads(Path(again[4], "table.json").read_text())
    assert reproduce(*again, "--json") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == before and "[1/" not in printed.err
    assert reproduce(*again, "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"commands": []}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--scale 1", "was begun with scale 0.5, now 1.0; choose"),
        ("--precision bf16", "was begun with precision None, now 'bf16'; choose"),
        ("--num-processes 2", "was begun with processes 1, now 2; choose"),
    ],
)
def test_a_folder_takes_no_second_experiment(
    change: str, message: str, again: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce(*again, *change.split()) == 2
    assert message in capsys.readouterr().err


def test_an_edited_recipe_does_not_go_on(again: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Path(again[0])
    recipe.write_text(recipe.read_text().replace("epochs = 4", "epochs = 8"))
    assert reproduce(*again) == 2
    assert re.search("was begun with `leoclr train .* --epochs 1 .*, now `.* --epochs 2 ", capsys.readouterr().err)


def test_another_column_is_the_only_step_left(again: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with Path(again[0]).open("a") as recipe:
        recipe.write(ANOTHER_COLUMN)
    assert reproduce(*again, "--dry-run") == 0
    (step,) = capsys.readouterr().out.splitlines()
    assert step.startswith("leoclr eval linear ")


def test_a_folder_of_another_version_is_refused(again: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path(again[4], "reproduce.json").write_text('{"recipe": "tiny"}')
    assert reproduce(*again) == 2
    assert "was begun by another version of leoclr" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("backend", "views", "passes"),
    [
        ("moco", "pairwise", 4),
        ("moco", "leoclr", 5),
        ("moco", "pairwise-symmetric", 8),
        ("simclr", "pairwise", 6),
        ("simclr", "pairwise-symmetric", 6),
        ("simclr", "leoclr", 9),
        ("moco", "original", 12),
        ("simclr", "original", 9),
        ("moco", "multicrop", 3 * (2 + 6 * 0.25) + 2),
    ],
)
def test_forward_passes_are_counted_with_backward_as_two(backend: str, views: str, passes: float) -> None:
    """A small crop of half the side costs a quarter."""
    small = {"multicrop": {"small_size": 0.5}}
    assert forward_passes(Settings.model_validate({"backend": backend, "views": views} | small)) == passes


@pytest.mark.slow
def test_ctrl_c_stops_a_step_and_the_same_command_goes_on(recipe: Path, data: Path, tmp_path: Path) -> None:
    words = ["--data", str(data), "--output", str(tmp_path / "out"), "--scale", "500", "--seeds", "1"]
    command = [sys.executable, "-m", "leoclr.cli", "reproduce", str(recipe), *words]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    run = tmp_path / "out" / "runs" / "moco-v2-short-seed-0"
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130 and "the same command goes on from here" in err and "Traceback" not in err
    sessions = json.loads((tmp_path / "out" / "records" / "moco-v2-short-seed-0-train.json").read_text())["sessions"]
    assert [session["stopped_by"] for session in sessions] == [signal.SIGINT]
    plan = RecipePlan(load_recipe(str(recipe)), tmp_path / "out", {"pictures": str(data)}, scale=500)
    step = next(iter(plan.units())).pretraining()
    assert not step.done() and step.command() == ("train", "--resume", str(run), "--json")


@pytest.mark.slow
def test_a_step_that_fails_ends_in_its_own_line_and_one_more(
    recipe: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe.write_text(TINY.replace('"resnet18"', '"torchvision:resnet19"'))
    assert reproduce(recipe, "--data", data, "--output", tmp_path / "out") == 2
    err = capfd.readouterr().err
    assert "resnet19" in err and "error: a step failed with exit code 2" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("table66",), "no recipe 'table66'; there are "),
        (("table6", "--data", "x"), "expected NAME=SHARDS, where NAME is cifar10 or stl10"),
        (("table6", "--data", "cifar10=x"), "the recipe needs --data for stl10"),
        (("cifar10", "--data", "x", "--scale", "0"), "--scale 0: expected a number above 0"),
        (("cifar10", "--data", "/nowhere/shards-000.tar"), "/nowhere/shards-000.tar"),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert reproduce(*arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ('"--set", "moco.reduction=median"', "LeOCLR: --set moco.reduction: must be 'sum' or 'mean', got 'median'"),
        ('"--backbon", "resnet18"', "LeOCLR: --backbon: no such flag; did you mean --backbone?"),
        ('"--set"', "LeOCLR: --set: needs a value"),
    ],
)
def test_a_wrong_setting_of_the_last_method_is_told_before_the_first_one_runs(
    flags: str, message: str, recipe: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe.write_text(TINY.replace('"--views", "leoclr"]', f'"--views", "leoclr", {flags}]'))
    assert reproduce(recipe, "--data", data, "--output", tmp_path / "out") == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not (tmp_path / "out").exists()


def test_a_change_leaves_apart_what_the_recipe_compares(
    recipe: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the row of a method that is another value of this setting would be one more of the first method."""
    recipe.write_text(TINY.replace('"--views", "leoclr"]', '"--views", "leoclr", "--set", "moco.temperature=0.2"]'))
    words: list[str | Path] = ["--data", data, "--output", tmp_path / "out", "--dry-run", "--set"]
    assert reproduce(recipe, *words, "moco.temperature=0.3") == 0
    moco, leoclr = capsys.readouterr().out.splitlines()[::2]
    assert "moco.temperature=0.3" in moco and "moco.temperature=0.2" not in moco
    assert "moco.temperature=0.2" in leoclr and "moco.temperature=0.3" not in leoclr
    assert reproduce(recipe, *words, "data.batch_size=16") == 2
    assert "--set data.batch_size=16: the recipe sets it for each of its methods" in capsys.readouterr().err
    plan = RecipePlan(load_recipe(str(recipe)), tmp_path, {"pictures": "x"}, changes=("moco.temperature=0.3",))
    assert [unit.changes() for unit in plan.units()] == [("moco.temperature=0.3",), ()]


@pytest.mark.slow
def test_a_step_that_was_not_begun_may_be_mended(
    recipe: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words: list[str | Path] = ["--data", data, "--output", tmp_path / "out", "--scale", "0.5"]
    backbone = '"leoclr", "--backbone", "torchvision:resnet19"'
    recipe.write_text(
        TINY.replace('"--backbone", "resnet18", ', "")
        .replace('"pairwise"]', '"pairwise", "--backbone", "resnet18"]')
        .replace('"leoclr"', backbone)
    )
    assert reproduce(recipe, *words) == 2
    recipe.write_text(recipe.read_text().replace("torchvision:resnet19", "resnet18"))
    assert reproduce(recipe, *words, "--dry-run") == 0
    capfd.readouterr()
    assert reproduce(recipe, *words) == 0
    assert "[3/4]" in capfd.readouterr().err
    recipe.write_text(recipe.read_text().replace("moco.queue=16", "moco.queue=32"))
    assert reproduce(recipe, *words) == 2
    assert "was begun with `leoclr train" in capfd.readouterr().err


def test_a_recipe_that_contradicts_itself_is_refused(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text(TINY.replace('pretrain = "short"', 'pretrain = "long"', 1))
    assert reproduce(recipe, "--data", "x") == 2
    assert "no pre-training long" in capsys.readouterr().err
    recipe.write_text(TINY.replace("epochs = 0.5", 'epochs = 0.5, against = "MoCo-v3"'))
    assert reproduce(recipe, "--data", "x") == 2
    assert "no method MoCo-v3" in capsys.readouterr().err


def test_methods_and_columns_that_would_share_a_file_are_refused(
    recipe: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe.write_text(TINY.replace('"MoCo-v2".arg', '"LeOCLR+".arg'))
    assert reproduce(recipe, "--data", data, "--dry-run") == 2
    assert "'LeOCLR+' and 'LeOCLR' would share " in capsys.readouterr().err
    recipe.write_text(TINY + 'epochs = 3\n[[columns]]\nname = "more"\npretrain = "short"\nmetric = "a.b"\n'
                      'command = ["knn"]\ntest_data = "pictures/test"\n')  # fmt: skip
    assert reproduce(recipe, "--data", data, "--dry-run") == 0
    records = [line.split(" -o ")[1] for line in capsys.readouterr().out.splitlines() if " eval knn " in line]
    assert len(records) == len(set(records)) == 2 * 3
    recipe.write_text(TINY.replace('command = ["knn"]', 'command = ["knn", "--k"]', 1).replace(
        'command = ["knn"]', 'command = ["knn", "k"]'))  # fmt: skip
    assert reproduce(recipe, "--data", data, "--dry-run") == 2
    assert "column 'k-NN, majority' would share moco-v2-short-seed-0-knn-k.json" in capsys.readouterr().err


def test_precision_goes_to_what_has_one() -> None:
    plan = RecipePlan(load_recipe("table4"), Path("out"), {"imagenet": "a", "voc": "b"}, precision="bf16")
    pretraining, detection = next(iter(plan.units())).steps()
    assert "--precision" in pretraining.command_as_planned() and "--precision" not in detection.command_as_planned()


def test_what_evaluations_need_is_asked_for_before_the_first_step(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for table, more in (("table3", ("cars", "birdsnap", "pets", "cifar10", "cifar100")), ("table4", ("voc",))):
        arguments = [word for name in more for word in ("--data", f"{name}=/nowhere")]
        assert reproduce(table, "--data", f"imagenet={data}", *arguments, "--dry-run") == 2
        assert "/nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("shards", [".", "data", "10", "shards/cifar10"])
def test_a_result_names_paths_by_what_they_are_for(
    shards: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words that only look like the path of the data stay: a preset of the same name, numbers, part of another name."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished / "out", "out/10")
    recipe = Path("tiny.toml")
    recipe.write_text(TINY.replace(MOCO, "").replace('"--backbone", "resnet18"', '"--preset", "data"'))
    plan = RecipePlan(load_recipe(str(recipe)), Path("out/10"), {"pictures": shards}, scale=0.5)
    (unit,) = plan.units()
    record = unit.record(unit.columns()[0])
    there = [shards, f"{Path(shards).absolute()}/train", "10.5", "database", f"{Path.cwd()}/out/10/runs/x"]
    content = json.loads(record.read_text()) | {"data": {"train": {"source": there}}, "seconds": 10.5, "kind": shards}
    record.write_text(json.dumps(content))
    result = json.loads(write_result(unit, "tiny").read_text())
    score = result["scores"]["k-NN"]
    here = "." if shards == "." else "PICTURES"
    assert score["data"]["train"]["source"] == [here, "PICTURES/train", "10.5", "database", "OUTPUT/runs/x"]
    assert score["seconds"] == 10.5 and score["kind"] == shards
    train = shlex.split(result["commands"][0])
    assert train[:4] == ["leoclr", "train", "--preset", "data"]
    assert train[train.index("--data") + 1] == here
    assert train[train.index("--output") + 1] == f"OUTPUT/runs/{unit.name}"


@pytest.mark.parametrize(
    ("sessions", "seconds"),
    [
        ([(0, 40, 8.0), (40, 100, 12.0)], 20.0),
        ([(0, 40, 8.0), (90, 100, 2.0)], 20.0),  # one between them was killed after it had saved step 90
        ([(100, 100, 1.0)], 1.0),  # killed behind its last step
    ],
)
def test_steps_of_killed_sessions_count_in_the_hours(sessions: list[tuple[int, int, float]], seconds: float) -> None:
    names = ("first_step", "step", "seconds")
    assert seconds_of([dict(zip(names, session, strict=True)) for session in sessions]) == pytest.approx(seconds)


def test_the_interval_is_students() -> None:
    assert half_width([3.0]) is None
    # mean 2, deviation 1, n = 3; the 97.5 % point of Student's t with two degrees of freedom is 4.3027
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)


def test_a_figure_within_the_tolerance_counts_as_reproduced() -> None:
    recipe = Recipe.model_validate(
        {
            "title": "t", "source": "s", "tolerance": 1.0, "seeds": [0], "data": {"d": "data"},
            "pretrain": {"p": {"data": "d", "epochs": 1}}, "methods": {"LeOCLR": {"arguments": []}},
            "columns": [
                {"name": "c", "pretrain": "p", "command": ["knn"], "metric": "a.b", "paper": {"LeOCLR": 50.0}}
            ],
        }
    )  # fmt: skip
    result = {
        "method": "LeOCLR", "pretrain": "p", "seed": 0, "scale": 1.0, "changes": [], "forward_passes": 5, "seconds": 36,
        "scores": {"c": {"results": {"a": {"b": 0.508}}}},
    }  # fmt: skip
    (cell,) = cells(recipe, [result])
    assert cell.mean == pytest.approx(50.8) and cell.hours == 0.01
    assert as_json(recipe, [result])["cells"][0]["reproduced"] is True
    assert "+0.80 (within tolerance)" in as_markdown(recipe, [result])
    result["scores"] = {"c": {"results": {"a": {"b": 0.45}}}}
    assert as_json(recipe, [result])["cells"][0]["reproduced"] is False


def test_a_method_is_compared_with_its_baseline_seed_by_seed() -> None:
    recipe = load_recipe("table5")
    scores = {"SimCLR": (0.50, 0.60, 0.70, 0.10), "LeOCLR, end to end": (0.51, 0.62, 0.73)}  # ahead by 1, 2 and 3
    column = recipe.columns[0]
    row, _, metric = column.metric.partition(".")
    results = [
        {"method": method, "pretrain": column.pretrain, "seed": seed, "scale": 0.5, "changes": [],
         "forward_passes": 589_824, "seconds": 36, "scores": {column.name: {"results": {row: {metric: value}}}}}
        for method, values in scores.items() for seed, value in enumerate(values)
    ]  # fmt: skip
    baseline, leoclr = cells(recipe, results)
    assert baseline.change is None and leoclr.change is not None
    assert leoclr.change.mean == pytest.approx(2) and leoclr.change.against == "SimCLR"
    assert leoclr.change.half_width == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)
    assert "| +2.00 ± 2.48 (SimCLR) |" in as_markdown(recipe, results)
    assert as_json(recipe, results)["cells"][1]["change"]["mean"] == pytest.approx(2)
    grid = as_grid(recipe, results)
    assert "| LeOCLR, end to end<br>*less SimCLR* | 62.00 ± 27.33<br>*+2.00 ± 2.48* | 0.590 M | 0.01 |" in grid
    assert "paper" not in grid.partition("- ")[0]  # a trial
    assert "different settings" not in grid and "--any-data" not in grid
    seeds = [result | {"settings": {"train": {"seed": result["seed"]}}} for result in results]
    assert "different settings" not in as_grid(recipe, seeds)
    other = {"settings": {"train": {"seed": 0}, "optimizer": {"warmup_epochs": 1.0}}}
    mixed = as_grid(recipe, [seeds[0] | other, *seeds[1:]])
    assert "SimCLR: its seeds were trained with different settings" in mixed
    others = [result | {"scale": 1.0, "any_data": True} for result in results]
    assert "--any-data: perhaps other data than the recipe's, so a trial" in as_markdown(recipe, others)
    assert "reproduced" not in as_markdown(recipe, others)
    (alone,) = cells(recipe, results[-1:])
    assert alone.change is None  # the baseline has no result yet


def test_curves_are_drawn_below_each_other() -> None:
    recipe = load_recipe("figure5")
    scores = {column.name: {"results": {"finetuned": {"top1": 0.1, "top5": 0.2}}} for column in recipe.columns}
    results = [
        {"method": method, "pretrain": "imagenet", "seed": 0, "scale": 0.5, "changes": [], "forward_passes": 5,
         "seconds": 36, "scores": scores}
        for method in recipe.methods
    ]  # fmt: skip
    picture = as_picture(recipe, results)
    assert picture.size == (1600, 2000)
    assert len(picture.crop((0, 0, 1600, 1000)).getcolors(1 << 20) or []) > 4


def test_other_data_than_the_recipes_is_refused_before_the_first_step(
    make_shards: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_shards((30,), "shards/train").parent
    arguments = ("cifar10", "--data", data, "--output", tmp_path / "out", "--seeds", "1", "--dry-run")
    assert reproduce(*arguments) == 2
    printed = capsys.readouterr()
    assert "30 images of 4 classes, where the train split of CIFAR-10 has 50,000 of 10" in printed.err
    assert "--any-data" in printed.err and not printed.out
    assert reproduce(*arguments, "--any-data") == 0
    assert capsys.readouterr().out.startswith("leoclr train --preset cifar10")
