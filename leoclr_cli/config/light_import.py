"""Read one name of a module's file without running the rest: a method's settings without its torch.

So a wrong setting is reported before torch is loaded (seconds). What runs is a part of an installed file.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

_HEAVY, _LIGHT = ("torch", "torchvision", "timm"), ("leoclr.backends.settings",)
_READ = "leoclr_settings_of"  # the name of a module that holds a method's settings alone begins with this


def python_file(module: str) -> Path | None:
    try:
        found = find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(found.origin) if found is not None and found.origin and found.origin.endswith(".py") else None


def module_of(name: str) -> str:
    """The module that a module of this name is a part of: itself, unless `read_name` has made it."""
    return name.removeprefix(f"{_READ}.").rpartition(".")[0] if name.startswith(f"{_READ}.") else name


def read_name(module: str, name: str) -> Any:
    """What a module calls `name`, made of it and of what it refers to, and of nothing else: most of all not of torch.

    Raises:
        AttributeError: The module has no such name.
        Exception: Whatever the module's own lines raise.
    """
    source = python_file(module)
    if source is None:
        return getattr(import_module(module), name)
    return _read(module, source, name)


def _read(module: str, source: Path, name: str) -> Any:
    """What a file calls `name`. What it imports from files that import torch, such as the settings that its own ones
    extend, is read in the same way."""
    tree = ast.parse(source.read_text("utf-8"), str(source))
    needed, names = _needed(tree, name)
    made = ModuleType(f"{_READ}.{module}.{name}")
    made.__file__ = str(source)
    made.__package__ = module if source.name == "__init__.py" else module.rpartition(".")[0]  # for `from .x import y`
    sys.modules[made.__name__] = made  # pydantic looks names up there
    for node in [node for node in needed if isinstance(node, ast.ImportFrom) and not node.level]:
        other = python_file(node.module) if node.module and _is_heavy(node.module) else None
        if node.module and other is not None:
            needed.remove(node)
            wanted = {alias.asname or alias.name: alias.name for alias in node.names}
            made.__dict__.update({own: _read(node.module, other, wanted[own]) for own in wanted.keys() & names})
    tree.body = [node for node in tree.body if node in needed or _is_future(node)]
    exec(compile(tree, str(source), "exec"), made.__dict__)  # a part of the installed file, as an import runs it
    if not hasattr(made, name):
        raise AttributeError(f"{source.name} has no {name}")
    return getattr(made, name)


def imports_torch(module: str) -> bool:
    """Whether a module imports torch, or what imports it, at its top."""
    source = python_file(module)
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
    elif isinstance(node, ast.If | ast.Try | ast.With):
        yield from (name for inner in _within(node) for name in _bound(inner))


def _within(node: ast.If | ast.Try | ast.With) -> list[ast.stmt]:
    branches = [node.body, getattr(node, "orelse", []), getattr(node, "finalbody", [])]
    branches += [handler.body for handler in getattr(node, "handlers", [])]
    return [statement for branch in branches for statement in branch]


def _is_read(node: ast.Name) -> bool:
    """A field may have the name of a function of its file."""
    return isinstance(node.ctx, ast.Load)


def _is_future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"
