"""Resolve settings from their layers: defaults < preset < file < environment < flags.

Each layer is checked separately, value by value, so that an error names the location of the value even if a higher
layer overrides it. All errors are collected before anything is raised. Nothing heavy is imported here, so that a typo
is reported before torch is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from leoclr.cli.config.fields import (
    VARIABLE_PREFIX,
    BadValue,
    all_fields,
    default,
    from_file,
    from_text,
    get,
    keys_of,
    nearest,
    nearest_variable,
    nested,
    plugin_sections,
    sections,
    shown_value,
    unknown,
    variables,
)
from leoclr.cli.config.plugins import METHODS, VIEWS, method_settings, plugin, plugins
from leoclr.cli.config.preset_files import AUTO, Chosen, preset_path, recipe_path, summary
from leoclr.cli.config.sections import LEAST_WIDTH
from leoclr.cli.config.setting_files import read_settings_file
from leoclr.cli.config.settings import Settings
from leoclr.datasets.errors import SettingsError
from leoclr.datasets.storage.credentials import VARIABLE as CREDENTIALS

_OF_PRESETS = ("preset ", f"{AUTO}: ")  # how the origins of values begin that nobody gave by themselves
_WHERE_DATA_LIES = ("data.train", "data.val")
_SETTLED_AT_THE_START = (
    "augmentation.executor",
    "data.resident",
)  # where they are auto, a resumed run keeps what it began with


@dataclass(frozen=True)
class Resolved:
    """The settings of a run.

    Attributes:
        origins: For every dotted key "default", "run" (the run that is resumed), "preset NAME", "preset NAME (BACKEND)"
            for the method's own recipe, "auto: REASON", the settings file, "env LEOCLR_...", or "flag --NAME".
        warnings: One line for each value that was asked for and has no effect, or that a preset's gives way to.
        recipe: The method's own recipe in the preset and its published figure, in a line; "" where it has none.
    """

    settings: Settings
    origins: dict[str, str]
    warnings: tuple[str, ...]
    recipe: str = ""


@dataclass
class _Layers:
    """Values and origins so far, lowest layer first, and what was wrong on the way."""

    values: dict[str, Any]
    origins: dict[str, str]
    problems: list[str] = field(default_factory=list)
    changed: set[str] = field(default_factory=set)
    remarks: list[str] = field(default_factory=list)

    def put(self, key: str, raw: Any, read: Callable[[str, Any], Any], origin: str, place: str) -> None:
        """Lay one value over what is there; `place` is how an error names it."""
        try:
            value = read(key, raw)
        except BadValue as error:
            self.problems.append(f"{place}: {error}")
            return
        if not origin.startswith(_OF_PRESETS) and value != self.values[key]:
            self.changed.add(key)
        self.values[key] = value
        self.origins[key] = origin

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Put an error aside, so that the layers above are still looked at."""
        try:
            yield
        except SettingsError as error:
            self.problems.append(str(error))


