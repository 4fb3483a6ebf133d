"""What README, documentation and help say can be typed is understood; what is marked is run.

A code block of a Markdown file that follows the line `<!-- run -->` is run: all of a file in order, in one folder with
pictures in `photos`, with variables that make networks and images small. The commands of all other blocks are parsed.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import yaml
from typer.testing import CliRunner

from leoclr.cli.commands.app import app
from leoclr.cli.config.fields import all_fields
from leoclr.cli.config.preset_files import preset_names
from leoclr.cli.config.resolve import resolve
from leoclr.cli.config.setting_files import read_settings_file

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SMALL = {
    "LEOCLR_DATA__BATCH_SIZE": "8",
    "LEOCLR_DATA__IMAGE_SIZE": "16",
    "LEOCLR_ENCODER__BACKBONE": "resnet18",
    "LEOCLR_MOCO__BN_SPLITS": "1",
    "LEOCLR_MOCO__QUEUE": "16",
    "LEOCLR_RUN__DEVICE": "cpu",
    "LEOCLR_RUN__WORKERS": "0",
    "LEOCLR_TRAIN__EPOCHS": "1",
}
_BLOCK = re.compile(r"^(<!-- run -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A code block: whether it is to be run, its language, its text."""

    run: bool
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(bool(run), language, text) for run, language, text in _BLOCK.findall(page.read_text("utf-8"))]


