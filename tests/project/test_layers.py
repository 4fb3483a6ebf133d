"""Imports run one way, without cycles, between folders and files of a size to be read: `scripts/house.py`."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def house() -> ModuleType:
    spec = spec_from_file_location("house", ROOT / "scripts" / "house.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_project_keeps_its_layers(house: ModuleType) -> None:
    assert house.problems(ROOT) == []


def test_every_folder_has_a_layer_and_every_layer_a_folder(house: ModuleType) -> None:
    rooms = {house.room(module)[1] for module in house.modules(ROOT)}
    assert rooms == {name for names in house.LAYERS for name in names}
    folders = {file.parent for file in house.modules(ROOT).values()}
    inner = {folder.name for folder in folders if folder.parent == ROOT / "leoclr_cli"}
    assert {f"leoclr.cli.{name}" for name in inner} <= rooms


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {"leoclr_cli/config/a.py": "def f():\n    import leoclr.cli.commands.b\n", "leoclr_cli/commands/b.py": ""},
            "leoclr.cli.config.a imports leoclr.cli.commands.b: leoclr.cli.config lies below leoclr.cli.commands",
        ),
        (
            {"backends/a.py": "from leoclr.datasets import b\n", "datasets/b.py": ""},
            "leoclr.backends.a imports leoclr.datasets.b: leoclr.backends lies beside leoclr.datasets",
        ),
        (
            {"leoclr_cli/run/a.py": "TABLE = {'b': 'leoclr.cli.training.b:run'}\n", "leoclr_cli/training/b.py": ""},
            "leoclr.cli.run.a imports leoclr.cli.training.b: leoclr.cli.run lies below leoclr.cli.training",
        ),
        (
            {"evals/a.py": "import leoclr.evals.b\n", "evals/b.py": "def f():\n    import leoclr.evals.a\n"},
            "cycle: ",
        ),
        ({f"evals/m{number}.py": "" for number in range(21)}, "evals: 21 modules, at most 20"),
        ({"evals/a.py": "\n" * 301}, "evals/a.py: 301 lines, at most 300"),
    ],
)  # fmt: skip
def test_what_breaks_the_rules_is_named(house: ModuleType, files: dict[str, str], said: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (line,) = house.problems(tmp_path)
    assert line.startswith(said)


def test_imports_for_type_checkers_do_not_count(house: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "backends").mkdir()
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "b.py").touch()
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from leoclr.datasets import b\n"
    (tmp_path / "backends" / "a.py").write_text(text)
    assert house.problems(tmp_path) == []


def test_the_script_prints_the_layers_and_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals" / "a.py").write_text("\n" * 301)
    ended = subprocess.run([sys.executable, ROOT / "scripts" / "house.py", tmp_path], capture_output=True, text=True)
    assert ended.returncode == 1 and "evals (1)" in ended.stdout and "301 lines" in ended.stdout
