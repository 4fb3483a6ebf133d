"""The names of the settings (`optimizer.lr`, LEOCLR_OPTIMIZER__LR), and how one value is checked.

Two ways to read a value, because two kinds of sources exist: a file says types (`3`, `"3"`, `[1, 2]`) and is taken at
its word; a flag or variable is text, and the setting's type says how to read it.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from functools import cache
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from leoclr.cli.config.settings import Settings
from leoclr.datasets.storage.addresses import redacted


def _fields() -> dict[str, FieldInfo]:
    fields: dict[str, FieldInfo] = {}
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            fields |= {f"{name}.{key}": inner for key, inner in field.annotation.model_fields.items()}
        else:
            fields[name] = field
    return fields


FIELDS = _fields()
SECTIONS = tuple(dict.fromkeys(key.partition(".")[0] for key in FIELDS if "." in key))
VARIABLE_PREFIX = "LEOCLR_"
VARIABLES = {VARIABLE_PREFIX + key.replace(".", "__").upper(): key for key in FIELDS}


class BadValue(ValueError):
    """One value does not fit its setting. The message says what would."""


def get(settings: Settings, key: str) -> Any:
    """The value at a dotted key."""
    value: Any = settings
    for part in key.split("."):
        value = getattr(value, part)
    return value


def choices(key: str) -> tuple[str, ...]:
    """The words that a setting takes; none where it takes more than a list of words."""
    return tuple(choice for choice in get_args(FIELDS[key].annotation) if isinstance(choice, str))


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """`{"optimizer.lr": 1}` as `{"optimizer": {"lr": 1}}`."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[name] = value
    return tree


def from_file(key: str, value: Any) -> Any:
    """Check a value that a file gave. No type is bent, except that a whole number will do for a number.

    Raises:
        BadValue
    """
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):  # of a number with thousands of digits
        raise BadValue(f"must be text, a number, true, false or a list of these, got {shown(value)}") from None
    try:
        return _adapter(key).validate_json(text, strict=True)
    except ValidationError as error:
        raise BadValue(_in_words(error.errors(include_url=False)[0])) from None


def from_text(key: str, text: str | Iterable[str]) -> Any:
    """Check a value that a flag or a variable gave; where the setting is a list, commas separate the items.

    Args:
        text: One string, or the items of a list, already apart.

    Raises:
        BadValue
    """
    value: Any = text
    if is_list(key):
        value = split_list(text) if isinstance(text, str) else tuple(text)
    try:
        return _adapter(key).validate_python(value)
    except ValidationError as error:
        raise BadValue(_in_words(error.errors(include_url=False)[0])) from None


def split_list(text: str) -> tuple[str, ...]:
    """Split at commas outside braces, so that `{train,val}-{000..009}.tar` stays whole. No text is no items."""
    items = [""]
    depth = 0
    for character in text:
        depth += (character == "{") - (character == "}")
        if character == "," and depth <= 0:
            items.append("")
        else:
            items[-1] += character
    return tuple(item.strip() for item in items) if text else ()


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that `word` was probably meant to be, or None."""
    found = difflib.get_close_matches(word, list(choices), n=1)
    return found[0] if found else None


def nearest_key(key: str) -> str | None:
    """The setting that an unknown dotted key was probably meant to be, by its last part.

    So a key in the wrong section (`train.lr`), or in none (`lr`), finds its own.
    """
    name = key.rpartition(".")[2]
    names = {known.rpartition(".")[2] for known in FIELDS}
    meant = name if name in names else nearest(name, names)
    candidates = [known for known in FIELDS if known.rpartition(".")[2] == meant]
    return max(candidates, key=lambda known: difflib.SequenceMatcher(None, key, known).ratio(), default=None)


def nearest_variable(name: str) -> str | None:
    """The environment variable that an unknown one was probably meant to be."""
    for known in VARIABLES:
        if known.replace("__", "_") == name.upper().replace("__", "_"):
            return known
    meant = nearest_key(name.removeprefix(VARIABLE_PREFIX).lower().replace("__", "."))
    return next((known for known, key in VARIABLES.items() if key == meant), None)


def unknown(key: str) -> str:
    """What to say of a dotted key that is no setting."""
    section = key.partition(".")[0]
    if key not in SECTIONS and (guess := nearest_key(key)):
        return f"unknown key; did you mean {guess}?"
    if section in SECTIONS:
        names = [known.partition(".")[2] for known in FIELDS if known.startswith(f"{section}.")]
        return f"unknown key; {section} has {', '.join(names)}"
    return "unknown key; `leoclr show-config` lists them all"


@cache
def _adapter(key: str) -> TypeAdapter[Any]:
    field = FIELDS[key]
    annotated: Any = Annotated[field.annotation, field]
    return TypeAdapter(annotated, config=ConfigDict(allow_inf_nan=False))


def is_list(key: str) -> bool:
    """Whether a setting is a list."""
    return get_origin(FIELDS[key].annotation) is tuple


def is_switch(key: str) -> bool:
    """Whether a setting is true or false."""
    return FIELDS[key].annotation is bool


def _in_words(error: ErrorDetails) -> str:
    item = f"item {error['loc'][0] + 1} " if error["loc"] and isinstance(error["loc"][0], int) else ""
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    message = message.replace("a valid array", "a list").replace("a valid tuple", "a list")
    message = message.replace("Tuple should have", "must have").replace(" after validation", "")
    message = message.replace("Field required", "is missing").partition(", unable to")[0]
    if error["type"] == "missing":
        return f"{item}{message}"
    choices = re.findall(r"'([^']*)'", message) if error["type"] == "literal_error" else ()
    guess = nearest(str(error["input"]), choices)
    return f"{item}{message}, got {shown(error['input'])}" + (f"; did you mean {guess!r}?" if guess else "")


def shown(value: Any) -> str:
    """A value as an error message quotes it: shortened, and without what an address may hold of credentials."""
    try:
        text = redacted(repr(value))
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."
