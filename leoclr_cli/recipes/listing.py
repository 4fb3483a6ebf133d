"""The rows of a recipe, before any of it is run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from leoclr.cli.config.flags import parse_flags
from leoclr.cli.recipes.definition import Recipe, load_recipe, selected
from leoclr.cli.terminal import print_json, say
from leoclr.datasets.wording import aligned


def print_rows(name: str, methods: Sequence[str], with_leoclr: bool, as_json: bool) -> None:
    """Print the methods of a recipe with the paper's figures, and how to run it.

    Args:
        methods: Names of the rows to print; none prints all.
        with_leoclr: Whether to add each with the original as anchor.
        as_json: Whether to print JSON.
    """
    recipe = load_recipe(name)
    shown = selected(recipe, methods, with_leoclr) if methods or with_leoclr else recipe
    if as_json:
        about = {"title": recipe.title, "source": recipe.source, "notes": recipe.notes, "data": recipe.data}
        print_json(about | {"methods": _rows(shown)})
    else:
        print(f"{recipe.title} ({recipe.source})\n\n{_as_text(shown)}")
        for note in recipe.notes:
            print(f"note: {note}")
    needed = " ".join(f"--data {one}=SHARDS" for one in recipe.data)
    say(f"to run it: leoclr reproduce {name} {needed}")


def _rows(recipe: Recipe) -> list[dict[str, Any]]:
    """How each method is trained, the paper's figures by column, and what others found."""
    found = []
    for name, method in recipe.methods.items():
        backend = views = None
        if method.arguments is not None:
            shared = next(iter(recipe.pretrain.values())).arguments
            settings = parse_flags(shared + method.arguments).resolve().settings
            backend, views = settings.backend, settings.views
        figures = {column.name: column.paper.get(name) for column in recipe.columns}
        found.append(
            {"method": name, "backend": backend, "views": views, "paper": figures, "published": method.published}
        )
    return found


def _as_text(recipe: Recipe) -> str:
    lines = [("method", "backend", "views", *(column.name for column in recipe.columns), "published")]
    for row in _rows(recipe):
        figures = ("" if figure is None else f"{figure:.2f}" for figure in row["paper"].values())
        lines.append((row["method"], row["backend"] or "-", row["views"] or "-", *figures, row["published"]))
    return aligned(lines, left=len(lines[0]))
