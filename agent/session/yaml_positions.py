"""A YAML text as plain values, each with its line and column, and what is wrong with it in words."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sensorium.bounded_yaml import BoundedLoader
from sensorium.errors import ConfigError

Location = tuple[str | int, ...]
Problem = tuple[Location, str]

_SAID = {
    "mapping values are not allowed here": "a colon where none can stand; write a space after each key's colon, indent "
    "keys of one group alike, and put quotes around a text that holds ': '",
    "could not find expected ':'": "a key without its colon; write key: value",
    "did not find expected key": "a line that does not fit the ones above; indent keys of one group alike",
    "expected ',' or '}', but got": "a group in braces that is not closed, or lacks a comma; write {key: value, ...}",
    "expected ',' or ']', but got": "a list in brackets that is not closed, or lacks a comma; write [a, b]",
    "found unexpected end of stream": "a quote or a bracket that is not closed; add the one that is missing",
    "expected <block end>": "a line that does not fit the ones above; indent keys of one group alike",
    "found undefined alias": "a word that begins with *; put quotes around it",
}


class PositionedYaml:
    """The values of a YAML text and where they stand.

    Attributes:
        data: Plain values; None for an empty text.
        problems: Keys given twice, values of other programs.

    Raises:
        ConfigError: If it is no YAML; names line and column, and what to write.
    """

    def __init__(self, text: str, path: Path) -> None:
        self._path = path
        self._positions: dict[Location, tuple[int, int]] = {}
        self.problems: list[Problem] = []
        node = _composed(text, path)
        try:
            self.data: Any = self._plain(node, ()) if isinstance(node, yaml.MappingNode) else None
        except RecursionError as err:
            raise ConfigError(
                f"{path}: nested too deeply, or an alias (*) lies inside what it names"
            ) from err

    def holds(self, where: Location) -> bool:
        """Return whether the text has something there."""
        return where in self._positions

    def line(self, where: Location, what: str) -> str:
        """Return ``file:line:column: what`` for the place, or the nearest around it that the text has."""
        while where and where not in self._positions:
            where = where[:-1]
        line, column = self._positions.get(where, (1, 1))
        return f"{self._path}:{line}:{column}: {what}"

    def _plain(self, node: yaml.Node, where: Location) -> Any:
        self._positions.setdefault(where, (node.start_mark.line + 1, node.start_mark.column + 1))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, where)
        if isinstance(node, yaml.SequenceNode):
            return [self._plain(item, (*where, index)) for index, item in enumerate(node.value)]
        try:
            return yaml.SafeLoader("").construct_object(node)
        except (yaml.YAMLError, ValueError) as err:  # a tag of another program, a date that does not exist
            self.problems.append((where, f"{dotted(where)}: not a plain value: {str(err).splitlines()[0]}"))
            return None

    def _mapping(self, node: yaml.MappingNode, where: Location) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            here = (*where, key)
            self._positions.setdefault(here, (key_node.start_mark.line + 1, key_node.start_mark.column + 1))
            if key in found:
                line = key_node.start_mark.line + 1
                self.problems.append(
                    (here, f"{dotted(here)} is given twice (again on line {line}); keep one")
                )
            found[key] = self._plain(value_node, here)
        return found


def dotted(where: Location) -> str:
    """Return ``devices.wrist.size`` for a place."""
    return ".".join(str(part) for part in where)


def value_at(data: Any, where: Location) -> Any:
    """Return the value at a place, None where there is none."""
    for part in where:
        if isinstance(data, Mapping):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return None
    return data


def _composed(text: str, path: Path) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=BoundedLoader)
    except yaml.MarkedYAMLError as err:
        mark = err.problem_mark or err.context_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        line = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
        raise ConfigError(f"{path}{where}: not YAML: {_in_words(str(err.problem), line)}") from err
    except (yaml.YAMLError, RecursionError) as err:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(err).split())}") from err


def _in_words(problem: str, line: str) -> str:
    indent = line[: len(line) - len(line.lstrip())]
    if "\t" in indent or "\\t" in problem:
        return "a tab; YAML is indented with spaces: replace each tab by two spaces"
    for begin, said in _SAID.items():
        if problem.startswith(begin):
            return said
    if "cannot start any token" in problem:
        return f"{problem.replace('that cannot start any token', 'where none can stand')}; put quotes around the value"
    return problem
