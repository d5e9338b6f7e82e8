"""docs/rig.md: every key of a rig file and every driver's options, written from the schema that reads them."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from sensorium.agent.session.rig_schema import rig_schema

_Schema = Mapping[str, Any]
_DRIVER = "driver."
_HEAD = """# The rig file

Written from the code by `sensorium rig reference`; a test compares. For editors that check YAML while one types:
`sensorium rig schema > rig.schema.json`, and in the first line of the rig file
`# yaml-language-server: $schema=rig.schema.json`. `sensorium rig init` writes a first one, `sensorium rig check` says
what is wrong with it. Units stand in the keys' names (`_s`, `_ms`, `_hz`, `_m`, `_mb`).
"""


def rig_reference() -> str:
    """Return the reference as Markdown."""
    schema = rig_schema()
    definitions: Mapping[str, _Schema] = schema["$defs"]
    parts = [_HEAD, "## Keys\n", *_table(schema)]
    for name in _linked(schema, definitions):
        parts += [f"\n### `{name}`\n", _about(definitions[name]), *_table(definitions[name])]
    parts.append("\n## Drivers\n\nOptions of a device beside `driver` and `codec`.\n")
    for name, entry in definitions.items():
        if name.startswith(_DRIVER):
            parts += [f"\n### `driver: {name.removeprefix(_DRIVER)}`\n", _about(entry)]
            parts += _table(entry, without=("driver", "codec"))
            for linked in _linked(entry, definitions):
                parts += [f"\n`{linked}` of it:\n", *_table(definitions[linked])]
    return "\n".join(part for part in parts if part) + "\n"


def _about(schema: _Schema) -> str:
    text = schema.get("description", "")
    return f"{text.replace('``', '`')}\n" if text else ""


def _table(schema: _Schema, without: tuple[str, ...] = ()) -> list[str]:
    required = set(schema.get("required", ()))
    rows = [
        f"| `{key}` | {_type(entry)} | {_default(key, entry, required)} | {_cell(entry)} |"
        for key, entry in schema.get("properties", {}).items()
        if key not in without
    ]
    return ["| key | type | default | what |", "|---|---|---|---|", *rows] if rows else []


def _cell(entry: _Schema) -> str:
    told = re.sub(r" ?Unit: [^.]+\.$", "", entry.get("description", ""))  # the key's ending says it
    return str(told.replace("``", "`").replace("|", "\\|"))


def _default(key: str, entry: _Schema, required: set[str]) -> str:
    if key in required or "default" not in entry:
        return "**required**" if key in required else ""
    found = entry["default"]
    if found is None or found == "" or isinstance(found, list | dict):
        return ""
    return f"`{str(found).lower() if isinstance(found, bool) else found}`"


def _type(entry: _Schema) -> str:
    if "anyOf" in entry or "oneOf" in entry:
        kinds = [_type(each) for each in entry.get("anyOf", entry.get("oneOf", ()))]
        return " or ".join(dict.fromkeys(kind for kind in kinds if kind != "null"))
    if "$ref" in entry:
        return f"`{entry['$ref'].rpartition('/')[2]}`"
    if "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry["enum"])
    if "const" in entry:
        return f"`{entry['const']}`"
    kind = str(entry.get("type", "any"))
    if kind == "array":
        items = entry.get("prefixItems")
        inner = ", ".join(map(_type, items)) if items else _type(entry.get("items", {}))
        return f"list of {inner}" if not items else f"[{inner}]"
    limits = [f"{sign} {entry[name]:g}" for name, sign in _LIMITS if name in entry]
    return " ".join([kind, *limits])


_LIMITS = (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<"))


def _linked(schema: _Schema, definitions: Mapping[str, _Schema]) -> list[str]:
    """Return the definitions that a schema's keys lead to, in order, those of drivers apart."""
    found: dict[str, None] = {}
    waiting = list(_references(schema.get("properties", {})))
    while waiting:
        name = waiting.pop(0)
        if name in found or name.startswith(_DRIVER) or name not in definitions:
            continue
        if definitions[name].get("properties"):
            found[name] = None
        waiting += _references(definitions[name].get("properties", {}))
    return list(found)


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key == "$ref":
                yield str(value).rpartition("/")[2]
            else:
                yield from _references(value)
    elif isinstance(node, list):
        for each in node:
            yield from _references(each)
