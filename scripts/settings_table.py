"""Write the table of settings in docs/settings.md from the settings themselves.

Run it after a change of the settings. With --check it writes nothing and fails where the table is not current.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin

from page_section import write_section
from pydantic import BaseModel

from leoclr.cli.config.fields import SECTIONS, all_fields, default, plugin_sections
from leoclr.cli.config.setting_files import toml_value
from leoclr.cli.config.settings import Settings

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"


def table() -> Iterator[str]:
    """The lines of a table for each section, those of the two choices at the top first."""
    for section in ("", *SECTIONS, *sorted(plugin_sections())):
        if section:
            meaning = " ".join((_model(section).__doc__ or "").split())
            yield from ("", f"### {section}", "", meaning)
        yield from ("", "| key | default | meaning |", "|---|---|---|")
        for key, field in all_fields().items():
            if key.rpartition(".")[0] == section:
                meaning = f"{_choices(field.annotation)}{field.description}".replace("|", "\\|")
                yield f"| `{key}` | `{_default(key)}` | {meaning} |"


def _model(section: str) -> type[BaseModel]:
    model = plugin_sections().get(section) or Settings.model_fields[section].annotation
    assert isinstance(model, type) and issubclass(model, BaseModel)
    return model


def _default(key: str) -> str:
    value = default(key)
    if isinstance(value, tuple):
        return f"[{', '.join(_number(item) for item in value)}]"
    return toml_value(value)


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else toml_value(value)


def _choices(annotation: object) -> str:
    if get_origin(annotation) is not Literal:
        return ""
    return f"{', '.join(f'`{choice}`' for choice in get_args(annotation))}. "


def main() -> None:
    """Write the page, or with --check exit with 1 where it is out of date."""
    write_section(PAGE, "settings", "".join(f"{line}\n" for line in table()) + "\n")


if __name__ == "__main__":
    main()
