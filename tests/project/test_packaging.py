"""What gets installed is what lies here, under names that are ours."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDERS = ("leoclr_cli", "backends", "datasets", "evals")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
# Each of two asks for a narrow range of the other; torch brings Triton where it is built for CUDA.
COMES_WITH = {"botocore": "boto3", "pydantic_core": "pydantic", "triton": "torch"}
PROJECT, SETUPTOOLS = PYPROJECT["project"], PYPROJECT["tool"]["setuptools"]


def test_every_folder_with_code_is_in_the_wheel() -> None:
    packaged = {folder_of(name) for name in SETUPTOOLS["packages"]}
    with_code = {str(file.parent.relative_to(ROOT)) for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")}
    assert packaged == with_code


def test_our_folders_hide_no_other_package() -> None:
    for folder in ("backends", "datasets", "evals"):
        assert not (ROOT / folder / "__init__.py").exists()
    assert not (ROOT / "conftest.py").exists()
    assert not (ROOT / "tests" / "__init__.py").exists()


def test_everything_that_is_no_code_is_in_the_wheel_too() -> None:
    patterns = SETUPTOOLS["package-data"]
    for folder in FOLDERS:
        assert (ROOT / folder / "py.typed").exists()
        data = {
            file
            for file in (ROOT / folder).rglob("*")
            if file.is_file() and file.suffix not in (".py", ".pyc") and "__pycache__" not in file.parts
        }
        listed = {
            file
            for name, globs in patterns.items()
            for pattern in globs
            for file in (ROOT / (folder if name == "*" else folder_of(name))).glob(pattern)
            if file.is_relative_to(ROOT / folder)
        }
        assert data == listed


def test_everything_imported_is_declared() -> None:
    declared = {requirement_name(line) for line in PROJECT["dependencies"]}
    optional = {
        requirement_name(line)
        for extra, lines in PROJECT["optional-dependencies"].items()
        if extra != "dev"
        for line in lines
    }
    distributions = packages_distributions()
    undeclared = {
        f"{name} (in {file.relative_to(ROOT)})"
        for folder in FOLDERS
        for file in (ROOT / folder).rglob("*.py")
        for name in imported_names(file)
        if name != "leoclr"
        and name not in (*sys.stdlib_module_names, "_typeshed")
        and not {normal(found) for found in (COMES_WITH.get(name), *distributions.get(name, [name])) if found}
        & (declared | optional)
    }
    assert not undeclared


def test_settings_of_the_extras_are_tested() -> None:
    extras = PROJECT["optional-dependencies"]
    for extra in set(extras) - {"dev"}:
        assert set(extras[extra]) <= set(extras["dev"])


def test_the_version_is_the_newest_of_the_change_log() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest.group(1) == PROJECT["version"] == version("leoclr-cli")


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert citation["cff-version"] == "1.2.0" and citation["authors"] and citation["message"]
    assert citation["preferred-citation"]["url"].endswith("2403.06813")


def test_type_checkers_see_the_folders_under_their_import_names() -> None:
    for name, folder in SETUPTOOLS["package-dir"].items():
        link = ROOT / ".typings" / name.replace(".", "/")
        assert link.is_symlink()
        assert link.resolve() == ROOT / folder


@pytest.mark.parametrize("script", ["scripts/check", ".ci/run"])
def test_scripts_can_be_run(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["sh", "-n", ROOT / script], check=True)


def test_the_module_runs_like_the_command_from_any_folder(tmp_path: Path) -> None:
    for folder in (ROOT, tmp_path):
        printed = subprocess.check_output([sys.executable, "-m", "leoclr.cli", "--version"], cwd=folder, text=True)
        assert printed == f"leoclr {PROJECT['version']}\n"


def folder_of(package: str) -> str:
    """The folder of `leoclr.cli.config`: `leoclr_cli/config`."""
    root, *inner = package.removeprefix("leoclr.").split(".")
    return "/".join((SETUPTOOLS["package-dir"][f"leoclr.{root}"], *inner))


def requirement_name(requirement: str) -> str:
    """The distribution that a requirement such as "torch>=2.6" names."""
    return normal(re.split(r"[<>=!~\[; ]", requirement)[0])


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported_names(file: Path) -> set[str]:
    """The first parts of what a file imports, at whatever depth."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names
