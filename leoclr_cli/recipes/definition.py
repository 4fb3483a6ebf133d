"""Recipes: experiments of a paper as files, one per table or figure, in `recipes/`.

A recipe names data sets, pre-trainings, methods and the columns of a table. Each (method, pre-training, seed) is one
`leoclr train`, each column one `leoclr eval`. The files contain no logic and no settings except these flags.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, FiniteFloat, ValidationError, model_validator

from leoclr.backends.settings import Count, NonNegative, Positive, PositiveCount, Strict
from leoclr.datasets.errors import SettingsError, first_fault

FOLDER = Path(__file__).parent
Flags = tuple[str, ...]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 .,%()+-]*$")]
Split = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*(/[a-z]+)?$")]  # a data set, or NAME/SPLIT of it


class Pretraining(Strict):
    """What all methods of a table share."""

    data: Split
    epochs: PositiveCount
    arguments: Flags = ()


class RecipeMethod(Strict):
    """What sets one method apart.

    Attributes:
        arguments: Of `leoclr train`; None for a row that is listed and cannot be trained.
        epochs: Of the pre-training's, as a share: 0.8 for LeOCLR at the compute of MoCo.
        against: The method that it is compared with, seed by seed; "" for none.
        published: What others found with it, where and how; "" for nothing.
    """

    arguments: Flags | None = None
    epochs: Positive = 1.0
    against: str = ""
    published: str = ""


class Column(Strict):
    """One figure of each method.

    Attributes:
        command: What follows `leoclr eval`.
        epochs: Of the evaluation's own training, where it has one; scaled with the recipe.
        train_data, test_data: Labelled data, if not what the pre-training's data has beside it.
        metric: Where the figure stands in the record: the row's key and the metric's, as in `linear.top1`.
        percent: Whether the record holds a share, which the table shows in percent.
        curve, x: Of a figure with curves: which of them the column is a point of, and where.
        paper: By method.
    """

    name: Name
    pretrain: str
    command: Flags
    epochs: PositiveCount | None = None
    train_data: Split | None = None
    test_data: Split | None = None
    metric: Annotated[str, Field(pattern=r"^[^.]+\.[^.]+$")]
    percent: bool = True
    curve: str = ""
    x: Positive | None = None
    paper: dict[str, FiniteFloat] = {}


class Recipe(Strict):
    """A table or figure.

    Attributes:
        tolerance: Percentage points around the paper's figure within which it counts as reproduced.
        data: What each data set is, by name.
        baseline: The column that the others are drawn as drops from; "" for none.
        x_label: What the curves run over, on a logarithmic scale.
        notes: What the paper left open, and how it is filled here.
    """

    title: str
    source: str
    tolerance: NonNegative
    seeds: tuple[Count, ...]
    data: dict[str, str]
    pretrain: dict[str, Pretraining]
    methods: dict[Name, RecipeMethod]
    columns: tuple[Column, ...]
    baseline: str = ""
    x_label: str = ""
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _names_exist(self) -> Recipe:
        splits = [pretraining.data for pretraining in self.pretrain.values()]
        splits += [split for column in self.columns for split in (column.train_data, column.test_data) if split]
        problems = [f"no data set {split}" for split in splits if split.partition("/")[0] not in self.data]
        problems += [f"no pre-training {c.pretrain}" for c in self.columns if c.pretrain not in self.pretrain]
        problems += [f"no method {name}" for c in self.columns for name in c.paper if name not in self.methods]
        against = [method.against for method in self.methods.values() if method.against]
        problems += [f"no method {name}" for name in against if name not in self.methods]
        names = [column.name for column in self.columns]
        if len(set(names)) < len(names) or not names:
            problems.append("each column needs a name of its own")
        if any(bool(column.curve) != (column.x is not None) for column in self.columns):
            problems.append("a column has both a curve and an x, or neither")
        if self.baseline and self.baseline not in names:
            problems.append(f"no column {self.baseline}")
        if problems:
            raise ValueError("; ".join(problems))
        return self


def selected(recipe: Recipe, methods: Sequence[str] = (), with_leoclr: bool = False) -> Recipe:
    """The recipe with some of its methods, or with all that can be trained.

    Args:
        methods: Their names; none for all.
        with_leoclr: Whether each comes with its variant under `--views leoclr` too, which is compared with it.

    Raises:
        SettingsError: There is no such method, or it cannot be trained.
    """
    trained = [name for name, method in recipe.methods.items() if method.arguments is not None]
    for name in methods:
        if name not in trained:
            what = "cannot be trained here" if name in recipe.methods else "is no method of the recipe"
            raise SettingsError(f"--method {name}: {what}; there are {', '.join(trained)}")
    kept: dict[str, RecipeMethod] = {}
    for name in methods or trained:
        method = kept[name] = recipe.methods[name]
        arguments = method.arguments or ()
        if with_leoclr and "leoclr" not in arguments:
            own = [word for before, word in zip(("", *arguments), arguments, strict=False) if before != "--views"]
            words = (*(word for word in own if word != "--views"), "--views", "leoclr")
            kept[f"{name}, original as anchor"] = method.model_copy(
                update={"arguments": words, "against": name, "published": ""}
            )
    for name, method in kept.items():
        if method.against not in kept:
            kept[name] = method.model_copy(update={"against": ""})
    return recipe.model_copy(update={"methods": kept})


def names() -> list[str]:
    """Of the recipes that come with leoclr."""
    return sorted(file.stem for file in FOLDER.glob("*.toml"))


def load_recipe(name: str) -> Recipe:
    """A recipe by name, or from a file of one's own.

    Raises:
        SettingsError: There is no such recipe, or it is not one.
    """
    file = FOLDER / f"{name}.toml" if name in names() else Path(name)
    try:
        content: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
        return Recipe.model_validate(content)
    except (FileNotFoundError, IsADirectoryError):
        raise SettingsError(f"no recipe {name!r}; there are {', '.join(names())}, or name a .toml file") from None
    except ValidationError as error:
        raise SettingsError(f"{file}: {first_fault(error)}") from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"{file}: not a recipe ({error})") from None