def resolve(
    preset: str | None,
    config: Path | None,
    environment: Mapping[str, str],
    flags: Mapping[str, str | Sequence[str]],
    base: Settings | None = None,
    flag_names: Mapping[str, str] | None = None,
    chosen: Chosen | None = None,
) -> Resolved:
    """Lay preset, file, environment and flags over the defaults, and check everything.

    Args:
        environment: Usually `os.environ`; every variable that starts with LEOCLR_ must be a setting, but for
            the one that holds credentials.
        flags: Dotted key to what the flag said; a sequence where a flag was repeated.
        base: Takes the place of the defaults: the settings of a run that is resumed.
        flag_names: Dotted key to the flag that set it, for messages; `--set KEY` where it is not in here.
        chosen: Takes the place of the preset.

    Raises:
        SettingsError: Anything is unknown, of the wrong type, out of range or missing: one line for each, with its
            place and, for an unknown name, the nearest one.
    """
    names = flag_names or {}
    preset, values = (preset, {}) if chosen is None else chosen
    above = (config, environment, flags, names, base, values)
    layers = _lay(preset, None, *above)
    recipe = None if preset is None else recipe_path(preset, layers.values["backend"])
    if recipe is not None:
        layers = _lay(preset, recipe, *above)
    _raise(layers.problems)
    backend, views = layers.values["backend"], layers.values["views"]
    if layers.origins["views"] == "default" and method_settings(backend).default_views != views:
        layers.values["views"] = views = method_settings(backend).default_views
        layers.origins["views"] = f"default of {backend}"
    own = {plugin(METHODS, backend).section, plugin(VIEWS, views).section}
    if base is not None and layers.origins["train.epochs"].startswith(_OF_PRESETS):
        layers.values["train.epochs"] = base.train.epochs  # to extend a run, somebody has to say so
        layers.origins["train.epochs"] = "run"
    _shorten_warmup(layers)
    others = plugin_sections().keys() - own
    kept = {key: value for key, value in layers.values.items() if key.partition(".")[0] not in others}
    try:
        settings = Settings.model_validate(nested(kept))
    except ValidationError as error:
        _raise(list(_conflicts(error, layers.origins)))
        raise
    origins = {key: layers.origins[key] for key in keys_of(settings)}
    _raise(list(_unsafe(settings, origins)))
    warnings = (*layers.remarks, *_without_effect(settings, layers))
    return Resolved(settings, origins, warnings, summary(recipe) if recipe is not None and chosen is None else "")


def _lay(
    preset: str | None,
    recipe: Path | None,
    config: Path | None,
    environment: Mapping[str, str],
    flags: Mapping[str, str | Sequence[str]],
    flag_names: Mapping[str, str],
    base: Settings | None,
    chosen: Mapping[str, tuple[Any, str]],
) -> _Layers:
    """All layers, the lowest first. Which method's recipe is among them is known when the others are laid."""
    values = {key: default(key) for key in all_fields()}
    if base is not None:
        values |= {key: get(base, key) for key in keys_of(base)}
    layers = _Layers(values, dict.fromkeys(all_fields(), "default" if base is None else "run"))
    if preset is not None:
        with layers.collecting():
            _lay_file(layers, preset_path(preset), f"preset {preset}")
    if recipe is not None:
        with layers.collecting():
            _lay_file(layers, recipe, f"preset {preset} ({recipe.stem})")
    for key, (value, reason) in chosen.items():
        layers.put(key, value, lambda _, raw: raw, f"{AUTO}: {reason}", key)
    if config is not None:
        with layers.collecting():
            _lay_file(layers, config, str(config))
    _lay_environment(layers, environment)
    _lay_flags(layers, flags, flag_names)
    return layers


def _shorten_warmup(layers: _Layers) -> None:
    """A preset's warm-up takes at most half of a run that is shorter than the preset's."""
    key, epochs = "optimizer.warmup_epochs", layers.values["train.epochs"]
    if layers.origins[key].startswith(_OF_PRESETS) and layers.values[key] > epochs / 2:
        layers.remarks.append(f"{key} ({layers.origins[key]}) is {epochs / 2:g} here: half of train.epochs")
        layers.values[key] = epochs / 2


def differences(before: Settings, after: Settings, may_extend: bool = False) -> list[str]:
    """The settings that give other weights, as lines such as "optimizer.lr: 0.03 -> 0.06".

    Left out are the section `run`, which changes no weights, and the places where the data lies: moved data is the
    same data, which its digest tells. So is an auto that stands for what the run before has settled, and so are more
    epochs where those `may_extend` the run.
    """

    def differs(key: str) -> bool:
        if key.startswith("run.") or key in _WHERE_DATA_LIES:
            return False
        if key in _SETTLED_AT_THE_START and get(after, key) == "auto":
            return False
        if may_extend and key == "train.epochs" and after.train.epochs > before.train.epochs:
            return False
        return bool(get(before, key) != get(after, key))

    shared = [key for key in keys_of(after) if key in keys_of(before)]
    return [f"{key}: {get(before, key)} -> {get(after, key)}" for key in shared if differs(key)]


