"""Parse the subset of YAML 1.2 that settings need.

PyYAML follows YAML 1.1, where `1e-3` is text, `no` is false, `010` is eight and `1:30` is ninety, and it lets the last
of two equal keys win. Here numbers are numbers, only `true` and `false` are booleans, keys are unique, and there are no
aliases (a few lines can expand to gigabytes) and no merging of mappings.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError


class SubsetLoader(yaml.SafeLoader):
    """Builds dictionaries with text keys, lists, text, numbers, truth values and null."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise ConstructorError(None, None, "aliases (*name) are not read here", self.get_mark())
        if getattr(self.peek_event(), "tag", None) not in (None, "!"):  # type: ignore[no-untyped-call]
            raise ConstructorError(None, None, "tags (!!name) are not read here", self.get_mark())
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[str]()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConstructorError(None, None, "a key must be a name", key.start_mark)
            if key.value in seen:
                raise ConstructorError(None, None, f"the key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}

    def construct_decimal(self, node: yaml.ScalarNode) -> int:
        return int(self.construct_scalar(node))


def _resolve(tag: str, pattern: str, first: str) -> None:
    SubsetLoader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), list(first))


_resolve("bool", "true|True|TRUE|false|False|FALSE", "tTfF")
_resolve("int", r"[-+]?[0-9]+", "-+0123456789")
_resolve("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789")
_resolve("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+.")
_resolve("null", "~|null|Null|NULL|", "~nN\0")
SubsetLoader.yaml_constructors = {
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if tag in {f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "bool", "float", "null")} or tag is None
}
SubsetLoader.add_constructor("tag:yaml.org,2002:int", SubsetLoader.construct_decimal)
