"""`leoclr report`: one page with all that a run folder tells, whatever else it holds."""

from __future__ import annotations

import json
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
from leoclr.cli.reporting.feature_map import places
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
    assert "62.50 ± 1.25" in page.text and "k-NN of a test" in page.text
    assert "leoclr views under moco, resnet18 at 16 px, 10 epochs of 24 images" in page.text
    assert "AP50, detection" in page.text and "43.8 %" in page.text and "43.75" in page.text
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


def test_without_data_and_checkpoint_the_page_says_so(report: Run, make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("first")
    shutil.rmtree(tmp_path / "shards")
    assert report(run)[0] == 0
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
    tile = text[text.index("top-1, knn") - 20 :][:60]
    assert "75 %" in tile and "62.5 %" not in tile  # the newest checkpoint's on top


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
