"""How a check ended."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from leoclr.cli.config.plugin_errors import told_with_place
from leoclr.cli.run.devices import explained
from leoclr.datasets.errors import LeoclrError
from leoclr.datasets.wording import first_of


@dataclass(frozen=True)
class Result:
    """How one check ended.

    Attributes:
        detail: What was found, or what is wrong.
        noted: Whether what was found breaks no promise, and the method's author may want to know it.
    """

    name: str
    passed: bool
    detail: str
    noted: bool = False

    def __str__(self) -> str:
        return f"{('note' if self.noted else 'pass') if self.passed else 'FAIL'}  {self.name}: {self.detail}"

    def as_json(self) -> dict[str, Any]:
        """The result for a program."""
        return {"check": self.name, "passed": self.passed, "noted": self.noted, "detail": self.detail}


class Failure(Exception):
    """A promise that is not kept. The message says which and where."""


class Note(str):
    """What a check found that breaks no promise, and that the method's author may want to know."""


def result_of(name: str, check: Callable[[], str]) -> Result:
    """The result of a check that returns what it found, and raises what is wrong."""
    try:
        found = check()
        return Result(name, True, found, noted=isinstance(found, Note))
    except (Failure, LeoclrError) as error:
        return Result(name, False, str(error))
    except RuntimeError as error:
        return Result(name, False, str(explained(error) or told_with_place(error)))
    except Exception as error:  # a method may raise anything
        return Result(name, False, told_with_place(error))


def refuse_different(first: Path, second: Path, *, advice: str = "") -> None:
    """Raise Failure, with `advice` at its end, where weights and optimizer of two checkpoints are not the same bits."""
    for file in ("model.safetensors", "optimizer.safetensors"):
        one, other = (load_file(checkpoint / file) for checkpoint in (first, second))
        different = [name for name, value in one.items() if not torch.equal(value, other[name])]
        if different:
            raise Failure(f"{first_of(different, 1)} in {file} differs{advice}")


def collected(results: Iterable[Result], show: bool) -> list[Result]:
    """All results; with `show`, each is printed when it is there. What the runs that are checked say on stderr is left
    out."""
    found = []
    with contextlib.redirect_stderr(io.StringIO()):
        for result in results:
            found.append(result)
            if show:
                print(result, flush=True)
    return found
