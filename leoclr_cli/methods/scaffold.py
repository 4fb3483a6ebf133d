"""Create a package with a working method: `leoclr method new`."""

from __future__ import annotations

import keyword
import re
from importlib.metadata import version
from pathlib import Path

from leoclr.cli.config.fields import RESERVED, sections
from leoclr.cli.config.plugins import METHODS, OWN_PACKAGE, plugins
from leoclr.datasets.errors import SettingsError
from leoclr.datasets.files import write_atomic

_TEMPLATE = Path(__file__).with_name("template")
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def write_package(name: str, folder: Path) -> list[Path]:
    """Write an installable package that adds the method `name`, and return its files.

    Raises:
        SettingsError: The name is taken or cannot be one, or the folder holds something already.
    """
    section = name.replace("-", "_")
    if not _NAME.fullmatch(name) or keyword.iskeyword(section):
        raise SettingsError(f"{name!r} cannot name a method: lower-case letters, digits and single dashes can")
    if name in plugins(METHODS):
        raise SettingsError(f"there is a method {name} already, of {plugins(METHODS)[name].package}")
    if section in (*RESERVED, *sections()):
        raise SettingsError(f"[{section}] is a section of the settings already; choose another name")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingsError(f"{folder} exists and is not an empty folder; name another one")
    module = f"leoclr_{section}"
    values = {
        "NAME": name,
        "SECTION": section,
        "UPPER": section.upper(),
        "MODULE": module,
        "CLASS": "".join(part.capitalize() for part in name.split("-")),
        "VERSION": version(OWN_PACKAGE),
    }
    files = {
        "method.py.txt": f"{module}.py",
        "pyproject.toml.txt": "pyproject.toml",
        "README.md.txt": "README.md",
        "test.py.txt": f"test_{section}.py",
    }
    written = []
    folder.mkdir(parents=True, exist_ok=True)
    for source, target in files.items():
        text = (_TEMPLATE / source).read_text("utf-8")
        filled = re.sub(r"\b(?:NAME|SECTION|MODULE|CLASS|VERSION)\b|UPPER(?=__)", lambda found: values[found[0]], text)
        write_atomic(folder / target, filled.encode())
        written.append(folder / target)
    return written
