"""The model card of an exported folder: origin, training, scores and usage of the weights.

The card is meant for publication. It contains no paths, file names or commands of the run, and no views of training
images if the user excludes them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from leoclr.cli.exporting.target import ExportOptions
from leoclr.cli.plotting.charts import Line, line_chart
from leoclr.cli.reporting.line_charts import thin
from leoclr.cli.reporting.run_facts import ReportedRun, read_run
from leoclr.cli.reporting.run_pictures import anonymous_views
from leoclr.cli.reporting.run_tables import has_effect, percent
from leoclr.cli.run.encoders import LoadedEncoder
from leoclr.cli.run.json_file import lines_of, number, part
from leoclr.cli.terminal import warn
from leoclr.evals.tables import METRICS

CARD, CURVE, VIEWS = "README.md", "curve.png", "views.png"
_MOST_POINTS = 60
_HALF_WIDTH = "_half_width"
_PRIVATE = ("data.train", "data.val", "encoder.weights", "run.")
_PATH = re.compile(r"(?<![\w.])(?:[a-z0-9]+://|~?/|\.{1,2}/)[^\s,;]+|[^\s,;]*[A-Za-z_][^\s,;]*/[^\s,;]*\.[a-z]+")
_PROGRAM = "leoclr itself is under Apache-2.0: no telemetry, no account. The weights that you train with it are yours."
_CITATION = """\
```bibtex
@article{alkhalefi2024leoclr,
  title   = {{LeOCLR}: Leveraging Original Images for Contrastive Learning of Visual Representations},
  author  = {Alkhalefi, Mohammad and Leontidis, Georgios and Zhong, Mingjun},
  journal = {Transactions on Machine Learning Research},
  year    = {2024},
  note    = {arXiv:2403.06813}
}
```"""


def write_card(folder: Path, encoder: LoadedEncoder, architecture: str, options: ExportOptions) -> None:
    """Write README.md and its pictures into `folder`."""
    run = read_run(encoder.run) if encoder.run is not None else None
    pictures = _draw(folder, run, options) if run is not None else []
    sections = [
        _front_matter(options.license),
        f"# {architecture}, pre-trained without labels",
        _summary(encoder, run),
        "## Loading",
        *_loading(encoder, architecture),
        *(["## Training", *_training(encoder, run)] if run is not None else []),
        *(["## Scores", *_scores(encoder, run)] if run is not None else []),
        *pictures,
        "## Limitations",
        *_limitations(run),
        "## Licence",
        f"`{options.license}`" if options.license else "Not stated: the owner of these weights decides.",
        _PROGRAM,
        "## Citation",
        _CITATION,
    ]
    (folder / CARD).write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def _front_matter(license: str | None) -> str:
    tags = ("timm", "transformers", "self-supervised-learning", "contrastive-learning", "leoclr")
    return "\n".join(
        (
            "---",
            "library_name: timm",
            "pipeline_tag: image-feature-extraction",
            f"license: {license or 'unknown'}",
            "tags:",
            *(f"- {tag}" for tag in tags),
            "---",
        )
    )


def _summary(encoder: LoadedEncoder, run: ReportedRun | None) -> str:
    size, features = encoder.image_size, encoder.backbone.feature_dim
    made = "Its weights come from elsewhere; leoclr has only converted them."
    if run is not None:
        views, backend = (_cell(run.settings.get(key, "?")) for key in ("views", "backend"))
        made = f"Trained by [leoclr](https://arxiv.org/abs/2403.06813) with {views} views under {backend}."
    return f"An image encoder without classifier: {features:,} features of an image of {size} x {size} px. {made}"


def _loading(encoder: LoadedEncoder, architecture: str) -> Iterator[str]:
    yield "With timm (`FOLDER` is this folder; `hf-hub:OWNER/NAME` in place of `local-dir:FOLDER` loads from the hub):"
    yield _python(
        "import timm",
        'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # num_classes=10: a new classifier',
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
        "features = model(transform(image)[None])",
    )
    yield "With transformers:"
    yield _python(
        "from transformers import AutoImageProcessor, AutoModel",
        'model, processor = AutoModel.from_pretrained("FOLDER"), AutoImageProcessor.from_pretrained("FOLDER")',
        'features = model(**processor(image, return_tensors="pt")).pooler_output',
    )
    if encoder.name == architecture:
        yield "With torchvision:"
        yield _python(
            "import safetensors.torch, torchvision",
            f"model = torchvision.models.{architecture}()",
            'model.load_state_dict(safetensors.torch.load_file("FOLDER/model.safetensors"), strict=False)  # no fc',
        )
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (encoder.mean, encoder.std))
    yield f"Preprocessing: {encoder.resize}; pixels / 255, mean ({mean}), standard deviation ({std})."


def _training(encoder: LoadedEncoder, run: ReportedRun) -> Iterator[str]:
    told, data = run.settings, run.part("data")
    samples, classes = number(data.get("samples")), data.get("classes")
    rows = [("images", f"{samples:,.0f}, labels unused" if samples is not None else "unknown")]
    if isinstance(classes, list) and classes:
        rows.append(("classes of the data", f"{len(classes):,}"))
    rows += [
        ("digest of the data", f"`{_cell(data.get('digest', 'unknown'))}`"),
        ("digest of the weights", f"`{encoder.digest}`"),
        ("epochs", f"{run.epochs:g} of {_cell(told.get('train.epochs', '?'))}"),
        ("batch size", _cell(told.get("data.batch_size", "?"))),
        ("optimizer", f"{_cell(told.get('optimizer.name', '?'))}, rate {_cell(told.get('optimizer.lr', '?'))}"),
        ("seed", _cell(told.get("train.seed", "?"))),
        ("preset", _cell(run.content.get("preset") or "none")),
    ]
    if start := run.part("weights").get("digest"):
        rows.append(("digest of the initial weights", f"`{_cell(start)}`"))
    versions = run.part("versions")
    rows.append(("versions", _cell(", ".join(f"{name} {value}" for name, value in versions.items())) or "unknown"))
    yield _table(("", ""), rows)
    shown = {key: value for key, value in told.items() if not key.startswith(_PRIVATE) and has_effect(key, told)}
    recipe = [(f"`{_cell(key)}`", _cell(value)) for key, value in shown.items()]
    table = _table(("setting", "value"), recipe)
    yield f"<details><summary>All settings of the recipe</summary>\n\n{table}\n\n</details>"


def _scores(encoder: LoadedEncoder, run: ReportedRun) -> Iterator[str]:
    """Of these weights alone: another checkpoint's figures would say nothing about them."""
    own = [record for record in run.records.values() if part(record, "checkpoint").get("digest") == encoder.digest]
    for record in own:
        results = {key: value for key, value in part(record, "results").items() if isinstance(value, Mapping)}
        metrics = dict.fromkeys(name for values in results.values() for name in values if _HALF_WIDTH not in name)
        rows = [
            (
                _cell(part(record, "rows").get(key, key.replace("_", " "))),
                *(percent(values, metric) for metric in metrics),
            )
            for key, values in results.items()
        ]
        yield f"### {_cell(record['kind'])}"
        yield _table(("", *(_cell(METRICS.get(metric, metric)) for metric in metrics)), rows)
        if _HALF_WIDTH in json.dumps(results):
            yield "±: half of the 95 % interval over the test images, or over random draws."
        yield "\n".join(f"- {line}" for line in _protocol(record))
    if not own:
        yield "None yet."
    if len(own) < len(run.records):
        yield f"{len(run.records) - len(own)} scores of other checkpoints of the run are left out."


