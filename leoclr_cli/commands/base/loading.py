"""Tell a person at a terminal why nothing happens yet: importing PyTorch takes seconds."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

from leoclr.cli.terminal import say


class _Announcement(MetaPathFinder):
    """Finds no module, and says so much the first time that torch is looked for."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if name == "torch":
            sys.meta_path.remove(self)
            say("loading PyTorch")


def announce_loading() -> None:
    """Print a line when torch is imported, where standard error is a terminal; one process of several does."""
    if "torch" not in sys.modules and sys.stderr is not None and sys.stderr.isatty() and "RANK" not in os.environ:
        sys.meta_path.insert(0, _Announcement())
