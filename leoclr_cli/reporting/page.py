"""The HTML page of a report."""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime

from PIL import Image

from leoclr.cli.reporting.charts import PERCENT, PLAIN, label_chart, loss_kind, training_charts
from leoclr.cli.reporting.document import document
from leoclr.cli.reporting.embedding_plot import scatter
from leoclr.cli.reporting.markup import Html, element, join
from leoclr.cli.reporting.run_facts import ReportedRun
from leoclr.cli.reporting.run_pictures import Pictures
from leoclr.cli.reporting.run_tables import chip, environment_table, score_tables, settings_tables
from leoclr.cli.reporting.score_tiles import ScoreTile, score_tiles
from leoclr.cli.run.json_file import number

_INTERVAL = "±: half of a 95 % interval over the test images. It holds neither other seeds nor other pre-trainings."


def report_page(runs: Sequence[ReportedRun], pictures: Sequence[Pictures], defaults: Mapping[str, str]) -> Html:
    """The whole page.

    Args:
        pictures: Of each run.
        defaults: Of the settings, by dotted key.
    """
    sections = {
        "overview": ("Overview", _overview(runs)),
        "curves": ("Training", training_charts(runs)),
        "scores": ("Scores", _scores(runs)),
        "views": ("What the model sees", _views(runs, pictures)),
        "neighbours": ("What it finds alike", _neighbours(runs, pictures)),
        "map": ("Map of the features", _maps(runs, pictures)),
        "settings": ("Settings", element("div", settings_tables(runs, defaults), class_="card")),
        "images": ("Unusable images", _bad_images(runs)),
        "environment": ("Environment", _environment(runs, pictures)),
    }
    shown = {key: section for key, section in sections.items() if section[1]}
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    links = [element("a", heading, href=f"#{key}") for key, (heading, _) in shown.items()]
    body = [element("section", element("h2", heading), content, id=key) for key, (heading, content) in shown.items()]
    made = f"Made by leoclr report on {datetime.now().astimezone():%d %B %Y, %H:%M %Z}."
    return document(
        f"{title}: leoclr report",
        element("header", element("h1", title), _legend(runs)),
        element("nav", element("div", *links), aria_label="Sections"),
        element("main", *body, element("footer", made)),
    )


def _legend(runs: Sequence[ReportedRun]) -> Html:
    if len(runs) == 1:
        return element("p", _summary(runs[0]), class_="lead")
    return element("p", *(chip(colour, run.name) for colour, run in enumerate(runs)), class_="lead")


def _overview(runs: Sequence[ReportedRun]) -> Html:
    cards = []
    for colour, run in enumerate(runs):
        tiles = [
            element("div", element("b", tile.value), element("span", tile.label), class_="tile") for tile in _tiles(run)
        ]
        problems = [element("p", problem, class_="notice") for problem in run.problems]
        name = [element("h3", run.name), element("p", _summary(run), class_="quiet")] if len(runs) > 1 else []
        interval = [element("p", _INTERVAL, class_="quiet")] if any("±" in tile for tile in tiles) else []
        content = [*name, element("div", *tiles, class_="tiles"), *interval, *problems]
        cards.append(element("article", *content, class_=f"run own{colour}"))
    return element("div", *cards, class_="runs")


def _summary(run: ReportedRun) -> str:
    told = run.settings
    samples = number(run.part("data").get("samples"))
    images = f" of {samples:,.0f} images" if samples is not None else ""
    planned = told.get("train.epochs", "?")
    epochs = f"{planned} {'epoch' if planned == '1' else 'epochs'}"
    epochs = epochs if f"{run.epochs:g}" == planned else f"{run.epochs:.4g} of {epochs}"
    return (
        f"{told.get('views', '?')} views under {told.get('backend', '?')}, {told.get('encoder.backbone', '?')} at "
        f"{told.get('data.image_size', '?')} px, {epochs}{images}, seed {told.get('train.seed', '?')}"
    )


