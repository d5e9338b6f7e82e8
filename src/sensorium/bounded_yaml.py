"""YAML of others within bounds: of bytes, of values, of depth, and of what aliases make of a few lines.

The parser is written in Python and takes some ten microseconds a value, so the bound on values is one on time. An alias
costs nothing to parse; who walks what it stands for walks it each time, so what counts is the document without aliases.
"""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

MOST_BYTES = 4 << 20
MOST_VALUES = 100_000
"""Keys included; the largest YAML file among the public recordings and calibrations of the tests has 14517."""

MOST_DEPTH = 100
MOST_DIGITS = 400
"""Of a number, which Python reads in a time that grows with their square (``59:59:59...`` is one in base 60)."""

_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class TooMuchYamlError(yaml.YAMLError):
    """A document is larger, deeper or more folded up than any that makes sense here."""


class BoundedLoader(yaml.SafeLoader):
    """Reads plain values only, and no more of them than anybody needs; raises :class:`TooMuchYamlError`."""

    def __init__(self, stream: str | bytes) -> None:
        if len(stream) > MOST_BYTES:
            raise TooMuchYamlError(f"{len(stream)} bytes, more than {MOST_BYTES}")
        super().__init__(stream)
        self._count = 0
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node | None:
        """Count a value before it is read."""
        self._count += 1
        if self._count > MOST_VALUES:
            raise TooMuchYamlError(f"more than {MOST_VALUES} values")
        if self._depth >= MOST_DEPTH:
            raise TooMuchYamlError(f"nested more than {MOST_DEPTH} deep")
        self._depth += 1
        try:
            node = super().compose_node(parent, index)  # type: ignore[arg-type]
        finally:
            self._depth -= 1
        if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and len(node.value) > MOST_DIGITS:
            raise TooMuchYamlError(f"a number of {len(node.value)} digits")
        return node

    def compose_document(self) -> yaml.Node | None:
        """Return a document whose size without aliases is within bounds."""
        node = super().compose_document()
        if node is not None:
            _unfolded(node, {}, set())
        return node


class StrictLoader(BoundedLoader):
    """Refuses a key that stands twice, and leaves dates as text: they would lose nanoseconds and their zone."""

    repeated = "is given twice"

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Hashable] = set()
        for of_key, _ in node.value:
            key = self.construct_object(of_key, deep=True)
            if not isinstance(key, Hashable):
                continue  # refused below
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} {self.repeated}", node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml_text(path: Path) -> str:
    """Return the text of a file, no more of it than makes a loader refuse it.

    Raises:
        OSError: If it cannot be read.
        UnicodeDecodeError: If it is no UTF-8.
    """
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        return data.decode(errors="replace") + " "
    return data.decode("utf-8-sig")


def _unfolded(node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
    """Return how many values a node stands for; each node is looked at once."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    found = known.get(id(node))
    if found is not None:
        return found
    if id(node) in above:
        raise TooMuchYamlError("an alias (*) lies inside what it names")
    above.add(id(node))
    children = (
        [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    )
    total = 1 + sum(_unfolded(child, known, above) for child in children)
    above.discard(id(node))
    if total > MOST_VALUES:
        raise TooMuchYamlError(f"aliases (*) that stand for more than {MOST_VALUES} values")
    known[id(node)] = total
    return total
