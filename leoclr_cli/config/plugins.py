"""Discovery of methods and view policies by entry points, both built-in and from other packages.

Names are read from the packages' metadata. The settings of a method are read from its source without running the rest
of the file, so that a wrong setting is reported before torch is loaded (seconds).
Installed code runs with the user's rights when its method or policy is used; nothing that is not installed is imported.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from leoclr.backends.settings import MethodSettings
from leoclr.cli.config.light_import import imports_torch, python_file, read_name
from leoclr.datasets.errors import SettingsError
from leoclr.datasets.views import PolicySettings, ViewPolicy
from leoclr.datasets.wording import first_line

METHODS, VIEWS, WRAPPERS = "leoclr.methods", "leoclr.views", "leoclr.wrappers"
OWN_PACKAGE = "leoclr-cli"
_SETTINGS = "Settings"
_PLAIN = (bool, int, float, str)


@dataclass(frozen=True)
class Plugin:
    """A method or view policy that some installed package offers.

    Attributes:
        name: What `--backend` or `--views` calls it.
        package, version: The package that it comes from.
        entry: Where it is.
    """

    name: str
    package: str
    version: str
    entry: EntryPoint

    def __str__(self) -> str:
        return f"{self.name} ({self.package} {self.version})"

    @property
    def section(self) -> str:
        """Its section of the settings; that of views with the name of a method of their package ends in `_views`."""
        name = self.name.replace("-", "_")
        same = plugins(METHODS).get(self.name) if self.entry.group == VIEWS else None
        return f"{name}_views" if same is not None and same.package == self.package else name

    @property
    def builtin(self) -> bool:
        """Whether it comes with leoclr."""
        return self.package == OWN_PACKAGE

    def source(self) -> Path | None:
        """The file that it stands in; None where there is none to read."""
        return python_file(self.entry.module)

    def summary(self) -> str:
        """What it is, in a line: a policy's own words, or the first line of the method's file. Raises SettingsError."""
        if self.entry.group == VIEWS:
            loaded = _policy(self.name)
            return loaded.summary if isinstance(loaded, ViewPolicy) else str(loaded.__doc__).partition("\n")[0]
        source = self.source()
        if source is None:
            return ""
        tree = ast.parse(source.read_text("utf-8"))
        own = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == self.entry.attr]
        nodes: tuple[ast.ClassDef | ast.Module, ...] = (tree, *own)
        text = next((found for node in nodes if (found := ast.get_docstring(node))), "")
        return text.partition("\n")[0]

    def load(self) -> Any:
        """Import it.

        Raises:
            SettingsError: Its package cannot be imported.
        """
        try:
            return self.entry.load()
        except Exception as error:  # whatever another package raises as it is imported
            raise SettingsError(
                f"{self.name} of {self.package} {self.version} cannot be imported: {first_line(error)}"
            ) from error


@cache
def _name_and_version(package: Distribution) -> tuple[str, str]:
    """Read once for all that a package offers: its metadata are parsed each time."""
    return package.name, package.version


@cache
def plugins(group: str) -> Mapping[str, Plugin]:
    """What is installed of a group (`METHODS` or `VIEWS`), by name: the built-in ones, then others by package.

    Raises:
        SettingsError: Two packages offer the same name, or leoclr itself is not installed.
    """
    found = [
        Plugin(entry.name, *_name_and_version(entry.dist), entry)
        for entry in entry_points(group=group)
        if entry.dist is not None
    ]
    if not found and group != WRAPPERS:
        raise SettingsError(f"{OWN_PACKAGE} is not installed: pip install it, so that its {group} are found")
    by_name: dict[str, Plugin] = {}
    for one in sorted(found, key=lambda one: not one.builtin):
        other = by_name.setdefault(one.name, one)
        if other is not one:
            raise SettingsError(
                f"{one.name!r} of {group} is offered by two packages, {other.package} {other.version} and "
                f"{one.package} {one.version}; uninstall one of them"
            )
    return by_name


def plugin(group: str, name: str) -> Plugin:
    """The plugin of a name.

    Raises:
        SettingsError: None is installed under it.
    """
    try:
        return plugins(group)[name]
    except KeyError:
        what = "backend" if group == METHODS else "view policy"
        raise SettingsError(f"no {what} {name!r} is installed; there are {', '.join(plugins(group))}") from None


@cache
def method_settings(name: str) -> type[MethodSettings]:
    """The settings class of a method, without what else its file needs.

    Raises:
        SettingsError: There is no such method, or it has no settings that can be read.
    """
    found = plugin(METHODS, name)
    try:
        settings = read_name(found.entry.module, _SETTINGS)
    except SettingsError:
        raise
    except Exception as error:  # whatever another package's file does
        raise SettingsError(f"the settings of {found} are broken: {first_line(error)}") from error
    if not (isinstance(settings, type) and issubclass(settings, MethodSettings)):
        raise SettingsError(f"{found}: Settings must be a subclass of MethodSettings")
    _refuse_defaults(found, settings)
    return settings


@cache
def policy_settings(name: str) -> type[PolicySettings] | None:
    """The settings class of a view policy; None where it has no settings.

    Raises:
        SettingsError: There is no such policy, or it is neither a `ViewPolicy` nor a `PolicySettings`.
    """
    loaded = _policy(name)
    return loaded if isinstance(loaded, type) else None


def view_policy(name: str) -> ViewPolicy:
    """The view policy of a name that has no settings. Raises SettingsError as `policy_settings`."""
    loaded = _policy(name)
    assert isinstance(loaded, ViewPolicy)
    return loaded


@cache
def _policy(name: str) -> type[PolicySettings] | ViewPolicy:
    found = plugin(VIEWS, name)
    module = found.entry.module
    try:
        loaded = read_name(module, found.entry.attr) if imports_torch(module) else found.load()
    except SettingsError:
        raise
    except Exception as error:  # whatever another package's file does
        raise SettingsError(f"the view policy {found} is broken: {first_line(error)}") from error
    if isinstance(loaded, ViewPolicy):
        return loaded
    if isinstance(loaded, type) and issubclass(loaded, PolicySettings):
        _refuse_defaults(found, loaded)
        return loaded
    raise SettingsError(f"the view policy {found} must be a ViewPolicy or a subclass of PolicySettings")


def _refuse_defaults(found: Plugin, settings: type[BaseModel]) -> None:
    """Raise SettingsError where a setting has no default or one that does not fit: a run that says nothing of it takes
    the default, and every command reads it."""
    try:
        values = settings().model_dump()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key, message = ".".join(map(str, first["loc"])), first["msg"].replace("Input should", "its default must")
        wrong = "it needs a default" if first["type"] == "missing" else f"{message}, got {first['input']!r}"
        raise SettingsError(f"the settings of {found} are broken: {key}: {wrong}") from None
    for key, value in values.items():
        items = value if isinstance(value, tuple) else (value,)
        if not all(type(item) in _PLAIN for item in items):
            raise SettingsError(
                f"the settings of {found} are broken: {key}: its default must be a number, text, true, false or "
                f"a tuple of these, as a settings file can say it, got {value!r}"
            )


def import_method(name: str, views: str) -> Any:
    """The class of a method, within the wrapper of a view policy if that has one. Imports torch.

    A wrapper is a mixin: its methods go before those of the method, which keeps the names of its state.

    Raises:
        SettingsError: There is none of this name, or it cannot be imported.
    """
    method, wrapper = plugin(METHODS, name).load(), plugins(WRAPPERS).get(views)
    if wrapper is None:
        return method
    from leoclr.backends.method import PairMethod

    around = wrapper.load()
    if issubclass(around, PairMethod) and not issubclass(method, PairMethod):  # whose own methods it would hide
        raise SettingsError(f"the wrapper of views {views} is for a PairMethod, which {name} is not")
    return type(method.__name__, (around, method), {})
