"""Long computations on disk: finished ones are not repeated, interrupted ones resume."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leoclr.datasets.errors import RunError
from leoclr.datasets.files import write_atomic
from leoclr.datasets.json_text import parse_json_text

_FORMAT = 1


class Work:
    """A computation under a name that is made from all that decides its result.

    Args:
        folder: Where results and states lie, made when needed; None keeps nothing.
        identity: All that decides the result, as JSON. Another identity is another computation.
    """

    def __init__(self, folder: Path | None, identity: Mapping[str, Any]) -> None:
        self.identity = {"format": _FORMAT, **identity}
        text = json.dumps(self.identity, sort_keys=True, allow_nan=False)
        self._stem = None if folder is None else folder / hashlib.sha256(text.encode()).hexdigest()[:20]

    @property
    def state(self) -> Path | None:
        """File for the state while the computation runs."""
        return None if self._stem is None else self._stem.with_suffix(".safetensors")

    def result(self) -> dict[str, Any] | None:
        """What `finish` kept; None where the computation is not finished, or what was kept is not readable."""
        if self._stem is None:
            return None
        try:
            content = parse_json_text(self._stem.with_suffix(".json").read_bytes())
            return dict(content["result"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def finish(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Keep the result, remove the state, and return the result.

        Raises:
            RunError: It cannot be written.
        """
        if self._stem is not None and self.state is not None:
            text = json.dumps({"identity": self.identity, "result": dict(result)}, indent=2, allow_nan=False)
            try:
                self._stem.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(self._stem.with_suffix(".json"), text.encode())
                self.state.unlink(missing_ok=True)
            except OSError as error:
                raise RunError(f"{self._stem.parent} cannot be written to: {error.strerror}") from error
        return dict(result)
