"""The part of a documentation page that a script writes, between `<!-- NAME: start -->` and `<!-- NAME: end -->`."""

from __future__ import annotations

import sys
from pathlib import Path


def write_section(page: Path, name: str, content: str) -> bool:
    """Put `content` there. With --check on the command line nothing is written, and the process exits with 1 where the
    page is not current.

    Returns:
        Whether it was written.
    """
    start, end = f"<!-- {name}: start -->\n", f"<!-- {name}: end -->\n"
    text = page.read_text("utf-8")
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    current = f"{before}{start}{content}{end}{after}"
    if "--check" in sys.argv[1:]:
        if current != text:
            sys.exit(f"{page} is not current; run python {sys.argv[0]}")
        return False
    page.write_text(current, "utf-8")
    return True
