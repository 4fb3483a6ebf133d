"""Settings files: read TOML, YAML and JSON into plain values, and write TOML.

The three parsers follow one standard: keys are unique, numbers are numbers (YAML 1.2: `1e-3` is a number and `no` is
text), only plain values are constructed, and the size of a file is limited.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leoclr.cli.config.fields import all_fields, get, keys_of, nearest
from leoclr.cli.config.settings import Settings
from leoclr.datasets.errors import SettingsError

MAX_BYTES = 1 << 20


def read_settings_file(path: Path) -> dict[str, Any]:
    """The content of a settings file as nested dictionaries; nothing in it is checked against the settings yet.

    Raises:
        SettingsError: The file is missing, not readable, of no known format, malformed, or has a key twice.
    """
    if path.suffix.lower() not in _PARSERS:
        raise SettingsError(f"{path}: a settings file ends in {', '.join(_PARSERS)}")
    text = _read_text(path)
    try:
        content = _PARSERS[path.suffix.lower()](text)
    except RecursionError:
        raise SettingsError(f"{path}: nested too deeply") from None
    except ValueError as error:
        raise SettingsError(f"{path}: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: must hold sections with keys, such as optimizer with lr")
    return content


def to_toml(settings: Settings) -> str:
    """All settings as a TOML file, with what each means; `read_settings_file` gives the same values back."""
    lines = ["# Settings of leoclr train. Use: leoclr train --config THIS-FILE"]
    section = ""
    for key in sorted(keys_of(settings), key=lambda key: "." in key):
        if key.rpartition(".")[0] != section:
            section = key.rpartition(".")[0]
            lines += ["", f"[{section}]"]
        lines += [f"# {all_fields()[key].description}", f"{key.rpartition('.')[2]} = {toml_value(get(settings, key))}"]
    return "\n".join(lines) + "\n"


def toml_value(value: Any) -> str:
    """One value as TOML writes it."""
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(toml_value(item) for item in value)}]"
    if isinstance(value, (str, bool)):  # printable text and truth values are spelled alike in JSON and TOML
        return json.dumps(value, ensure_ascii=False)
    return repr(value)


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such file{_similar_file(path)}") from None
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise SettingsError(f"{path}: more than {MAX_BYTES >> 20} MiB; that is no file of settings")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: not UTF-8 text (byte {error.start})") from None


def _similar_file(path: Path) -> str:
    neighbours = {other.stem: other for other in path.parent.glob("*") if other.suffix.lower() in _PARSERS}
    guess = nearest(path.stem, neighbours)
    return f"; did you mean {neighbours[guess]}?" if guess else ""


def _parse_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"the key {key!r} stands twice")
        content[key] = value
    return content


def _parse_yaml(text: str) -> Any:
    import yaml

    from leoclr.cli.config.yaml_subset import SubsetLoader

    try:
        return yaml.load(text, SubsetLoader)  # a SafeLoader that does less
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ValueError(f"{error.problem or error.context}{place}") from None
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


_PARSERS: dict[str, Callable[[str], Any]] = {
    ".toml": tomllib.loads,
    ".yaml": _parse_yaml,
    ".yml": _parse_yaml,
    ".json": _parse_json,
}
