"""`leoclr report`: one page with all that a run folder tells, whatever else it holds."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from leoclr.backends.networks.backbones import build_backbone
from leoclr.cli.commands.app import main
from leoclr.cli.config.settings import Settings
from leoclr.cli.reporting.embedding_plot import EmbeddingPlot, places, scatter
from leoclr.cli.reporting.line_charts import thin, ticks
from leoclr.cli.reporting.markup import Html, element
from leoclr.cli.reporting.run_pictures import thumbnails
from leoclr.cli.run.checkpoint import save_checkpoint
from leoclr.cli.run.folder import RunFolder

Run = Callable[..., tuple[int, str]]
MakeShards = Callable[..., Path]
MakeRun = Callable[..., Path]
VOID = {"meta", "img", "br", "col"}


class Page(HTMLParser):
    """What a page consists of; every element is closed, in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def make_run(tmp_path: Path, make_shards: MakeShards) -> MakeRun:
    """`make_run(name, changed={}, measures=20)`: settings, metrics, one record, a checkpoint, data of 24 images."""
    data = make_shards((24,), name="shards")

    def make(name: str, changed: dict[str, Any] | None = None, measures: int = 20) -> Path:
        chosen = {
            "data": {"image_size": 16},
            "encoder": {"backbone": "resnet18", "stem": "cifar", "width": 8},
            "train": {"epochs": 10},
        } | (changed or {})
        settings = Settings.model_validate(chosen).model_dump(mode="json")
        folder = RunFolder(tmp_path / "runs" / name)
        content: dict[str, Any] = {"train": [str(data)], "val": [], "samples": 24, "digest": "d" * 64}
        folder.write({"settings": settings, "data": content, "started": "2026-01-01T00:00:00+00:00"})
        lines = [
            {"step": step, "epoch": step / 2, "loss": 8 - step / 10, "lr": 0.1 / step, "knn": 0.25 + step / 100}
            for step in range(1, measures + 1)
        ]
        folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 99, "ep')
        folder.evals.mkdir()
        record = {
            "kind": "knn",
            "results": {"weighted": {"top1": 0.625, "top1_half_width": 0.0125}},
            "protocol": ["k-NN of a test"],
            "seed": 0,
            "data": {"test": {"digest": "abc"}},
        }
        (folder.evals / "knn-1.json").write_text(json.dumps(record))
        boxes = {"kind": "detection", "results": {"detection": {"ap50": 0.4375, "ap": 0.25}}}
        (folder.evals / "detection-1.json").write_text(json.dumps(boxes))
        torch.manual_seed(0)
        model = build_backbone("resnet18", "cifar", 8).state_dict()
        tensors = {f"encoder.backbone.{key}": tensor for key, tensor in model.items()}
        save_checkpoint(folder.checkpoints, 5, {"model": tensors}, {"settings": settings})
        return folder.path

    return make


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`leoclr report ... -o page.html` in `tmp_path`; gives exit code and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as exit:
            main(["report", *map(str, arguments), "-o", "page.html"])
        return int(str(exit.value.code)), capsys.readouterr().err

    return call


def test_a_page_has_every_section(report: Run, make_run: MakeRun, tmp_path: Path) -> None:
    make_run("first")
    assert report("--map", "pca")[0] == 0  # the newest run
    page = Page(tmp_path / "page.html")
    for heading in ("Training", "Scores", "What the model sees", "What it finds alike", "Map of the features"):
        assert heading in page.text
    assert page.tags["polyline"] == 3  # loss, k-NN, learning rate
    assert page.tags["img"] == 3  # views, neighbours, thumbnails
    assert page.tags["circle"] >= 24 and "24 training images" in page.text
    assert "62.50 ± 1.25 (draws)" in page.text and "k-NN of a test" in page.text
    assert "leoclr views under moco, resnet18 at 16 px, 10 epochs of 24 images" in page.text
    assert "43.8 %AP50, detection" in page.text and "43.75" in page.text
    assert "epoch 5" in page.text and "d" * 64 in page.text