def _tiles(run: ReportedRun) -> list[ScoreTile]:
    tiles = score_tiles(run)
    while_training = run.last("knn")
    if while_training is not None and not any("k-NN, k" in tile.label for tile in tiles):
        tiles.append(ScoreTile(PERCENT(while_training), "k-NN while training"))
    for value, label in (
        (run.last("loss"), loss_kind(run).label),
        (run.last("effective_rank"), "effective rank"),
        (run.mean_rate, "images/s, mean of the run"),
    ):
        if value is not None:
            tiles.append(ScoreTile(PLAIN(value), label))
    return tiles


def _scores(runs: Sequence[ReportedRun]) -> Html:
    if any(run.records for run in runs):
        return join(label_chart(runs), score_tables(runs))
    run = runs[0]
    data = run.part("data")
    labelled = data.get("labelled", data.get("classes", True))
    command = "eval knn" if labelled else "embed"
    return element(
        "p",
        "No score has been computed yet" + (": " if labelled else ", as the data has no labels; its features: "),
        element("code", f"leoclr {command} {shlex.quote(str(run.folder.path))}"),
        class_="quiet",
    )


def _views(runs: Sequence[ReportedRun], pictures: Sequence[Pictures]) -> Html:
    return join(
        *(
            _picture(chip(colour, run.name), picture.views, f"Views of {run.name}")
            for colour, (run, picture) in enumerate(zip(runs, pictures, strict=True))
            if picture.views is not None
        )
    )


def _neighbours(runs: Sequence[ReportedRun], pictures: Sequence[Pictures]) -> Html:
    return join(
        *(
            _picture(
                join(chip(colour, run.name), f"out of its {picture.from_data} data"),
                picture.neighbours,
                f"Images and their nearest neighbours under {run.name}",
            )
            for colour, (run, picture) in enumerate(zip(runs, pictures, strict=True))
            if picture.neighbours is not None
        )
    )


def _maps(runs: Sequence[ReportedRun], pictures: Sequence[Pictures]) -> Html:
    parts = []
    for colour, (run, picture) in enumerate(zip(runs, pictures, strict=True)):
        if picture.map is None or picture.thumbnails is None:
            continue
        caption = element("figcaption", chip(colour, run.name), f"{len(picture.map.keys):,} {picture.from_data} images")
        dots = element("figure", caption, scatter(picture.map), class_="chart")
        images = _picture("The same places, with the images themselves", picture.thumbnails, "Images on the map", "")
        parts += [element("div", dots, images, class_="maps"), element("p", picture.map.method, class_="quiet")]
    return join(*parts)


def _bad_images(runs: Sequence[ReportedRun]) -> Html:
    parts = []
    for colour, run in enumerate(runs):
        count, lines = run.bad_images
        if count:
            more = [element("li", f"and {count - len(lines):,} more")] if count > len(lines) else []
            items = [element("li", element("code", line)) for line in lines]
            parts.append(element("div", chip(colour, run.name), element("ul", *items, *more), class_="card"))
    return join(*parts)


def _environment(runs: Sequence[ReportedRun], pictures: Sequence[Pictures]) -> Html:
    digests = [picture.encoder.digest if picture.encoder is not None else None for picture in pictures]
    return element("div", environment_table(runs, digests), class_="card")


def _picture(caption: object, image: Image.Image, alternative: str, class_: str = "whole") -> Html:
    drawn = element("img", src=_data_address(image), alt=alternative, width=image.width, class_=class_ or None)
    return element("figure", element("figcaption", caption), drawn, class_="picture")


def _data_address(image: Image.Image) -> str:
    """The picture in the address itself: losslessly as PNG, or as WebP where that is much smaller (photographs)."""
    png, webp = io.BytesIO(), io.BytesIO()
    image.save(png, "PNG", optimize=True)
    image.save(webp, "WEBP", quality=88)
    kind, data = ("png", png) if len(png.getvalue()) < 1.5 * len(webp.getvalue()) else ("webp", webp)
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"
