"""What the models of a rig file found wrong, as sentences at places of the file."""

import types
from collections.abc import Sequence
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from sensorium.agent.session.yaml_positions import Location, PositionedYaml, Problem, dotted, value_at
from sensorium.wording import in_words, nearest


def explained(
    err: ValidationError,
    model: type[BaseModel],
    prefix: Location,
    text: PositionedYaml,
    others: Sequence[str] = (),
) -> list[Problem]:
    """Return one problem per place: of the ways in which a value could be meant, the first counts.

    Args:
        prefix: Where the model's keys stand in the file.
        others: Keys that stand among the model's but are not its own.
    """
    found: list[Problem] = []
    seen: set[Location] = set()
    for fault in err.errors(include_url=False):
        loc = tuple(fault["loc"])
        where = _place((*prefix, *loc), fault["type"], text)
        if where in seen:
            continue
        seen.add(where)
        key = str(where[-1]) if where else ""
        if fault["type"] == "extra_forbidden":
            known = [*_model_at(model, loc[:-1]).model_fields, *(others if len(loc) == 1 else ())]
            found.append((where, f"{dotted(where)}: unknown key {key!r}; {nearest(key, known)}"))
        elif fault["type"] == "missing":
            found.append((where[:-1], _missing(where, text)))
        else:
            fields = _keys_at(model, loc, others)
            words = in_words({**fault, "input": value_at(text.data, where)}, key, fields)
            found.append((where, f"{dotted(where)}: {words}" if where else words))
    return found


def _missing(where: Location, text: PositionedYaml) -> str:
    if isinstance(where[-1], int):
        holds = value_at(text.data, where[:-1])
        more = ", ".join([*map(str, holds), "..."])
        return f"{dotted(where[:-1])} holds {len(holds)} value, more are asked for; write [{more}]"
    return f"{dotted(where)} is missing; add {where[-1]}: ..."


def _place(loc: Location, kind: str, text: PositionedYaml) -> Location:
    """Return the place in the file; the library adds which way of reading a value it had tried."""
    known = loc if text.holds(loc) or kind == "missing" else loc[:-1]
    while known and not text.holds(known) and kind != "missing":
        known = known[:-1]
    return known


def _keys_at(model: type[BaseModel], loc: Location, others: Sequence[str]) -> list[str]:
    """Return what a group of keys at a place may hold, as far as the model says."""
    nested = _model_at(model, loc)
    if nested is not model or not loc:
        return [*(() if loc else others), *nested.model_fields]
    return ["driver"] if loc[0] == "devices" and len(loc) == 2 else []


def _model_at(model: type[BaseModel], loc: Location) -> type[BaseModel]:
    for part in loc:
        if isinstance(part, str) and part in model.model_fields:
            nested = _nested(model.model_fields[part].annotation)
            if nested is not None:
                model = nested
    return model


def _nested(annotation: Any) -> type[BaseModel] | None:
    """Return the model that a field holds: itself, or nothing, or one in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, tuple, list):
        return next((found for each in get_args(annotation) if (found := _nested(each)) is not None), None)
    return None