def _lay_file(layers: _Layers, path: Path, origin: str) -> None:
    for key, value in _leaves(read_settings_file(path)):
        dotted = ".".join(key)
        place = f"{origin}: {dotted}"
        if len(key) == 1 and "." in dotted:
            layers.problems.append(f"{place}: a dotted name; write the key inside its section")
        elif dotted in all_fields():
            layers.put(dotted, value, from_file, origin, place)
        elif dotted in sections():
            layers.problems.append(f"{place}: must be a section with keys, got {shown_value(value)}")
        elif len(key) == 1 and isinstance(value, dict):
            guess = nearest(dotted, sections())
            hint = f"did you mean {guess}?" if guess else f"there are {', '.join(sections())}"
            layers.problems.append(f"{place}: unknown section; {hint}")
        else:
            layers.problems.append(f"{place}: {unknown(dotted)}")


def _leaves(content: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Keys as (name,) or (section, name), with their values."""
    for key, value in content.items():
        if key in sections() and isinstance(value, dict):
            for name, inner in value.items():
                yield (key, name), inner
        else:
            yield (key,), value


def _lay_environment(layers: _Layers, environment: Mapping[str, str]) -> None:
    for name in sorted(name for name in environment if name.startswith(VARIABLE_PREFIX) and name != CREDENTIALS):
        if name in variables():
            layers.put(variables()[name], environment[name], from_text, f"env {name}", name)
        else:
            guess = nearest_variable(name)
            hint = f"did you mean {guess}?" if guess else "a variable is named like LEOCLR_OPTIMIZER__LR"
            layers.problems.append(f"{name}: no such setting; {hint}")


def _lay_flags(layers: _Layers, flags: Mapping[str, str | Sequence[str]], names: Mapping[str, str]) -> None:
    for key, value in flags.items():
        place = names.get(key, f"--set {key}")
        if key in all_fields():
            layers.put(key, value, from_text, f"flag {place.partition(' ')[0]}", place)
        else:
            layers.problems.append(f"{place}: {unknown(key)}")


def _conflicts(error: ValidationError, origins: Mapping[str, str]) -> Iterator[str]:
    """The lines of `Settings`' own check across keys, each with the origins of the keys that it names."""
    for detail in error.errors(include_url=False):
        for line in detail["msg"].removeprefix("Value error, ").splitlines():
            keys = [key for key in re.findall(r"[a-z_]+\.[a-z_]+", line) if key in all_fields() and key in origins]
            yield f"{line} ({', '.join(f'{key}: {origins[key]}' for key in keys)})" if keys else line


def _unsafe(settings: Settings, origins: Mapping[str, str]) -> Iterator[str]:
    """What a new run may not have and an old one, which is resumed or read, keeps."""
    key, width = "encoder.width", settings.encoder.width
    if width < LEAST_WIDTH and origins[key] != "run":
        yield f"{key} ({origins[key]}): must be at least {LEAST_WIDTH}, got {width}: torch corrupts memory below"


def _without_effect(settings: Settings, layers: _Layers) -> Iterator[str]:
    """One line for each value that somebody set to something else and that nothing reads."""
    of_methods = {one.section for one in plugins(METHODS).values()}
    for key in all_fields():
        section = key.partition(".")[0]
        if key in layers.changed and key not in keys_of(settings):
            chosen = f"the backend is {settings.backend}" if section in of_methods else f"views are {settings.views}"
            yield f"{key} ({layers.origins[key]}) has no effect: {chosen}"
        elif key in layers.changed and key in settings.method.ignores:
            yield f"{key} ({layers.origins[key]}) has no effect under {settings.backend}"
    key = "encoder.projector_hidden"
    if key in layers.changed and settings.encoder.projector_layers == 1:
        yield f"{key} ({layers.origins[key]}) has no effect: encoder.projector_layers is 1"


def _raise(problems: Sequence[str]) -> None:
    if len(problems) == 1:
        raise SettingsError(problems[0])
    if problems:
        raise SettingsError("\n  ".join((f"{len(problems)} settings are wrong:", *problems)))
