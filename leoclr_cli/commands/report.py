"""`leoclr report`: an HTML page about a run, or a comparison of several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from leoclr.datasets.errors import RunError

_MOST_SAMPLES = 2000


def report(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="RUN", help="Run folders, at most 8; default: the newest run.")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", dir_okay=False, metavar="FILE", help="HTML file to write.")
    ] = Path("report.html"),
    samples: Annotated[
        int,
        typer.Option(
            "--samples", min=0, max=_MOST_SAMPLES, metavar="N", help="Images for neighbours and map; 0 omits both."
        ),
    ] = 1000,
    map_kind: Annotated[
        Literal["tsne", "pca", "none"], typer.Option("--map", help="Projection of the features to two dimensions.")
    ] = "tsne",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write one self-contained HTML page: curves, scores, views, nearest neighbours, map, settings, environment.

    The page needs no network and contains no script. It names missing parts (moved data, no checkpoint yet) and shows
    the rest.

    \b
    Examples:
      leoclr report
      leoclr report runs/leoclr runs/baseline -o comparison.html
      leoclr report runs/first --samples 0
    """
    from leoclr.cli.config.settings import Settings
    from leoclr.cli.reporting.page import report_page
    from leoclr.cli.reporting.run_facts import flat, read_run
    from leoclr.cli.reporting.run_pictures import draw_pictures
    from leoclr.cli.reporting.style import MOST_RUNS
    from leoclr.cli.run.folder import newest_run
    from leoclr.cli.terminal import print_json, progress, say, warn
    from leoclr.datasets.files import writable

    folders = runs or [newest_run()]
    if len(folders) > MOST_RUNS:
        raise RunError(f"{len(folders)} runs: a report compares at most {MOST_RUNS}")
    told = [read_run(folder) for folder in folders]
    with progress("features", len(told) * samples, "images") as advance:
        pictures = [draw_pictures(run, samples, map_kind, advance) for run in told]
    defaults = dict(flat(Settings().model_dump(mode="json")))
    page = report_page(told, pictures, defaults).encode(errors="replace")
    with writable(output) as temporary:
        temporary.write_bytes(page)
    for run, drawn in zip(told, pictures, strict=True):
        for problem in run.problems:
            warn(f"{run.name}: {problem.rstrip('.')}")
        wanted: dict[str, object] = {"views": drawn.views}
        wanted |= {"neighbours": drawn.neighbours} if samples else {}
        wanted |= {"map": drawn.map} if samples and map_kind != "none" else {}
        lacking = [name for name, picture in wanted.items() if picture is None]
        if run.problems and lacking:
            warn(f"{run.name}: the page is without {', '.join(lacking)}")
    if as_json:
        runs_told = [{"run": str(run.folder.path), "problems": run.problems} for run in told]
        print_json({"path": str(output), "bytes": len(page), "runs": runs_told})
    else:
        say(f"{output}: {len(page) / 1e6:.1f} MB")
