"""The fields that a message's definition names, whatever language it is written in.

ROS ``.msg`` text with its dependencies below lines of ``=`` (wiki.ros.org/msg, as bags and MCAP carry it), OMG IDL,
a protobuf ``FileDescriptorSet``, JSON Schema, and a FlatBuffers schema in its binary form (of which the words alone
are read). Only what a definition holds is asked of it, so values and constants are passed over.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorSet
from google.protobuf.message import DecodeError

from sensorium.drivers.frame import MessageSchema

_MAX_DEPTH = 16
_MAX_FIELDS = 20_000
_SECTION = re.compile(r"^=+\s*$")
_ROS_FIELD = re.compile(r"^([\w/]+)(\s*\[[^\]]*\]|<=\d+)*\s+([A-Za-z]\w*)")
_IDL_FIELD = re.compile(r"^\s*(?:@\w+(?:\([^)]*\))?\s*)*([\w:<>, ]+?)\s+(\w+)\s*(\[[^\]]*\])?\s*;")
_IDL_COMMENT = re.compile(r"//.*?$|/\*.*?\*/", re.MULTILINE | re.DOTALL)
_IDL_OTHER = ("module", "struct", "typedef", "const", "enum", "union", "#include", "}")
_WORD = re.compile(rb"[A-Za-z_][\w.]{2,60}")
_ROS_BYTES = frozenset({"uint8", "int8", "byte", "char", "int16", "uint16", "octet"})
_FEW = 64


@dataclass(frozen=True, slots=True)
class Field:
    """One field, at any depth; ``type`` as the definition writes it, without its package's folders.

    Attributes:
        is_blob: Many bytes or 16-bit numbers in a row: they may be a picture, sound, anything.
    """

    name: str
    type: str
    is_blob: bool = False


class UnreadableDefinitionError(Exception):
    """A definition that is none, or in a language that is not read."""


def fields_of(schema: MessageSchema) -> tuple[Field, ...]:
    """Return the fields of a definition and of all that it holds; () where there is no definition.

    Raises:
        UnreadableDefinitionError: If the definition cannot be read.
    """
    if not schema.data:
        return ()
    reader = _READERS.get(schema.encoding)
    if reader is None:
        raise UnreadableDefinitionError(f"definitions in {schema.encoding[:40]!r} are not read")
    found = []
    try:
        for field in reader(schema):
            found.append(field)
            if len(found) > _MAX_FIELDS:
                raise UnreadableDefinitionError(f"more than {_MAX_FIELDS} fields")
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError, DecodeError) as err:
        raise UnreadableDefinitionError(str(err)) from err
    return tuple(found)


def _ros(schema: MessageSchema) -> Iterator[Field]:
    text = schema.data.decode()
    if re.search(r"^IDL: ", text, re.MULTILINE) or ("struct " in text and ";" in text):
        yield from _idl(schema)
        return
    for line in text.splitlines():
        bare = line.partition("#")[0].strip()
        if not bare or _SECTION.match(bare) or bare.startswith("MSG:"):
            continue
        found = _ROS_FIELD.match(bare)
        if found is None:
            raise UnreadableDefinitionError(f"no field: {bare[:60]!r}")
        rest = bare[found.end() :].lstrip()
        if rest.startswith("="):
            continue  # a constant
        kind, array, name = found[1], found[2] or "", found[3]
        yield Field(name, kind, kind in _ROS_BYTES and _is_long(array))


def _is_long(array: str) -> bool:
    inside = array.strip().strip("[]")
    return bool(array.strip()) and not (inside.isdigit() and int(inside) <= _FEW)


def _idl(schema: MessageSchema) -> Iterator[Field]:
    text = _IDL_COMMENT.sub("", schema.data.decode())
    aliases = {
        name: (kind, array)
        for kind, name, array in re.findall(r"typedef\s+([\w:<>, ]+?)\s+(\w+)\s*(\[[^\]]*\])?\s*;", text)
    }
    for line in text.splitlines():
        found = _IDL_FIELD.match(line)
        if found is None or line.strip().startswith(_IDL_OTHER):
            continue
        kind, array = found[1].strip(), found[3] or ""
        if kind in aliases:
            kind, array = aliases[kind]
        inner = re.fullmatch(r"sequence<\s*([\w:]+)\s*(?:,\s*(\d+)\s*)?>", kind)
        if inner is not None:
            kind, array = inner[1], f"[{inner[2] or ''}]"
        yield Field(found[2], kind.replace("::", "/"), kind in _ROS_BYTES and _is_long(array))


def _protobuf(schema: MessageSchema) -> Iterator[Field]:
    messages: dict[str, Any] = {}
    for file in FileDescriptorSet.FromString(schema.data).file:
        prefix = f".{file.package}" if file.package else ""
        for message in file.message_type:
            _enter(messages, f"{prefix}.{message.name}", message)
    root = f".{schema.name}"
    if root not in messages:
        raise UnreadableDefinitionError(f"message {schema.name[:80]!r} is not in its own definition")
    waiting, seen = [root], {root}
    while waiting:
        for field in messages[waiting.pop()].field:
            kind = field.type_name or FieldDescriptorProto.Type.Name(field.type).lower().removeprefix("type_")
            yield Field(field.name, kind.lstrip("."), kind == "bytes")
            if field.type_name in messages and field.type_name not in seen:
                seen.add(field.type_name)
                waiting.append(field.type_name)


def _enter(messages: dict[str, Any], name: str, message: Any) -> None:
    messages[name] = message
    for nested in message.nested_type:
        _enter(messages, f"{name}.{nested.name}", nested)


def _json_schema(schema: MessageSchema) -> Iterator[Field]:
    yield from _properties(json.loads(schema.data), 0)


def _properties(node: Any, depth: int) -> Iterator[Field]:
    if depth > _MAX_DEPTH:
        raise UnreadableDefinitionError("nested too deeply")
    if isinstance(node, list):
        for item in node:
            yield from _properties(item, depth + 1)
    if not isinstance(node, dict):
        return
    properties = node.get("properties")
    for name, inner in properties.items() if isinstance(properties, dict) else ():
        about = inner if isinstance(inner, dict) else {}
        title = str(about.get("title") or about.get("$ref") or about.get("type") or "")
        yield Field(str(name), title.rpartition("/")[2] or title, "contentEncoding" in about)
    for key, inner in node.items():
        if key not in ("enum", "const", "default", "examples", "description", "title"):
            values = inner.values() if key in ("properties", "$defs", "definitions") else [inner]
            for value in values if not isinstance(inner, str) else ():
                yield from _properties(value, depth + 1)


def _flatbuffer(schema: MessageSchema) -> Iterator[Field]:
    """Yield its words, each as a name and as a type: the tables that tell one from the other are not followed."""
    for word in dict.fromkeys(_WORD.findall(schema.data)):
        text = word.decode()
        if text != schema.name:
            yield Field(text.rpartition(".")[2], text)


_READERS = {
    "ros1msg": _ros,
    "ros2msg": _ros,
    "ros2idl": _idl,
    "omgidl": _idl,
    "protobuf": _protobuf,
    "jsonschema": _json_schema,
    "flatbuffer": _flatbuffer,
}
