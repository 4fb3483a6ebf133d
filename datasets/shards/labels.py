"""Parse label members, and combine class names across shards that were read separately.

A class number is a whole number from 0 that fits 63 bits; a class name is a line of text that contains a letter.
Anything else (a negative number, a fraction, several numbers, an empty member) counts as no label: the sample keeps its
image, which suffices for pre-training, and the index counts it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leoclr.datasets.shards.tar import REFUSED_IN_NAMES

NO_LABEL = -1
MAX_LABEL = 2**63 - 1
MAX_LABEL_BYTES = 1024
MAX_JSON_BYTES = 1 << 20  # of a JSON member that a label is taken from
MAX_NAMES = 100_000  # more different texts are captions, not classes, and would take memory for each
_MAX_NAME = 256
_WHOLE = re.compile(r"[+]?[0-9]{1,40}", re.ASCII)
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(nan|inf(inity)?)", re.ASCII | re.IGNORECASE)
_NONE = ("none", "null", "n/a", "unknown", "unlabeled", "unlabelled")


def parse_text(data: bytes) -> int | str | None:
    """The class number or class name that a text member holds; None where it holds neither.

    A byte-order mark, white space and zero bytes around the text do not count.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    return _value(text.strip().strip("\0").strip())


def parse_json(data: bytes, field: str) -> int | str | None:
    """The same for a field of a JSON object."""
    try:
        value: Any = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    found = value.get(field) if isinstance(value, dict) else None
    if isinstance(found, bool):
        return truth(found)
    if isinstance(found, int):
        return found if 0 <= found <= MAX_LABEL else None
    return _value(found.strip()) if isinstance(found, str) else None


def truth(value: bool) -> str:
    """The class name of a truth value, as JSON writes it."""
    return str(value).lower()


def _value(text: str) -> int | str | None:
    if _WHOLE.fullmatch(text):
        number = int(text)
        return number if number <= MAX_LABEL else None
    if len(text) > _MAX_NAME or _NUMBER.fullmatch(text) or REFUSED_IN_NAMES.search(text):
        return None
    if not any(character.isalpha() for character in text):  # "1 2", "0,1", "-"
        return None
    if (text[0], text[-1]) in (("{", "}"), ("[", "]")):  # JSON, which may differ from image to image
        return None
    return None if text.casefold() in _NONE else text


def union_of(classes: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """The class names of several data sets: those that all share, or all of them in alphabetical order."""
    different = {tuple(names) for names in classes if names}
    return next(iter(different)) if len(different) == 1 else tuple(sorted(set().union(*different)))


def renumbered(label: NDArray[np.int64], old: Sequence[str], new: Sequence[str]) -> NDArray[np.int64]:
    """Labels that number the names `old`, as numbers of the names `new`; `NO_LABEL` for a name that is not among
    them, or a number without a name."""
    if tuple(old) == tuple(new):
        return label
    places: Mapping[str, int] = {name: number for number, name in enumerate(new)}
    table = np.array([*(places.get(name, NO_LABEL) for name in old), NO_LABEL], np.int64)
    return table[np.where((label >= 0) & (label < len(old)), label, len(old))]