def _protocol(record: Mapping[str, Any]) -> Iterator[str]:
    for line in (*lines_of(record.get("protocol")), *lines_of(record.get("notes"))):
        yield _cell(without_paths(line))
    data, counts = part(record, "data"), []
    for split in ("train", "test"):
        about = part(data, split)
        if (samples := number(about.get("samples"))) is not None:
            counts.append(f"{samples:,.0f} {split} images (digest `{_cell(str(about.get('digest'))[:12])}`)")
    counts.append(f"{_cell(data.get('classes', '?'))} classes")
    yield f"{', '.join(counts)}; seed {_cell(record.get('seed', '?'))}"


def without_paths(line: str) -> str:
    """A line of a protocol without the places where somebody's data lie."""
    line = re.sub(r"test data: .*, beside the training data", "test data: the split beside the training data", line)
    return _PATH.sub("[path]", line)


def _draw(folder: Path, run: ReportedRun, options: ExportOptions) -> list[str]:
    """Draw what the run's files allow; Markdown that shows it."""
    shown = []
    if points := thin(run.curves.get("loss", ()), _MOST_POINTS):
        x, y = zip(*points, strict=True)
        chart = line_chart("Loss", "Mean over the steps between two records", [Line("loss", x, y)], "epoch", "loss")
        chart.save(folder / CURVE, "PNG", optimize=True)
        shown.append(f"## Curve\n\n![Loss over epochs]({CURVE})")
    views = anonymous_views(run) if options.views else None
    if views is not None:
        views.save(folder / VIEWS, "PNG", optimize=True)
        shown.append(f"## Views\n\nTraining images as the encoder saw them.\n\n![Views]({VIEWS})")
        warn(f"the model card shows training images ({VIEWS}); --no-views leaves them out")
    return shown


def _limitations(run: ReportedRun | None) -> Iterator[str]:
    samples = number(run.part("data").get("samples")) if run is not None else None
    images = f"{samples:,.0f} images of one data set" if samples is not None else "images that this card does not know"
    yield "\n".join(
        (
            f"- Pre-trained on {images}. Other kinds of images are untested unless a score above is theirs.",
            "- Scores hold for the preprocessing above; other sizes, crops or normalisations change the features.",
            "- No classifier, and no evaluation of fairness, privacy or robustness beyond the scores above.",
        )
    )


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (headings, ["---"] * len(headings), *rows))


def _cell(value: object) -> str:
    """Text of a file, which is not trusted, as text of Markdown on one line."""
    plain = " ".join(str(value).split())
    return re.sub(r"([|`\\\[\]])", r"\\\1", plain).replace("<", "&lt;")


def _python(*lines: str) -> str:
    return "\n".join(("```python", *lines, "```"))
