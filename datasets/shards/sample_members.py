"""Choose the image member and the label member of a sample."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from leoclr.datasets.errors import DataError
from leoclr.datasets.images.file_names import IMAGE_SUFFIXES
from leoclr.datasets.shards.labels import MAX_JSON_BYTES, MAX_LABEL_BYTES, parse_json, parse_text

LABEL_SUFFIX = "cls"
_JSON_FIELD = re.compile(r"([^:\s]+):(.+)")
RECORDED = ("image_member", "label_member")
_PRINTABLE = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,200}")


@dataclass(frozen=True)
class Members:
    """A member is named by all that stands behind the first dot of its file name, in lower case.

    Attributes:
        image: The image's member, or several with commas between them, of which the first that is there counts. None:
            the one member that ends in an image's suffix.
        label: The label's member, or `json:FIELD` (`cls:FIELD`, ...) for a field of a JSON object. None: `cls`, or else
            the one member that ends in `.cls`.
    """

    image: str | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        for option, name in (("--image-member", self.image), ("--label-member", self.label)):
            if name is not None and not _PRINTABLE.fullmatch(name):
                raise DataError(f"{option} {name!r}: expected what stands behind the key's dot, such as jpg or cls")

    @staticmethod
    def of(made: Mapping[str, Any]) -> Members:
        """Those that an index records."""
        image, label = (made.get(name) for name in RECORDED)
        return Members(image if isinstance(image, str) else None, label if isinstance(label, str) else None)

    def stored(self) -> dict[str, str]:
        """What an index records of them."""
        return {name: value for name, value in zip(RECORDED, (self.image, self.label), strict=True) if value}

    @cached_property
    def images(self) -> tuple[str, ...]:
        """The names of the image's member in order of preference; empty where its suffix tells."""
        return tuple(name.strip().lstrip(".").lower() for name in (self.image or "").split(",") if name.strip())

    @cached_property
    def label_name(self) -> str | None:
        """The name of the label's member; None where its suffix tells."""
        if self.label is None:
            return None
        found = _JSON_FIELD.fullmatch(self.label)
        return (found[1] if found else self.label).lstrip(".").lower()

    @cached_property
    def label_bytes(self) -> int:
        """The largest label member that is read."""
        return MAX_JSON_BYTES if self.label and _JSON_FIELD.fullmatch(self.label) else MAX_LABEL_BYTES

    def may_be_image(self, name: str) -> bool:
        """Whether a member may be the image."""
        return name in self.images if self.image else name.rpartition(".")[2] in IMAGE_SUFFIXES

    def may_be_label(self, name: str) -> bool:
        """Whether a member may be the label."""
        return name == self.label_name if self.label else name.rpartition(".")[2] == LABEL_SUFFIX

    def chosen(self, names: Sequence[str], wanted: Sequence[str]) -> str | None:
        """The first of `wanted` that is among `names`, else their only one, else None."""
        exact = next((name for name in wanted if name in names), None)
        return exact or (names[0] if len(names) == 1 else None)

    def parse(self, data: bytes) -> int | str | None:
        """The class number or name that the label's member holds; None where it holds neither."""
        found = _JSON_FIELD.fullmatch(self.label or "")
        return parse_json(data, found[2]) if found else parse_text(data)


BY_SUFFIX = Members()
