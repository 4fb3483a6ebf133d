"""Write the results section of docs/results.md, and a picture for each table, from the files in results/ alone.

results/NAME/*.json are copies of what `leoclr reproduce` leaves in its folder's results/. With --check nothing is
written, and the exit code is 1 where the section is not current.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from page_section import write_section

from leoclr.cli.recipes.definition import load_recipe
from leoclr.cli.recipes.results import read_results
from leoclr.cli.recipes.table import as_grid, as_picture

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "results.md", ROOT / "results"


def section() -> Iterator[str]:
    """A table, its notes and its picture for each folder."""
    for folder in _folders():
        results = read_results(folder)
        first = results[0]
        yield as_grid(load_recipe(first["recipe"]), results)
        machines = (
            f"{each['environment']['device_name']}, {each['settings']['train']['precision']}" for each in results
        )
        data = f"data {first['data']['samples']:,} images, digest {first['data']['digest'][:12]}"
        yield f"- {' and '.join(dict.fromkeys(machines))}; {data}\n"
        yield f"\n![{folder.name}](../results/{folder.name}.png)\n\n"


def main() -> None:
    """Write the page and the pictures, or check the page."""
    if not write_section(PAGE, "results", "".join(section())):
        return
    for folder in _folders():
        results = read_results(folder)
        picture = as_picture(load_recipe(results[0]["recipe"]), results).quantize(64)  # a quarter of the bytes
        picture.save(RESULTS / f"{folder.name}.png", optimize=True)


def _folders() -> list[Path]:
    """In the order of their recipes' names."""
    folders = sorted(path for path in RESULTS.iterdir() if path.is_dir())
    return sorted(folders, key=lambda folder: str(read_results(folder)[0]["recipe"]))


if __name__ == "__main__":
    main()
