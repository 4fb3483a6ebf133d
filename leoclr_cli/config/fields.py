"""Names of settings (`optimizer.lr`, LEOCLR_OPTIMIZER__LR), and validation of single values.

Values are read in two ways: files state types (`3`, `"3"`, `[1, 2]`), which are taken literally; flags and variables
are text, which is parsed by the type of the setting.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from leoclr.cli.config.plugins import METHODS, VIEWS, method_settings, plugin, plugins, policy_settings
from leoclr.cli.config.settings import Settings
from leoclr.datasets.errors import SettingsError
from leoclr.datasets.storage.addresses import redacted

_CHOSEN_FROM = {"backend": METHODS, "views": VIEWS}
_FREE = ("method", "policy")  # fields of Settings that stand for a section of another name


def _fields_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    fields: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            fields |= {f"{name}.{key}": inner for key, inner in field.annotation.model_fields.items()}
        elif name not in _FREE:
            fields[name] = field
    return fields


FIELDS = _fields_of(Settings)  # of every run; `all_fields` has those of methods and view policies too
SECTIONS = tuple(dict.fromkeys(key.partition(".")[0] for key in FIELDS if "." in key))
RESERVED = tuple(Settings.model_fields)  # names that no section of a method or view policy may have
VARIABLE_PREFIX = "LEOCLR_"


@cache
def plugin_sections() -> Mapping[str, type[BaseModel]]:
    """Section name to settings class, of every installed method and view policy whose settings can be read."""
    found: dict[str, type[BaseModel]] = {}
    owners = dict.fromkeys(RESERVED, "leoclr itself")
    for group, read in ((METHODS, method_settings), (VIEWS, policy_settings)):
        for one in plugins(group).values():
            try:
                settings = read(one.name)
            except SettingsError:
                continue  # told where it is chosen
            if settings is None:
                continue
            owner = owners.setdefault(one.section, f"{one.package} {one.version}")
            if one.section in found or one.section in RESERVED:
                raise SettingsError(
                    f"{one.name} of {one.package} {one.version} needs a section [{one.section}] of the settings, "
                    f"which is {owner}'s; give it another name, or uninstall one of them"
                )
            found[one.section] = settings
    return found


@cache
def all_fields() -> Mapping[str, FieldInfo]:
    """Every setting there is by its dotted key, with those of all installed methods and view policies."""
    of_plugins = {
        f"{section}.{key}": field
        for section, model in plugin_sections().items()
        for key, field in model.model_fields.items()
    }
    return FIELDS | of_plugins


def sections() -> tuple[str, ...]:
    """The names of all sections."""
    return (*SECTIONS, *plugin_sections())


def keys_of(settings: Settings) -> tuple[str, ...]:
    """The settings that a run has: those of all runs, of its method and of its view policy."""
    own = own_sections(settings)
    return (*FIELDS, *(f"{section}.{key}" for section, model in own.items() for key in type(model).model_fields))


def own_sections(settings: Settings) -> dict[str, BaseModel]:
    """The sections of the method and the view policy of a run, by name."""
    found: dict[str, BaseModel] = {plugin(METHODS, settings.backend).section: settings.method}
    if settings.policy is not None:
        found[plugin(VIEWS, settings.views).section] = settings.policy
    return found


def variables() -> Mapping[str, str]:
    """The environment variable of each setting, and the setting."""
    return {VARIABLE_PREFIX + key.replace(".", "__").upper(): key for key in all_fields()}


class BadValue(ValueError):
    """One value does not fit its setting. The message says what would."""


def get(settings: Settings, key: str) -> Any:
    """The value at a dotted key of `keys_of(settings)`."""
    section, _, name = key.rpartition(".")
    if not section:
        return getattr(settings, name)
    return getattr(own_sections(settings).get(section) or getattr(settings, section), name)


def default(key: str) -> Any:
    """The default at a dotted key of `all_fields`."""
    section, _, name = key.rpartition(".")
    if section in plugin_sections():
        return getattr(plugin_sections()[section](), name)
    return get(Settings(), key)


def replaced(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """The settings with other values at some dotted keys, checked as a whole.

    Raises:
        ValidationError: A value does not fit, by itself or beside the others.
    """
    tree = settings.model_dump()
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (tree[section] if section else tree)[name] = value
    return Settings.model_validate(tree)


def choices(key: str) -> tuple[str, ...]:
    """The words that a setting takes; none where it takes more than a list of words."""
    if key in _CHOSEN_FROM:
        return tuple(plugins(_CHOSEN_FROM[key]))
    return tuple(choice for choice in get_args(_field(key).annotation) if isinstance(choice, str))


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
        raise BadValue(f"must be text, a number, true, false or a list of these, got {shown_value(value)}") from None
    try:
        return _adapter(key).validate_json(text, strict=True)
    except ValidationError as error:
        raise BadValue(_in_words(error.errors(include_url=False)[0])) from None


def from_text(key: str, text: str | Iterable[str]) -> Any:
    """Check a value that a flag or a variable gave; where the setting is a list, commas separate the items. A list
    as `show-config` prints it, such as `[0.2, 1.0]`, is taken too.

    Args:
        text: One string, or the items of a list, already apart.

    Raises:
        BadValue
    """
    value: Any = text
    if is_list(key):
        value = _items(text) if isinstance(text, str) else tuple(text)
    try:
        found = _adapter(key).validate_python(value)
    except ValidationError as error:
        raise BadValue(_in_words(error.errors(include_url=False)[0])) from None
    for given, read in zip(value, found, strict=True) if is_list(key) else ((value, found),):
        if isinstance(read, int | float) and "_" in str(given):  # Python's way to write 1000 as 1_000, as no file may
            raise BadValue(f"must be a number without underscores, got {shown_value(given)}")
    return found


def _items(text: str) -> tuple[Any, ...]:
    try:
        found = json.loads(text) if text.startswith("[") else None
    except (ValueError, RecursionError):
        found = None
    return tuple(found) if isinstance(found, list) else split_list(text)


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
    names = {known.rpartition(".")[2] for known in all_fields()}
    meant = name if name in names else nearest(name, names)
    candidates = [known for known in all_fields() if known.rpartition(".")[2] == meant]
    return max(candidates, key=lambda known: difflib.SequenceMatcher(None, key, known).ratio(), default=None)


def nearest_variable(name: str) -> str | None:
    """The environment variable that an unknown one was probably meant to be."""
    for known in variables():
        if known.replace("__", "_") == name.upper().replace("__", "_"):
            return known
    meant = nearest_key(name.removeprefix(VARIABLE_PREFIX).lower().replace("__", "."))
    return next((known for known, key in variables().items() if key == meant), None)


def unknown(key: str) -> str:
    """What to say of a dotted key that is no setting."""
    section = key.partition(".")[0]
    if key not in sections() and (guess := nearest_key(key)):
        return f"unknown key; did you mean {guess}?"
    if section in sections():
        names = [known.partition(".")[2] for known in all_fields() if known.startswith(f"{section}.")]
        return f"unknown key; {section} has {', '.join(names)}"
    return "unknown key; `leoclr show-config` lists them all"


@cache
def _adapter(key: str) -> TypeAdapter[Any]:
    field = _field(key)
    annotated: Any = Annotated[field.annotation, field]
    return TypeAdapter(annotated, config=ConfigDict(allow_inf_nan=False))


def is_list(key: str) -> bool:
    """Whether a setting is a list."""
    return get_origin(_field(key).annotation) is tuple


def is_switch(key: str) -> bool:
    """Whether a setting is true or false."""
    return _field(key).annotation is bool


def _field(key: str) -> FieldInfo:
    """Without reading the settings of methods and view policies where it is none of theirs: help is quick."""
    return FIELDS[key] if key in FIELDS else all_fields()[key]


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
    return f"{item}{message}, got {shown_value(error['input'])}" + (f"; did you mean {guess!r}?" if guess else "")


def shown_value(value: Any) -> str:
    """A value as an error message quotes it: shortened, and without what an address may hold of credentials."""
    try:
        text = redacted(repr(value))
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."
