"""The rows of a recipe, before any of it is run."""

from __future__ import annotations

from collections.abc import Sequence

from leoclr.cli.recipes.definition import load_recipe, selected
from leoclr.cli.recipes.table import rows
from leoclr.cli.terminal import say


def print_rows(name: str, methods: Sequence[str], with_leoclr: bool) -> None:
    """Print the methods of a recipe with the paper's figures, and how to run it.

    Args:
        methods: Names of the rows to print; none prints all.
        with_leoclr: Whether to add each with the original as anchor.
    """
    recipe = load_recipe(name)
    shown = selected(recipe, methods, with_leoclr) if methods or with_leoclr else recipe
    print(f"{recipe.title} ({recipe.source})\n\n{rows(shown)}")
    for note in recipe.notes:
        print(f"note: {note}")
    needed = " ".join(f"--data {one}=SHARDS" for one in recipe.data)
    say(f"to run it: leoclr reproduce {name} {needed}")
