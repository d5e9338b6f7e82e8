"""The JSON schema of a rig file, made from the models that read it: types, defaults, limits, units and what for."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from sensorium.agent.session.rig import RigDocument
from sensorium.drivers.registry import driver_targets, load_driver
from sensorium.errors import ConfigError

_UNITS = {
    "hz": "Hz",
    "s": "s",
    "ms": "ms",
    "us": "us",
    "ns": "ns",
    "m": "m",
    "deg": "deg",
    "rad": "rad",
    "px": "px",
    "ppm": "ppm",
    "mb": "MB",
    "gb": "GB",
    "bytes": "bytes",
    "share": "share of a core",
}
_ATTRIBUTE = re.compile(r"^ {4,8}([a-z0-9_, ]+): (.+)$")
_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def rig_schema() -> dict[str, Any]:
    """Return the schema of a rig file as a JSON document; a device is one of the drivers that can be loaded here."""
    found = _described(RigDocument)
    definitions: dict[str, Any] = found.pop("$defs", {})
    drivers = {name: entry for name in driver_targets() if (entry := _entry(name, definitions)) is not None}
    found["properties"]["devices"] = {
        "type": "object",
        "description": "Devices by name; small letters, digits and _.",
        "propertyNames": {"pattern": "^[a-z0-9_]{1,48}$"},
        "minProperties": 1,
        "additionalProperties": {"oneOf": [{"$ref": f"#/$defs/driver.{name}"} for name in drivers]},
    }
    definitions |= {f"driver.{name}": entry for name, entry in drivers.items()}
    return {"$schema": _DIALECT, "title": "Sensorium rig file", **found, "$defs": definitions}


def _entry(name: str, definitions: dict[str, Any]) -> dict[str, Any] | None:
    """Return a device's entry for a driver; None where something that it needs is not installed."""
    try:
        driver = load_driver(name)
    except ConfigError:
        return None
    entry = _described(driver.config_type)
    definitions |= entry.pop("$defs", {})
    about = (driver.__doc__ or "").strip().splitlines()
    entry["description"] = about[0] if about else ""
    codec = {"type": "string", "description": "How its streams are packed; docs/codecs.md."}
    entry["properties"] = {"driver": {"const": name}, "codec": codec, **entry.get("properties", {})}
    entry["required"] = ["driver", *entry.get("required", ())]
    return entry


def _described(model: type[BaseModel]) -> dict[str, Any]:
    """Return a model's schema; descriptions come from the docstrings, units from the keys' endings."""
    found = model.model_json_schema(ref_template="#/$defs/{model}")
    models = {each.__name__: each for each in _all_models(model)}
    for name, schema in (("", found), *found.get("$defs", {}).items()):
        owner = models.get(name, model) if name else model
        texts = attribute_texts(owner)
        schema["description"] = (owner.__doc__ or "").strip().splitlines()[0] if owner.__doc__ else ""
        for key, entry in schema.get("properties", {}).items():
            entry.pop("title", None)
            _describe(key, entry, texts)
        schema.pop("title", None)
    return found


def _describe(key: str, entry: dict[str, Any], texts: Mapping[str, str]) -> None:
    unit = _UNITS.get(key.rpartition("_")[2]) if "_" in key else None
    if unit is not None:
        entry["unit"] = unit
    text = texts.get(key, "")
    words = " ".join(filter(None, (text, f"Unit: {unit}." if unit is not None else "")))
    if words:
        entry["description"] = words


def _all_models(model: type[BaseModel]) -> list[type[BaseModel]]:
    found: list[type[BaseModel]] = [model]
    waiting = [model]
    while waiting:
        for field in waiting.pop().model_fields.values():
            for each in _models_in(field.annotation):
                if each not in found:
                    found.append(each)
                    waiting.append(each)
    return found


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for each in getattr(annotation, "__args__", ()) for found in _models_in(each)]


def attribute_texts(model: type) -> dict[str, str]:
    """Return what the docstrings of a class and its bases say of each attribute, under ``Attributes:``."""
    found: dict[str, str] = {}
    for owner in model.__mro__:
        for key, text in _section(owner.__doc__ or "").items():
            found.setdefault(key, text)
    return found


def _section(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    keys: list[str] = []
    _, _, section = text.partition("Attributes:\n")
    for line in section.splitlines():
        begun = _ATTRIBUTE.match(line)
        if begun is not None:
            keys = [key.strip() for key in begun[1].split(",")]
            found |= dict.fromkeys(keys, begun[2])
        elif line.strip() and keys and line.startswith(" " * 12):
            found |= {key: f"{found[key]} {line.strip()}" for key in keys}
        elif line.strip():
            break
    return {key: value.replace("``", "") for key, value in found.items()}
