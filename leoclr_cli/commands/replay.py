"""`leoclr replay`: run a failed step again, with the figures of every layer."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from leoclr.datasets.wording import aligned

if TYPE_CHECKING:
    from leoclr.cli.training.replay import Replayed

_MOST_ROWS = 12
Figures = TypeVar("Figures")


def replay(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    step: Annotated[
        int | None,
        typer.Option("--step", min=0, metavar="N", help="Number of the step, from 0; default: the one that failed."),
    ] = None,
    device: Annotated[str | None, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """Run a step of a run again and show where its first value that is not finite appears.

    The steps since the newest checkpoint are made again in memory; nothing is written. One process makes the whole
    batch. The tables show the layers with the largest outputs and the parameters with the largest gradients; --json
    has all of them.

    \b
    Examples:
      leoclr replay runs/first
      leoclr replay runs/first --step 1200 --json > step.json
    """
    from leoclr.cli.config.fields import replaced
    from leoclr.cli.run.recorded import recorded_settings
    from leoclr.cli.terminal import print_json, progress

    settings = recorded_settings(run)
    if device is not None:
        settings = replaced(settings, {"run.device": device})
    from leoclr.cli.training.replay import replay as make_again

    with progress("steps made again", None, "step") as advance:
        found = make_again(run, settings, step, advance)
    print_json(asdict(found)) if as_json else print(_text(found))


def _text(found: Replayed) -> str:
    loss = "not finite" if found.loss is None else f"{found.loss:.4f}"
    lines = [
        f"step {found.step}, made again from step {found.after}: loss {loss}",
        f"first value that is not finite: {found.first or 'none'}",
        f"batch: {len(found.keys)} images, beginning with {', '.join(found.keys[:4])}",
    ]
    layers = [("layer", "largest output", "deviation")]
    layers += [(one.name, _number(one.largest), _number(one.deviation)) for one in _first(found.layers, "largest")]
    parameters = [("parameter", "norm", "norm of gradient")]
    parameters += [
        (one.name, _number(one.norm), _number(one.gradient_norm)) for one in _first(found.parameters, "gradient_norm")
    ]
    return "\n".join([*lines, "", aligned(layers), "", aligned(parameters)])


def _first(figures: list[Figures], by: str) -> list[Figures]:
    """Those that are not finite, in their order, and then the largest."""
    infinite = [one for one in figures if getattr(one, by) is None]
    largest = sorted((one for one in figures if getattr(one, by) is not None), key=lambda one: -getattr(one, by))
    return [*infinite, *largest][:_MOST_ROWS]


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"
