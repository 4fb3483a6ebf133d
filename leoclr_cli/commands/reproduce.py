"""`leoclr reproduce` and `leoclr ablate`: run the experiments of the paper."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from leoclr.cli.commands.base.lazy import Entry, group_of
from leoclr.cli.options import with_fields
from leoclr.cli.terminal import print_json, say
from leoclr.datasets.errors import RunError, SettingsError

if TYPE_CHECKING:
    from leoclr.cli.recipes.steps import RecipePlan

_HELP = """Repeat pre-training without single components, evaluate, and draw the contribution of each.

\b
Examples:
  leoclr ablate augmentations --data shards/imagenet --num-processes 8
  leoclr ablate augmentations --on cifar10 --data shards/cifar10 --scale 0.25
"""

ablate_app = typer.Typer(
    help=_HELP,
    rich_markup_mode=None,
    cls=group_of({"augmentations": Entry(f"{__name__}:augmentations", "Remove augmentations one after another.")}),
)

Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="[NAME=]SHARDS",
        help="Folder written by `leoclr shard`; with NAME if the recipe has several data sets. Repeatable.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FOLDER", help="Folder for runs and results; default: reproduce/NAME."),
]
Scale = Annotated[
    float, typer.Option("--scale", min=0.0, help="Share of all epochs, for a trial: 0.05 turns 800 epochs into 40.")
]
Seeds = Annotated[
    int | None,
    typer.Option("--seeds", min=1, metavar="N", help="Pre-trainings of each method; default: the recipe's."),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Setting of the pre-trainings that differs from the recipe. Repeatable."
    ),
]
Methods = Annotated[
    list[str] | None,
    typer.Option("--method", metavar="NAME", help="Row of the recipe to run; default: all. Repeatable."),
]
WithLeoclr = Annotated[
    bool, typer.Option("--leoclr", help="Also train each method with the original as the anchor (--views leoclr).")
]
Device = Annotated[str | None, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.")]
Workers = Annotated[int | None, typer.Option("--workers", min=-1, metavar="N", help="Loader processes.")]
Precision = Annotated[
    Literal["float32", "bf16"] | None,
    typer.Option("--precision", help="Precision of encoders in training and evaluation; default: float32."),
]
Processes = Annotated[
    int, typer.Option("--num-processes", min=1, metavar="N", help="Processes of a pre-training, one per GPU.")
]
AnyData = Annotated[
    bool,
    typer.Option(
        "--any-data", help="Accept data with other numbers of images or classes than the recipe's, as a trial."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the remaining commands and run none.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the table as JSON.")]


@dataclass(frozen=True)
class Request:
    """The options of both commands."""

    data: Data = None
    output: Output = None
    scale: Scale = 1.0
    seeds: Seeds = None
    changes: Changes = None
    device: Device = None
    precision: Precision = None
    workers: Workers = None
    num_processes: Processes = 1
    any_data: AnyData = False
    dry_run: DryRun = False
    as_json: AsJson = False

    def program_flags(self) -> tuple[str, ...]:
        """What is handed on to every command of a recipe."""
        given = [("--device", self.device), ("--workers", self.workers)]
        return tuple(str(word) for flag, value in given if value is not None for word in (flag, value))


@with_fields(Request)
def reproduce(
    request: Request,
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="table1 to table7, figure4, ...; default: list all recipes.")
    ] = None,
    methods: Methods = None,
    with_leoclr: WithLeoclr = False,
) -> None:
    """Run an experiment of the paper and compare its results with the paper's.

    A recipe is a list of `leoclr train` and `leoclr eval` commands. Repeat the command to continue after Ctrl-C. The
    folder holds runs, records and the table. Without --data, the methods of a recipe and known figures are listed.

    \b
    Examples:
      leoclr reproduce
      leoclr reproduce table1
      leoclr reproduce table1 --data shards/imagenet --method BYOL --method SwAV --leoclr
      leoclr reproduce table6 --data cifar10=shards/cifar10 --data stl10=shards/stl10 --scale 0.05
      leoclr reproduce cifar10 --data shards/a-part-of-it --any-data --scale 0.05
      leoclr reproduce cifar10 --data shards/cifar10 --seeds 1 --dry-run
    """
    from leoclr.cli.recipes.definition import load_recipe, names

    if recipe is None:
        titles = {name: load_recipe(name).title for name in names()}
        width = max(map(len, titles)) + 2
        print_json(titles) if request.as_json else print("\n".join(f"{name:<{width}}{titles[name]}" for name in titles))
        return
    if not request.data and not request.dry_run and request.output is None:
        from leoclr.cli.recipes.listing import print_rows

        print_rows(recipe, methods or [], with_leoclr, request.as_json)
        return
    _carry_out(recipe, request, tuple(methods or ()), with_leoclr)


@with_fields(Request)
def augmentations(
    request: Request,
    on: Annotated[
        Literal["imagenet", "cifar10"], typer.Option("--on", help="The recipe's data and encoder.")
    ] = "imagenet",
) -> None:
    """Pre-train each method with augmentations removed one after another, and draw the loss of accuracy.

    The paper's Figure 4; the same as `leoclr reproduce figure4`, or figure4-cifar10.

    \b
    Examples:
      leoclr ablate augmentations --data shards/imagenet --num-processes 8
      leoclr ablate augmentations --on cifar10 --data shards/cifar10 --scale 0.25 --seeds 1
    """
    name = "figure4" if on == "imagenet" else f"figure4-{on}"
    _carry_out(name, request)


def _carry_out(name: str, request: Request, methods: tuple[str, ...] = (), with_leoclr: bool = False) -> None:
    from leoclr.cli.recipes.checks import check_data, check_names, check_settings
    from leoclr.cli.recipes.definition import load_recipe, selected
    from leoclr.cli.recipes.known_data import check_known
    from leoclr.cli.recipes.steps import RecipePlan, data_by_name

    if request.scale <= 0:
        raise SettingsError(f"--scale {request.scale:g}: expected a number above 0")
    recipe = selected(load_recipe(name), methods, with_leoclr)
    short = Path(name).stem
    plan = RecipePlan(
        recipe=recipe,
        folder=request.output or Path("reproduce") / short,
        data=data_by_name(recipe, request.data or []),
        scale=request.scale,
        seeds=recipe.seeds if request.seeds is None else tuple(range(request.seeds)),
        changes=tuple(request.changes or ()),
        precision=request.precision,
        processes=request.num_processes,
        flags=request.program_flags(),
        any_data=request.any_data,
    )
    check_names(plan)
    check_settings(plan)
    check_data(plan)
    if not request.any_data:
        check_known(plan)
    units = list(plan.units())
    steps = [step for unit in units for step in unit.steps()]
    if request.dry_run:
        left = [shlex.join(("leoclr", *step.command())) for step in steps if not step.done()]
        print_json({"commands": left}) if request.as_json else print("".join(f"{line}\n" for line in left), end="")
        return
    _same_as_before(plan, short)
    try:
        for number, step in enumerate(steps, start=1):
            if not step.done():
                say(f"[{number}/{len(steps)}] {shlex.join(('leoclr', *step.command()))}")
                step.run()
    except KeyboardInterrupt:
        _report(plan, short, request.as_json)
        say("stopped; the same command goes on from here")
        raise typer.Exit(130) from None
    _report(plan, short, request.as_json)


def _same_as_before(plan: RecipePlan, name: str) -> None:
    """One folder holds one experiment: the same recipe, data, scale and settings. New steps may be added to it."""
    import json

    from leoclr.cli.recipes.steps import read_json
    from leoclr.datasets.files import write_atomic

    about = {
        "recipe": name,
        "data": dict(plan.data),
        "scale": plan.scale,
        "changes": list(plan.changes),
        "precision": plan.precision,
        "processes": plan.processes,
    }
    commands = plan.commands()
    path = plan.folder / "reproduce.json"
    begun = [*plan.folder.glob("records/*.json"), *plan.folder.glob("runs/*/metrics.jsonl")]
    if path.exists() and begun:  # a first step that was refused leaves nothing that could be mixed up
        before = read_json(path)
        known = before.get("commands")
        if not isinstance(known, dict):
            raise RunError(f"{plan.folder} was begun by another version of leoclr; choose another --output")
        done = {step.record.name for unit in plan.units() for step in unit.steps() if step.begun()}
        changed = [
            f"{key} {before.get(key)!r}, now {value!r}" for key, value in about.items() if before.get(key) != value
        ] or [  # the recipe was edited
            f"`{known[name]}`, now `{command}`"
            for name, command in commands.items()
            if name in done and known.get(name, command) != command
        ]
        if changed:
            raise RunError(f"{plan.folder} was begun with {'; '.join(changed)}; choose another --output")
        commands = known | commands
    plan.folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(about | {"commands": commands}, indent=2).encode())


def _report(plan: RecipePlan, name: str, as_json: bool) -> None:
    """The table of what is done so far, in files and on stdout."""
    import json

    from leoclr.cli.plotting.drawing import save_picture
    from leoclr.cli.recipes.results import write_result
    from leoclr.cli.recipes.steps import read_json
    from leoclr.cli.recipes.table import as_json as table_json
    from leoclr.cli.recipes.table import as_markdown, as_picture, as_text
    from leoclr.datasets.files import write_atomic

    done = [unit for unit in plan.units() if all(step.done() for step in unit.steps())]
    if not done:
        return
    results = [read_json(write_result(unit, name)) for unit in done]  # and not those of seeds that were not asked for
    table = table_json(plan.recipe, results)
    write_atomic(plan.folder / "table.json", (json.dumps(table, indent=2) + "\n").encode())
    write_atomic(plan.folder / "table.md", as_markdown(plan.recipe, results).encode())
    save_picture(as_picture(plan.recipe, results), plan.folder / "table.png")
    print_json(table) if as_json else print(as_text(plan.recipe, results))
    say(f"written to {plan.folder}: table.md, table.json, table.png, results/")