def command_lines(text: str) -> Iterator[list[str]]:
    """The words of each `leoclr` command in a text, without what a shell would do to them."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.strip().removeprefix("$ "), comments=True)
        while words and re.fullmatch(r"\w+=\S*", words[0]):
            words = words[1:]
        if words[:1] == ["leoclr"] or "leoclr.cli" in words:
            start = 1 if words[0] == "leoclr" else words.index("leoclr.cli") + 1
            yield words[start : words.index(">") if ">" in words else None]


def help_examples(command: Any) -> Iterator[list[str]]:
    examples = (command.help or "").partition("Examples:")[2]
    yield from command_lines(re.sub(r" {3,}\w[^-\n]*$", "", examples, flags=re.MULTILINE))
    for inner in getattr(command, "commands", {}).values():
        yield from help_examples(inner)


def written_commands() -> list[str]:
    lines = list(help_examples(typer.main.get_command(app)))
    for page in PAGES:
        for block in blocks(page):
            if block.language == "sh":
                lines += command_lines(block.text)
            elif block.language in ("bash", "yaml"):  # scripts of schedulers, with a command to a line
                found = [text for line in block.text.splitlines() for text in re.findall(r"(leoclr [a-z].*)", line)]
                lines += [words for text in found for words in command_lines(text)]
    return sorted({shlex.join(words) for words in lines})


@pytest.mark.parametrize("line", written_commands())
def test_commands_are_understood(line: str) -> None:
    command: Any = typer.main.get_command(app)
    words, name = shlex.split(line), "leoclr"
    while hasattr(command, "commands"):
        name, *words = words
        command = command.commands[name]
    for parameter in command.params:
        parameter.callback = None  # which looks for the files of an example
    given = command.make_context(name, words).params

    assignments = [text.partition("=") for text in given.get("assignments") or ()]
    assert {key for key, _, _ in assignments} <= all_fields().keys()
    if "assignments" in given:
        assert given["preset"] in (None, *preset_names())
        resolve(given["preset"], None, {}, {key: value for key, _, value in assignments})


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(block.run for block in blocks(page))], ids=lambda page: page.stem
)
def test_marked_examples_run(page: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    for name, value in (SMALL | {"XDG_CACHE_HOME": str(photos.parent / "cache")}).items():
        monkeypatch.setenv(name, value)
    if page.stem == "extending":
        run("leoclr shard photos shards")
    for block in blocks(page):
        if block.run and block.language == "sh":
            for words in command_lines(block.text):
                run(shlex.join(["leoclr", *words]))
        elif block.run:
            exec(compile(block.text, str(page), "exec"), {"__name__": "__main__"})


def test_marked_trainings_fit_a_folder_of_any_size() -> None:
    """Where no variables make everything small, the default batch is refused for few images."""
    marked = [block.text for page in PAGES for block in blocks(page) if block.run and block.language == "sh"]
    trainings = [words for text in marked for words in command_lines(text) if words[0] == "train"]
    assert trainings
    for words in trainings:
        assert "--resume" in words or words[words.index("--preset") + 1] == "auto", words


def test_the_graph_is_opened_under_the_name_that_it_is_written_under() -> None:
    opened = re.findall(r'InferenceSession\("(.*?)"\)', (ROOT / "docs" / "weights.md").read_text("utf-8"))
    exported = [shlex.split(line) for line in written_commands() if "--with-preprocessing" in line]
    assert opened and set(opened) <= {words[words.index("-o") + 1] for words in exported if "-o" in words}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_marked_blocks_are_commands_or_python(page: Path) -> None:
    for block in blocks(page):
        if block.run:
            lines = [line for line in block.text.replace("\\\n", " ").splitlines() if line.strip()]
            assert block.language in ("sh", "python")
            assert block.language == "python" or len(lines) == len(list(command_lines(block.text)))


def test_scripts_of_schedulers_are_shell_and_yaml(tmp_path: Path) -> None:
    scripts = []
    for block in blocks(ROOT / "docs" / "clusters.md"):
        assert block.language in ("bash", "yaml")
        if block.language == "yaml":
            task = yaml.safe_load(block.text)
            containers = task["spec"]["template"]["spec"]["containers"] if "spec" in task else []
            scripts += [*(text for one in containers for text in one["args"]), task.get("run", "")]
        else:
            scripts.append(block.text)
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert sum("leoclr train --resume" in script for script in scripts) == 3


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_example_of_a_settings_file_is_one(tmp_path: Path) -> None:
    examples = [block.text for block in blocks(ROOT / "docs" / "settings.md") if block.language == "toml"]
    for example in examples:
        (tmp_path / "run.toml").write_text(example)
        assert read_settings_file(tmp_path / "run.toml")
        resolve(None, tmp_path / "run.toml", {}, {})
    assert examples


def test_the_refusals_are_printed_as_shown(tmp_path: Path) -> None:
    shown = [block.text for block in blocks(ROOT / "docs" / "settings.md") if block.language == "console"]
    for text in shown:
        command, _, expected = text.removeprefix("$ ").partition("\n")
        script = f'leoclr() {{ {shlex.quote(sys.executable)} -m leoclr.cli "$@"; }}; {command}'
        ended = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True)
        assert (ended.returncode, ended.stderr) == (2, expected)
    assert shown


def test_the_table_of_settings_is_current() -> None:
    subprocess.run([sys.executable, ROOT / "scripts" / "settings_table.py", "--check"], check=True)


def test_the_results_are_those_of_the_files() -> None:
    subprocess.run([sys.executable, ROOT / "scripts" / "results_table.py", "--check"], check=True)


def test_presets_are_all_described() -> None:
    text = (ROOT / "docs" / "settings.md").read_text("utf-8")
    assert [preset for preset in preset_names() if f"`{preset}`" not in text] == []


def test_the_second_command_is_what_the_ci_runs() -> None:
    first, second, *_ = [block.text.strip() for block in blocks(ROOT / "README.md") if block.language == "sh"]
    assert first.endswith("leoclr quickstart")
    ci = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("exec ")]
    assert [line.removeprefix("exec ").partition(" <")[0] for line in ci] == [second]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_first_command_installs_and_runs_from_a_copy(tmp_path: Path) -> None:
    """Needs the package index, and downloads PyTorch unless pip finds it nearer."""
    tracked = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    for name in filter(None, tracked):
        target = tmp_path / "clone" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            target.symlink_to(os.readlink(ROOT / name))
        elif (ROOT / name).exists():
            target.write_bytes((ROOT / name).read_bytes())
    first = next(block.text for block in blocks(ROOT / "README.md") if block.language == "sh")
    (tmp_path / "home").mkdir()
    environment = os.environ | {"HOME": str(tmp_path / "home")}
    subprocess.run(["sh", "-c", first], cwd=tmp_path / "clone", env=environment, check=True)
    assert (tmp_path / "clone" / "quickstart" / "encoder.safetensors").exists()


def run(line: str) -> None:
    result = CliRunner().invoke(app, shlex.split(line)[1:], catch_exceptions=False)
    assert result.exit_code == 0, f"{line}\n{result.output}"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """24 pictures of two classes."""
    from PIL import Image

    folder = tmp_path / "photos"
    for label, red in (("cat", 40), ("dog", 200)):
        (folder / label).mkdir(parents=True)
        for number in range(24):
            Image.new("RGB", (20, 16), (red, 10 * number, 90)).save(folder / label / f"{number}.png")
    return folder
