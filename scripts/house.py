"""Hold the import graph to its layers: `python scripts/house.py [ROOT]`.

Every import counts, also those inside functions and those by name (`"leoclr.cli.commands.train:train"`); imports for
type checkers alone do not. Exit code 1 where a module imports from a layer above its own or from another folder of its
layer, where modules import each other in a cycle, where a folder holds more than 20 modules, or where a module has more
than 300 lines.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

FOLDERS = {
    "leoclr.cli": "leoclr_cli",
    "leoclr.evals": "evals",
    "leoclr.backends": "backends",
    "leoclr.datasets": "datasets",
}
LAYERS = (  # top first; a module belongs to the longest name that it begins with
    ("leoclr.cli.__main__",),
    ("leoclr.cli.api", "leoclr.cli.commands"),
    ("leoclr.cli.benchmark", "leoclr.cli.methods", "leoclr.cli.quickstart", "leoclr.cli.recipes"),
    ("leoclr.cli.exporting",),
    ("leoclr.cli.reporting",),
    ("leoclr.cli.scoring", "leoclr.cli.training"),
    ("leoclr.cli.preflight",),
    ("leoclr.cli.plotting", "leoclr.cli.run"),
    ("leoclr.cli.config",),
    ("leoclr.cli",),
    ("leoclr.evals",),
    ("leoclr.backends", "leoclr.datasets"),
)
MOST_MODULES, MOST_LINES = 20, 300
Graph = Mapping[str, Set[str]]


def modules(root: Path) -> dict[str, Path]:
    """The file of each module, by its import name."""
    found = {}
    for package, folder in FOLDERS.items():
        for file in sorted((root / folder).rglob("*.py")):
            parts = file.relative_to(root / folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = file
    return found


def imports(name: str, file: Path, known: Set[str]) -> set[str]:
    """The modules in `known` that a module imports at any depth."""
    found = set()
    for node in _at_run_time(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= whole & known or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value.partition(":")[0])
    return (found & known) - {name}


def _at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those below `if TYPE_CHECKING:`."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _at_run_time(child)


def graph(root: Path) -> dict[str, set[str]]:
    """The modules of the project that each of them imports."""
    files = modules(root)
    return {name: imports(name, file, files.keys()) for name, file in files.items()}


def room(module: str) -> tuple[int, str]:
    """The layer of a module, 0 on top, and the name in `LAYERS` that it belongs to."""
    fitting = [
        (len(name), layer, name)
        for layer, names in enumerate(LAYERS)
        for name in names
        if module == name or module.startswith(f"{name}.")
    ]
    _, layer, name = max(fitting)
    return layer, name


def wrong_ways(edges: Graph) -> list[str]:
    """A line for each import that runs up, or sideways into another folder of the same layer."""
    lines = []
    for module, imported in edges.items():
        layer, own = room(module)
        for other in sorted(imported):
            below, theirs = room(other)
            if theirs != own and below <= layer:
                lines.append(f"{module} imports {other}: {own} lies {'below' if below < layer else 'beside'} {theirs}")
    return lines


def cycles(edges: Graph) -> list[str]:
    """A line for the first cycle of imports, if there is one."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return [f"cycle: {' -> '.join(reversed(error.args[1]))}"]
    return []


def crowded(files: Mapping[str, Path], root: Path) -> list[str]:
    """A line for each folder of too many modules and each module of too many lines."""
    counts = Counter(file.parent.relative_to(root) for file in files.values())
    lengths = {file.relative_to(root): len(file.read_text("utf-8").splitlines()) for file in files.values()}
    lines = [
        f"{folder}: {count} modules, at most {MOST_MODULES}" for folder, count in counts.items() if count > MOST_MODULES
    ]
    return lines + [
        f"{file}: {length} lines, at most {MOST_LINES}" for file, length in lengths.items() if length > MOST_LINES
    ]


def problems(root: Path) -> list[str]:
    """A line for each breach of the rules above."""
    edges = graph(root)
    return wrong_ways(edges) + cycles(edges) + crowded(modules(root), root)


def main(root: Path) -> int:
    edges = graph(root)
    by_room = Counter(room(module)[1] for module in edges)
    print(f"{len(edges)} modules, {sum(map(len, edges.values()))} imports between them")
    for names in LAYERS:
        print("  " + "   ".join(f"{name.removeprefix('leoclr.')} ({by_room[name]})" for name in names))
    found = problems(root)
    print("\n".join(found) or "imports run down, no cycle, no crowded folder, no long file")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1])))
