"""Parse JSON of untrusted files."""

from __future__ import annotations

import json
from typing import Any


def parse_json_text(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: It is not JSON, not Unicode, or nested more deeply than Python's parser follows, which by itself
            raises RecursionError.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
