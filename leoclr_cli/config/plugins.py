"""Discovery of methods and view policies by entry points, both built-in and from other packages.

Names are read from the packages' metadata. The settings of a method are read from its source without running the rest
of the file, so that a wrong setting is reported before torch is loaded (seconds).
Installed code runs with the user's rights when its method or policy is used; nothing that is not installed is imported.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from leoclr.backends.settings import MethodSettings
from leoclr.datasets.errors import SettingsError
from leoclr.datasets.views import PolicySettings, ViewPolicy

METHODS, VIEWS, WRAPPERS = "leoclr.methods", "leoclr.views", "leoclr.wrappers"
OWN_PACKAGE = "leoclr-cli"
_SETTINGS = "Settings"
_HEAVY, _LIGHT = ("torch", "torchvision", "timm"), ("leoclr.backends.settings",)
_READ = "leoclr_settings_of"  # the name of a module that holds a method's settings alone begins with this


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
        return _python_file(self.entry.module)

    def summary(self) -> str:
        """What it is, in a line: a policy's own words, or the first line of the method's file."""
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
            raise SettingsError(f"{self.name} of {self.package} {self.version} cannot be imported: {error}") from error


def plugins(group: str) -> Mapping[str, Plugin]:
    """What is installed of a group (`METHODS` or `VIEWS`), by name: the built-in ones, then others by package.

    Raises:
        SettingsError: Two packages offer the same name.
    """
    return _installed(group)


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
def _installed(group: str) -> Mapping[str, Plugin]:
    found = [
        Plugin(entry.name, entry.dist.name, entry.dist.version, entry)
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


@cache
def method_settings(name: str) -> type[MethodSettings]:
    """The settings class of a method, without what else its file needs.

    Raises:
        SettingsError: There is no such method, or it has no settings that can be read.
    """
    found = plugin(METHODS, name)
    try:
        settings = _without_torch(found, _SETTINGS)
    except SettingsError:
        raise
    except Exception as error:  # whatever another package's file does
        raise SettingsError(f"the settings of {name} ({found.package} {found.version}) are broken: {error}") from error
    if not (isinstance(settings, type) and issubclass(settings, MethodSettings)):
        raise SettingsError(f"{name} of {found.package}: Settings must be a subclass of MethodSettings")
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
    loaded = _without_torch(found, found.entry.attr) if _imports_torch(found) else found.load()
    if isinstance(loaded, ViewPolicy) or (isinstance(loaded, type) and issubclass(loaded, PolicySettings)):
        return loaded
    raise SettingsError(f"the view policy {name} must be a ViewPolicy or a subclass of PolicySettings")


def _python_file(module: str) -> Path | None:
    try:
        found = find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(found.origin) if found is not None and found.origin and found.origin.endswith(".py") else None


def _without_torch(found: Plugin, name: str) -> Any:
    """What a plugin's file calls `name`, made of it and of what it refers to, and of nothing else: most of all not of
    torch."""
    source = found.source()
    if source is None:
        return getattr(import_module(found.entry.module), name)
    return _read(found.entry.module, source, name)


def _read(module: str, source: Path, name: str) -> Any:
    """What a file calls `name`. What it imports from files that import torch, such as the settings that its own ones
    extend, is read in the same way."""
    tree = ast.parse(source.read_text("utf-8"), str(source))
    needed, names = _needed(tree, name)
    made = ModuleType(f"{_READ}.{module}.{name}")
    made.__file__ = str(source)
    sys.modules[made.__name__] = made  # pydantic looks names up there
    for node in [node for node in needed if isinstance(node, ast.ImportFrom)]:
        other = _python_file(node.module) if node.module and _is_heavy(node.module) else None
        if node.module and other is not None:
            needed.remove(node)
            wanted = {alias.asname or alias.name: alias.name for alias in node.names}
            made.__dict__.update({own: _read(node.module, other, wanted[own]) for own in wanted.keys() & names})
    tree.body = [node for node in tree.body if node in needed or _is_future(node)]
    exec(compile(tree, str(source), "exec"), made.__dict__)  # a part of the installed file, as an import runs it
    return getattr(made, name)


def _imports_torch(found: Plugin) -> bool:
    """Whether a file imports torch, or what imports it, at its top."""
    source = found.source()
    tree = ast.parse(source.read_text("utf-8")) if source is not None else ast.Module([], [])
    for node in tree.body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        for name in names:
            if name.partition(".")[0] in _HEAVY or _is_heavy(name):
                return True
    return False


def _is_heavy(module: str) -> bool:
    """Whether a module of leoclr imports torch."""
    return module.startswith("leoclr.backends.") and module not in _LIGHT


def _needed(tree: ast.Module, name: str) -> tuple[list[ast.stmt], set[str]]:
    """The statements at the top of a file that a name depends on, its own included, and the names in them."""
    makes: dict[str, ast.stmt] = {}
    for statement in tree.body:
        makes |= dict.fromkeys(_bound(statement), statement)
    needed: list[ast.stmt] = []
    wanted, seen = [name], {name}
    while wanted:
        node = makes.get(wanted.pop())
        if node is not None and node not in needed:
            needed.append(node)
            wanted += [inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name) and _is_read(inner)]
            seen.update(wanted)
    return needed, seen


def _bound(node: ast.stmt) -> Iterator[str]:
    """The names that a statement at the top of a file gives a value."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from ((alias.asname or alias.name).partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.ClassDef | ast.FunctionDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (inner.id for target in targets for inner in ast.walk(target) if isinstance(inner, ast.Name))


def _is_read(node: ast.Name) -> bool:
    """A field may have the name of a function of its file."""
    return isinstance(node.ctx, ast.Load)


def _is_future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def import_method(name: str, views: str) -> Any:
    """The class of a method, within the wrapper of a view policy if that has one. Imports torch.

    A wrapper is a mixin: its methods go before those of the method, which keeps the names of its state.

    Raises:
        SettingsError: There is none of this name, or it cannot be imported.
    """
    method, wrapper = plugin(METHODS, name).load(), plugins(WRAPPERS).get(views)
    return method if wrapper is None else type(method.__name__, (wrapper.load(), method), {})
