"""The table of docs/methods.md is what the settings of the methods say."""

from __future__ import annotations

from pathlib import Path

from leoclr.cli.config.plugins import METHODS, VIEWS, plugins
from leoclr.cli.config.settings import Settings
from leoclr.cli.preflight.checks import facts_of

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"

# Those that wrap no loss.
POLICIES = ("byol", "leoclr", "multicrop", "obow", "original", "pairwise", "pairwise-symmetric")


def cell(backend: str, views: str) -> str:
    """Forward passes for an image, or why there is no such run."""
    settings = Settings.model_validate({"backend": backend, "views": views})
    facts = facts_of(settings, images=1_281_167, ranks=1)
    problems = list(settings.method.problems(facts))
    return f"no: {problems[0]}" if problems else f"{settings.method.forward_passes(facts):.3g}"


def table() -> str:
    methods = [one.name for one in plugins(METHODS).values() if one.builtin]
    views = [one.name for one in plugins(VIEWS).values() if one.name in POLICIES]
    lines = [["", *(f"`{name}`" for name in views)], ["---"] * (len(views) + 1)]
    lines += [[f"`{method}`", *(cell(method, name) for name in views)] for method in methods]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def test_the_table_of_methods_and_views_is_current() -> None:
    assert table() in PAGE.read_text("utf-8")
