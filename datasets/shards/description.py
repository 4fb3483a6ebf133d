"""Summary of an index, in the same words for every command."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from leoclr.datasets.shards.copies import repeated_shards
from leoclr.datasets.shards.index import NO_LABEL, Index
from leoclr.datasets.shards.joining import UNUSABLE_LABEL
from leoclr.datasets.shards.scan import NO_IMAGE
from leoclr.datasets.shards.unread import not_read
from leoclr.datasets.wording import counted, first_of, printable

_SHOWN = 10
_SHOWN_PAIRS = 3
_KEYS_LOOKED_AT = 256


def label_count(index: Index) -> str:
    """How many classes occur, in words."""
    return counted(index.class_count, "class", "classes") if index.class_count else "no labels"


def contents(index: Index) -> str:
    """Images, classes and shards, in words."""
    shards = counted(len(index.shards), "shard")
    return f"{counted(len(index), 'image')}, {label_count(index)}, {shards}"


def class_line(index: Index) -> str | None:
    """The names of the classes that occur, or their numbers; None where there are no labels."""
    if not index.class_count:
        return None
    return named_classes(index.classes, index.occurring.tolist())


def named_classes(classes: Sequence[str], occurring: Iterable[int]) -> str:
    """The same for class names by number, or for numbers without names, and the numbers that occur."""
    labels = sorted(set(occurring))
    names = [classes[label] if label < len(classes) else str(label) for label in labels[: _SHOWN + 1]]
    unused = len(classes) - len(labels)
    what = "classes" if classes else "class numbers"
    return f"{what}: {shown(names, len(labels))}" + (f" ({unused:,} more do not occur)" if unused > 0 else "")


def shown(names: Sequence[str], count: int | None = None) -> str:
    """The first of some names, and how many there are beside them."""
    return printable(first_of(names, _SHOWN, count))


def remarks(index: Index, named: Sequence[str] = ()) -> Iterator[str]:
    """A line for each thing not to miss: images and labels that are left out, classes that look alike, shards that are
    copies, and what lies beside the shards.

    Args:
        named: All data that the user named, as after `--data`: of folders among them, shards in sub-folders are told.
    """
    left_out = Counter[str]()
    for shard in index.shards:
        left_out.update(shard.left_out)
    if without := sum(shard.without_image for shard in index.shards):
        them = "samples hold" if without > 1 else "sample holds"
        first = next(shard.path for shard in index.shards if shard.without_image)
        yield (
            f"{without:,} {them} no image of a known format and {'are' if without > 1 else 'is'} left out, "
            f"in {first} first{_reasons(left_out, NO_IMAGE)}"
        )
    if empty := [shard.path for shard in index.shards if not shard.samples]:
        yield f"{counted(len(empty), 'shard')} without a sample: {shown(empty)}"
    missing = int(np.count_nonzero(index.label == NO_LABEL))
    reasons = _reasons(left_out, UNUSABLE_LABEL)
    if missing and (missing < len(index) or reasons):
        key = index.key(int(np.argmax(index.label == NO_LABEL)))
        what = "no label that is a class number or a class name" if reasons else "no label"
        have = "have" if missing > 1 else "has"
        yield f"{missing:,} of {counted(len(index), 'image')} {have} {what}, {key!r} first{reasons}"
    yield from look_alikes(index.classes)
    yield from _repeated(index)
    yield from not_read(index, {*index.classes, *(key.partition("/")[0] for key in _some_keys(index))}, named)


def _repeated(index: Index) -> Iterator[str]:
    """A line for shards that hold the same samples."""
    groups = repeated_shards(index)
    if not groups:
        return
    listed = "; ".join(_all_of(group) for group in groups[:_SHOWN_PAIRS])
    more = f"; and {len(groups) - _SHOWN_PAIRS:,} more" if len(groups) > _SHOWN_PAIRS else ""
    hold = "hold" if len(groups) == 1 else "each hold"
    often, rest = ("double", "one") if all(len(group) == 2 for group in groups) else ("several times", "all but one")
    yield (
        f"{printable(listed)}{more} {hold} the same samples; their images count {often}; remove {rest}"
        f"{' of each' if len(groups) > 1 else ''}"
    )


def _all_of(names: Sequence[str]) -> str:
    """`a and b`, `a, b and c`, `a, b, c and 4 more`."""
    if len(names) > _SHOWN:
        return first_of(names, _SHOWN)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _some_keys(index: Index) -> list[str]:
    """Keys from all parts of the index."""
    places = np.linspace(0, len(index) - 1, _KEYS_LOOKED_AT).astype(int) if len(index) else ()
    return [index.key(int(place)) for place in places]


def hint(index: Index) -> str | None:
    """How labels could be had of shards that have none, where other members may hold some."""
    beside = sorted({name for shard in index.shards for name in shard.beside})
    if index.class_count or not len(index):
        return None
    if not beside:
        folders = sorted({key.rpartition("/")[0] for key in _some_keys(index)})
        named = shown([folder for folder in folders if folder])
        return (
            f"no labels; if the folders of the keys ({named}) are classes, `leoclr shard` packs the tars anew"
            if (1 < len(folders))
            else None
        )
    names = shown([f".{name}" for name in beside])
    return f"no labels; --label-member takes them from another member ({names}), as in --label-member json:FIELD"


def look_alikes(names: Sequence[str]) -> Iterator[str]:
    """A line for class names that differ only by case, by Unicode form or by spaces."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in names:
        alike[plain(name)].append(name)
    groups = [group for group in alike.values() if len(group) > 1]
    if groups:
        pairs = "; ".join(" and ".join(repr(name) for name in group) for group in groups[:_SHOWN_PAIRS])
        more = f" and {len(groups) - _SHOWN_PAIRS:,} more" if len(groups) > _SHOWN_PAIRS else ""
        what = "class names that differ only by case, Unicode form, spaces or leading zeros"
        yield f"{what} are classes of their own: {pairs}{more}"


def plain(name: str) -> str:
    """What stays of a name without case, Unicode form, spaces and the leading zeros of a number."""
    bare = "".join(unicodedata.normalize("NFKC", name).casefold().split())
    return (bare.lstrip("0") or "0") if bare.isdecimal() else bare


def as_json(index: Index) -> dict[str, Any]:
    """The same for a program."""
    left_out = Counter[str]()
    for shard in index.shards:
        left_out.update(shard.left_out)
    return {
        "images": len(index),
        "without_image": sum(shard.without_image for shard in index.shards),
        "without_label": int(np.count_nonzero(index.label == NO_LABEL)),
        "left_out": dict(left_out),
        "labelled": index.labelled,
        "classes": index.class_count,
        "class_names": [index.class_name(int(label)) for label in index.occurring],
        "shards": len(index.shards),
        "bytes": sum(shard.bytes for shard in index.shards),
    }


def _reasons(left_out: Counter[str], kind: str) -> str:
    found = [(name.removeprefix(kind), count) for name, count in left_out.most_common() if name.startswith(kind)]
    listed = ", ".join(f"{name} ({count:,})" for name, count in found[:_SHOWN])
    return f": {listed}" if listed else ""