def test_a_page_asks_nothing_of_a_network(report: Run, make_run: MakeRun, tmp_path: Path) -> None:
    assert report(make_run("first"), "--samples", 10, "--map", "pca")[0] == 0
    page = Page(tmp_path / "page.html")
    assert not {"script", "link", "iframe", "object", "form"} & page.tags.keys()
    for name, value in page.attributes:
        assert name not in ("srcset", "onload", "onclick", "action")
        assert name != "src" or value.startswith("data:image/")
        assert name != "href" or value.startswith("#")
    assert ("content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in page.attributes
    assert "url(" not in page.text and "@import" not in page.text


def test_runs_are_set_beside_each_other(report: Run, make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run("first"), make_run("second", {"views": "pairwise"})]
    assert report(*runs, "--samples", 0)[0] == 0
    text = (tmp_path / "page.html").read_text()
    differs = text.partition("What differs between the runs")[2].partition("<details>")[0]
    assert re.findall(r"<th scope=\"row\"><code>(.*?)</code>", differs) == ["views"]
    assert "pairwise" in differs and text.count("<polyline") == 6
    assert "Map of the features" not in text


HARM = "</title><script>alert(1)</script><img src=x onerror=alert(2)>\"'\x00\ud800"


def test_whatever_files_say_is_text(report: Run, make_run: MakeRun, tmp_path: Path) -> None:
    run = RunFolder(make_run("first"))
    content = run.read()
    content["settings"][HARM] = HARM
    content["command"] = [HARM, 3, None]
    content["versions"] = {HARM: {HARM: HARM}}
    content["started"] = {"a": [HARM]}
    run.write({key: value for key, value in content.items() if key != "format"})
    record = {
        "kind": HARM,
        "results": {HARM: {HARM: 0.5, "top1": 1e400, "top5": True, "x": [1]}, "odd": 3},
        "protocol": [HARM, 5],
        "notes": [HARM],
        "data": {"test": [HARM]},
    }
    (run.evals / "harm.json").write_text(json.dumps(record))
    for name, text in (("list", "[1]"), ("deep", "[" * 10**5), ("half", '{"kind"'), ("kind", '{"kind": 3}')):
        (run.evals / f"{name}.json").write_text(text)
    (run.path / "bad-images.txt").write_bytes(b"one <script>\n\xff\n" + b"x\n" * 100)
    with run.metrics.open("a") as lines:
        lines.write('{"step": 1, "epoch": "1", "loss": 3}\n[]\n{"epoch": 3, "loss": "x", "lr": true, "knn": null}\n')
    code, err = report(run.path, "--samples", 0)
    assert code == 0, err
    page = Page(tmp_path / "page.html")
    assert page.tags["script"] == page.tags["img"] == 0
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in page.text
    assert page.text.count("cannot be read") == 4
    assert "and 82 more" in page.text
    assert "metrics.jsonl: 2 lines of no measures left out." in page.text


def test_without_data_and_checkpoint_the_page_says_so(report: Run, make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("first")
    shutil.rmtree(tmp_path / "shards")
    code, err = report(run)
    assert code == 0 and f"warning: first: The training data cannot be opened: {tmp_path / 'shards'}: no such" in err
    assert "warning: first: the page is without views, neighbours, map\n" in err
    page = Page(tmp_path / "page.html")
    assert "The training data cannot be opened" in page.text and page.tags["polyline"] == 3
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.jsonl").unlink()
    shutil.rmtree(run / "evals")
    assert report(run)[0] == 0
    page = Page(tmp_path / "page.html")
    assert "has no checkpoint yet" in page.text and "There is no metrics.jsonl" in page.text
    assert "No score has been computed yet" in page.text and "encoder.backbone" in page.text


def test_damaged_images_and_no_labels(report: Run, make_shards: MakeShards, make_run: MakeRun, tmp_path: Path) -> None:
    run = RunFolder(make_run("first"))
    content = run.read()
    content["data"]["train"] = [str(make_shards((24,), name="odd", labelled=False, bad=(9,)))]
    run.write({key: value for key, value in content.items() if key != "format"})
    assert report(run.path, "--map", "pca")[0] == 0
    page = Page(tmp_path / "page.html")
    assert page.tags["img"] == 3 and "23 training images" in page.text


def test_features_that_an_evaluation_would_refuse_are_not_kept(
    report: Run, make_shards: MakeShards, make_run: MakeRun
) -> None:
    run = RunFolder(make_run("first"))
    content = run.read()
    for bad in ((9,), ()):
        content["data"]["train"] = [str(make_shards((24,), name=f"odd{len(bad)}", bad=bad))]
        run.write({key: value for key, value in content.items() if key != "format"})
        assert report(run.path, "--map", "pca")[0] == 0
        assert (run.path / "features").exists() == (not bad)


def test_a_report_and_a_score_share_their_features(report: Run, make_shards: MakeShards, make_run: MakeRun) -> None:
    run = RunFolder(make_run("first"))
    content = run.read()
    content["data"]["val"] = [str(make_shards((20,), name="val"))]
    run.write({key: value for key, value in content.items() if key != "format"})
    assert report(run.path, "--map", "pca")[0] == 0
    (shared,) = (run.path / "features").iterdir()
    used = shared.stat()
    with pytest.raises(SystemExit) as exit:
        main(["eval", "knn", str(run.path), "--device", "cpu", "--workers", "0"])
    assert exit.value.code == 0
    assert len(list((run.path / "features").iterdir())) == 2  # that of the training data is new
    assert shared.stat().st_ino == used.st_ino and shared.stat().st_mtime_ns > used.st_mtime_ns  # read, not written


def test_scores_of_several_checkpoints_are_told_apart(report: Run, make_run: MakeRun, tmp_path: Path) -> None:
    run = RunFolder(make_run("first"))
    record = json.loads((run.evals / "knn-1.json").read_text())
    for name, step, value in (("knn-0", 9, 0.75), ("knn-1", 5, 0.625)):
        record |= {"checkpoint": {"path": f"/x/step-{step:09d}", "digest": f"{step}" * 64}, "date": "2026"}
        record["results"] = {"weighted": {"top1": value}}
        (run.evals / f"{name}.json").write_text(json.dumps(record))
    (run.evals / "detection-1.json").unlink()
    (run.evals / "label-curve-1.json").write_text(json.dumps({"kind": "label-curve", "curves": []}))
    assert report(run.path, "--map", "none")[0] == 0
    text = Page(tmp_path / "page.html").text
    assert "weighted, weights 99999999, protocol 1" in text and "weighted, weights 55555555, protocol 2" in text
    assert "checkpoint differ between these figures" in text
    tile = text[text.index("top-1, k-NN") - 20 :][:60]
    assert "75.0 %" in tile and "62.5" not in tile  # the newest checkpoint's on top


def score(kind: str, row: str, value: float, **content: Any) -> dict[str, Any]:
    checkpoint = {"path": "/x/checkpoints/step-000000005", "digest": "c" * 64}
    data = {split: {"digest": split, "samples": 400, "source": [f"/shards/{split}"]} for split in ("train", "test")}
    metric = content.get("details", {}).get("metric", "top1")
    results = {row: {metric: value}}
    if metric == "top1" and row != "drop":
        results[row]["top1_image_half_width"] = 1.96 * math.sqrt(value * (1 - value) / 400)
    return {"kind": kind, "results": results, "checkpoint": checkpoint, "data": data, "protocol": []} | content


def test_a_trial_hides_no_score_and_tiles_say_what_they_are_of(report: Run, make_run: MakeRun, tmp_path: Path) -> None:
    run = RunFolder(make_run("first"))
    for path in run.evals.iterdir():
        path.unlink()
    sgd, boxes = {"learning_rate": 30.0}, {"metric": "ap50", "random": False}
    pets = {"data_set": "pets", "metric": "mean_per_class"}
    records = {
        "knn-a": score("knn", "weighted", 0.75, details={"k": [200, 20], "whitened": False}, date="2026-01"),
        "knn-b": score("knn", "weighted", 0.85, details={"k": [200, 20], "whitened": True}, date="2026-02"),
        "linear-a": score("linear", "linear", 0.9, details={"c": 1.0, "normalise": "standard"}, date="2026-01"),
        "linear-b": score("linear", "linear", 0.8, details=sgd, protocol=["SGD, 100 epochs, x 0.1"], date="2026-01"),
        "linear-c": score("linear", "linear", 0.3, details=sgd, protocol=["SGD, 3 epochs, x 0.1"], date="2026-02"),
        "robustness-a": score("robustness", "drop", 0.07, details={"c": 1.0, "random": {"top1": [0.1] * 5}}),
        "robustness-b": score("robustness", "drop", 0.11, details={"k": 200, "random": {"top1": [0.1]}}, date="2027"),
        "semisup-a": score("semisup", "finetuned", 0.4, details={"share": 0.01}, protocol=["SGD; 60 epochs"]),
        "semisup-b": score("semisup", "finetuned", 0.6, details={"share": 0.1}, protocol=["SGD; 30 epochs"]),
        "transfer-a": score("transfer", "finetuned", 0.55, details=pets, protocol=["SGD, 1,334 epochs"]),
        "transfer-b": score("transfer", "finetuned", 0.35, details=pets, protocol=["SGD, 334 epochs"], date="2027"),
        "detection-a": score("detection", "detection", 0.2, details={"metric": "ap50", "random": True}),
        "detection-b": score("detection", "detection", 0.7, details=boxes | {"recipe": {"iterations": 24_000}}),
        "detection-c": score("detection", "detection", 0.1, details=boxes | {"recipe": {"iterations": 9}}, date="2027"),
        "harm": {"kind": "linear", "results": [], "details": 3, "data": [1], "checkpoint": "x", "protocol": {}},
    }
    for name, record in records.items():
        (run.evals / f"{name}.json").write_text(json.dumps(record))
    assert report(run.path, "--samples", 0)[0] == 0
    text = Page(tmp_path / "page.html").text
    for tile in (
        "75.0 ± 4.2 %top-1, k-NN, k = 200",
        "85.0 ± 3.5 %top-1, k-NN on whitened features, k = 200",
        "90.0 ± 2.9 %top-1, linear probe",
        "80.0 ± 3.9 %top-1, linear probe by SGD, 100 epochs",
        "7.0 %drop on random crops, linear probe, 5 draws",
        "11.0 %drop on random crops, k-NN, 1 draw",
        "40.0 ± 4.8 %top-1, fine-tuned with 1 % of the labels, 60 epochs",
        "60.0 ± 4.8 %top-1, fine-tuned with 10 % of the labels, 30 epochs",
        "55.0 %mean per class, transfer to pets, fine-tuned, 1,334 epochs",
        "70.0 %AP50, detection, 24,000 steps",
        "20.0 %AP50, detection, from random weights",
    ):
        assert tile in text, tile
    assert "30.0" not in text.partition("Training")[0]  # the three epochs


def test_a_score_on_other_data_has_a_tile_of_its_own(report: Run, make_run: MakeRun, tmp_path: Path) -> None:
    run = RunFolder(make_run("first"))
    for number, place in enumerate(("birds", "cars")):
        record = score("knn", "weighted", 0.5 + number / 10, date=f"2026-0{number + 1}")
        record["data"]["test"] |= {"digest": place, "source": [f"/shards/{place}/test"]}
        (run.evals / f"knn-{number + 2}.json").write_text(json.dumps(record))
    assert report(run.path, "--samples", 0)[0] == 0
    text = Page(tmp_path / "page.html").text
    assert "50.0 ± 4.9 %top-1, k-NN, " in text and "tested on birds/test" in text and "tested on cars/test" in text


def test_label_curves_are_on_the_page(report: Run, make_run: MakeRun, tmp_path: Path) -> None:
    first, second = RunFolder(make_run("first")), RunFolder(make_run("second"))
    curves = []
    for run, value in ((first, 0.3), (second, 0.2)):
        curve = score("label-curve", "1%", value, checkpoint={"path": f"{run.checkpoints}/step-000000005"})
        curve["results"] = {"1%": {"top1": value}, "5%": {"top1": value + 0.1}, "odd": {"top1": 1.0}}
        curve["details"] = {"shares": {"1%": {"labelled": 0.02}}}
        curves.append(curve)
    (first.evals / "label-curve-1.json").write_text(json.dumps({"kind": "label-curve", "curves": curves}))
    assert report(first.path, "--samples", 0)[0] == 0
    page = Page(tmp_path / "page.html")
    assert page.tags["polyline"] == 4 and "fine-tuned: first from 30 % to 40 %" in page.text
    assert "2 %" in page.text and "30.00" in page.text and "20.00" not in page.text  # the run's own curve alone


@pytest.mark.parametrize(
    ("changed", "expected"),
    [({"views": "pairwise"}, "Loss per term, one for each pair of views (moco)"),
     ({"backend": "simclr"}, "Loss per term, one for each pair of views (simclr)"), ({}, "Loss, sum of 2 terms")]
)  # fmt: skip
def test_losses_of_other_kinds_do_not_share_a_scale(
    report: Run, make_run: MakeRun, tmp_path: Path, changed: dict[str, Any], expected: str
) -> None:
    assert report(make_run("first"), make_run("second", changed), "--samples", 0)[0] == 0
    text = Page(tmp_path / "page.html").text
    assert expected in text and "loss, sum of 2 terms" in text
    if changed == {"views": "pairwise"}:  # halves beside wholes
        assert "first from 3.95 to 3; second from 7.9 to 6" in text


def test_images_per_second_are_the_mean_of_the_run(report: Run, make_run: MakeRun, tmp_path: Path) -> None:
    run = RunFolder(make_run("first", measures=0))
    rates = [(1.0, 100.0), (1.5, 25.0), (2.0, 50.0)]  # epochs 1, 0.5, 0.5 in 0.01, 0.02, 0.01 of the same unit
    run.metrics.write_text(
        "".join(json.dumps({"step": 1, "epoch": epoch, "images_per_second": rate}) + "\n" for epoch, rate in rates)
    )
    assert report(run.path, "--samples", 0)[0] == 0
    assert "50images/s, mean of the run" in Page(tmp_path / "page.html").text


def test_garbage_among_the_measures_is_told(report: Run, make_run: MakeRun) -> None:
    run = RunFolder(make_run("first"))
    assert "left out" not in report(run.path, "--samples", 0)[1]
    with run.metrics.open("ab") as lines:
        lines.write(b"\n\xff\xfe\ngarbage\n")
    assert "warning: first: metrics.jsonl: 3 lines of no measures left out\n" in report(run.path, "--samples", 0)[1]


def test_no_run_and_too_many_are_one_line(report: Run, tmp_path: Path) -> None:
    code, err = report(tmp_path)
    assert code == 2 and "not a run folder" in err and err.count("\n") == 1
    code, err = report(*[tmp_path] * 9)
    assert code == 2 and "at most 8" in err


def test_markup_escapes_by_default() -> None:
    assert element("p", "<b>", Html("<i></i>"), class_='"x"', data_key="a&b", id=None) == (
        '<p class="&quot;x&quot;" data-key="a&amp;b">&lt;b&gt;<i></i></p>'
    )


def test_axes_and_thinned_curves() -> None:
    assert ticks(0, 97, 5) == [0, 20, 40, 60, 80, 100]
    assert ticks(7.8, 10.3, 5) == [7.5, 8, 8.5, 9, 9.5, 10, 10.5]
    assert ticks(3, 3, 5)[0] < 3 < ticks(3, 3, 5)[-1]
    for low, high in ((-1e308, 1e308), (0, 5e-324), (-5e-324, 0), (1, 1 + 1e-16)):
        assert 2 <= len(ticks(low, high, 5)) <= 12 and np.isfinite(ticks(low, high, 5)).all()
    points = [(float(x), float(x % 2)) for x in range(1000)]
    assert thin(points, 1000) == points
    assert [y for _, y in thin(points, 100)] == [0.5] * 100


@pytest.mark.parametrize("kind", ["pca", "tsne"])
def test_the_map_keeps_alike_images_together(kind: Any) -> None:
    random = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = (5 * np.eye(8)[labels] + 0.3 * random.normal(size=(60, 8))).astype(np.float32)
    found, method = places(features, kind)
    assert found.min() == 0 and found.max() == 1 and ("t-SNE" in method) == (kind == "tsne")
    distance = np.linalg.norm(found[:, None] - found[None], axis=2) + 9 * np.eye(60)
    assert (labels[distance.argmin(axis=1)] == labels).all()


def test_the_map_of_equal_features_is_a_point() -> None:
    assert places(np.ones((30, 4), np.float32), "pca")[0].tolist() == [[0.0, 0.0]] * 30


def test_thumbnails_lie_where_the_features_do() -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    found = np.array([[0.0, 0.0], [1.0, 1.0], [0.01, 0.0]])
    sheet = thumbnails(found, lambda row: Image.new("RGB", (10, 10), colours[row]))
    middle = sheet.width // 48
    corners = [sheet.getpixel((place, place)) for place in (middle, sheet.width - middle - 1)]
    assert corners == [(0, 0, 255, 255), (0, 255, 0, 255)]  # of two in a cell the one nearer to its middle
    assert sheet.getpixel((sheet.width // 2, sheet.height // 2)) == (0, 0, 0, 0)


def test_names_in_the_map_do_not_cover_each_other() -> None:
    """Three classes whose dots lie in one place."""
    middle, classes = np.full((9, 2), 0.5), ("cat", "dog", "owl") * 3
    drawn = str(scatter(EmbeddingPlot(middle, [str(number) for number in range(9)], classes, "")))
    heights = sorted(float(y) for y in re.findall(r'<text x="[\d.]+" y="([\d.]+)"', drawn))
    assert len(heights) == 3 and min(np.diff(heights)) >= 15
