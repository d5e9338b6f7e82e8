"""Says in words what is wrong with a value of a file that people write, and what to write instead.

The library that validates such files speaks to programmers; what users read comes from here. Nothing is imported for
it, so that a mistyped key costs nothing.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

_TIMES = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "sec": 1.0,
    "seconds": 1.0,
    "min": 60.0,
    "h": 3600.0,
}
_BYTES = {"b": 1.0, "bytes": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 2.0**10, "mib": 2.0**20}
_BYTES |= {"gib": 2.0**30}
_LENGTHS = {"mm": 1e-3, "cm": 1e-2, "m": 1.0, "km": 1e3}
_RATES = {"hz": 1.0, "fps": 1.0, "khz": 1e3, "mhz": 1e6}
_SHARES = {"%": 0.01, "percent": 0.01}
_UNITS: dict[str, tuple[str, Mapping[str, float], float]] = {
    "hz": ("in Hz", _RATES, 1.0),
    "s": ("in seconds", _TIMES, 1.0),
    "ms": ("in milliseconds", _TIMES, 1e-3),
    "us": ("in microseconds", _TIMES, 1e-6),
    "ns": ("in nanoseconds", _TIMES, 1e-9),
    "m": ("in metres", _LENGTHS, 1.0),
    "mb": ("in MB", _BYTES, 1e6),
    "gb": ("in GB", _BYTES, 1e9),
    "bytes": ("in bytes", _BYTES, 1.0),
    "share": ("between 0 and 1", _SHARES, 1.0),
    "quality": ("", _SHARES, 0.01),
}
_NUMBER = re.compile(r"\s*([-+]?\d+(?:[.,]\d+)?(?:e[-+]?\d+)?)\s*([a-zµ%]*)\s*", re.IGNORECASE)
_PAIR = re.compile(r"\s*[\[(]?\s*(\d+)\s*[x×*,;/ ]\s*(\d+)\s*[\])]?\s*", re.IGNORECASE)
_YES, _NO = (
    frozenset({"y", "yes", "on", "true", "1", "ja"}),
    frozenset({"n", "no", "off", "false", "none", "never", "nein"}),
)
_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")
_LONGEST = 60


def in_words(fault: Mapping[str, Any], key: str, fields: Sequence[str] = ()) -> str:
    """Return what is wrong with the value of ``key``, what was found, and what to write.

    Args:
        fault: One entry of a ``ValidationError``'s ``errors()``.
        fields: The keys that a group of keys may hold, where one is asked for.
    """
    kind, value, limits = str(fault["type"]), fault.get("input"), fault.get("ctx") or {}
    if kind.startswith("missing"):
        return "is required and missing"
    if kind in _UNKNOWN_KEY:
        return "unknown key"
    if value is None and kind != "value_error":
        return f"is empty; write a value, or remove {key}"
    if kind in ("value_error", "assertion_error"):
        return str(fault["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if kind in ("literal_error", "enum"):
        return _choice(str(limits.get("expected", "")), value)
    if kind == "string_pattern_mismatch":
        return _pattern(str(limits.get("pattern", "")), str(value))
    for ending, say in _BY_ENDING.items():
        if kind.startswith(ending):
            return say(value, key, limits, fields)
    text = str(fault["msg"]).replace("Input should be", "must be")
    return f"{text[:1].lower()}{text[1:]}, found {shown(value)}"


def said(err: Exception) -> str:
    """Return on one line what an error says, the first fault of several in words."""
    errors = getattr(err, "errors", None)
    if callable(errors):
        # A misspelt key is both unknown and missing; the unknown spelling is what helps.
        fault = min(errors(), key=lambda fault: fault["type"] not in _UNKNOWN_KEY)
        key = ".".join(map(str, fault["loc"]))
        return f"{key}: {in_words(fault, key)}" if key else in_words(fault, "it")
    return f"{err} is missing" if isinstance(err, KeyError) else " ".join(str(err).split())


def shown(value: Any) -> str:
    """Return a value as the file has it, cut where it is long."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]} ..."


def nearest(name: str, known: Sequence[str], *, shows: int = 12) -> str:
    """Return a hint for a name that is none of those known: the nearest, or all."""
    by_lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    if near:
        return f"did you mean {by_lower[near[0]]!r}?"
    more = f" and {len(known) - shows} more" if len(known) > shows else ""
    return f"known: {', '.join(sorted(known)[:shows])}{more}"


def plain_name(text: str, longest: int = 48) -> str:
    """Return a name of small letters, digits and ``_`` that is like ``text``: ``cam_left`` for ``Cam-Left``."""
    split = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", text)
    return re.sub(r"[^a-z0-9]+", "_", split.lower()).strip("_")[:longest].strip("_")


def number_in(text: str, key: str) -> float | None:
    """Return the number that a text with a unit means for a key such as ``rate_hz``; None if it tells none."""
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    value = float(found[1].replace(",", "."))
    unit = found[2].lower()
    _, units, own = _UNITS.get(key.rpartition("_")[2], ("", {}, 1.0))
    if unit and units:
        return value * units[unit] / own if unit in units else None
    return value


def _number(value: Any, key: str, _: Mapping[str, Any], __: Sequence[str]) -> str:
    unit = _UNITS.get(key.rpartition("_")[2], ("", {}, 1.0))[0]
    what = " ".join(filter(None, ("must be a number", unit)))
    number = number_in(value, key) if isinstance(value, str) else None
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], int | float):
        number = float(value[0])
    fix = f"; write {number:.12g}" if number is not None else _bare(value, unit)
    return f"{what}, found {shown(value)}{fix}"


def _bare(value: Any, unit: str) -> str:
    """Return what to write for a number with words behind it that mean nothing here; "" where there is no number."""
    found = re.match(r"\s*([-+]?\d+(?:\.\d+)?)[^\d.,]", value) if isinstance(value, str) else None
    if found is None:
        return ""
    return (
        f"; write a number {unit} without its unit"
        if unit
        else f"; write the number alone, such as {found[1]}"
    )


def _whole(value: Any, key: str, limits: Mapping[str, Any], fields: Sequence[str]) -> str:
    if isinstance(value, float) and value == value and abs(value) < 1e15:
        return f"must be a whole number, found {shown(value)}; write {round(value)}"
    return _number(value, key, limits, fields).replace("a number", "a whole number")


def _truth(value: Any, *_: Any) -> str:
    word = str(value).strip().lower()
    fix = "; write true" if word in _YES else "; write false" if word in _NO else ""
    return f"must be true or false, found {shown(value)}{fix}"


def _text(value: Any, *_: Any) -> str:
    if isinstance(value, list | dict):
        return f"must be one text, found {shown(value)}"
    return f'must be a text, found {shown(value)}; write "{shown(value)}" with its quotes'


def _list(value: Any, *_: Any) -> str:
    if isinstance(value, str):
        pair = _PAIR.fullmatch(value)
        parts = [pair[1], pair[2]] if pair else [part.strip() for part in value.split(",")]
        return f"must be a list, found {shown(value)}; write [{', '.join(parts)}]"
    if isinstance(value, Mapping):
        return f"must be a list, found a group of keys; write [{', '.join(map(str, value))}]"
    return f"must be a list, found {shown(value)}; write [{shown(value)}, ...]"


def _group(value: Any, key: str, _: Mapping[str, Any], fields: Sequence[str]) -> str:
    more = ", ..." if len(fields) > 12 else ""
    inside = f" ({', '.join(fields[:12])}{more})" if len(fields) > 1 else ""
    example = f"{fields[0] if fields else 'NAME'}: {value if isinstance(value, str) and len(fields) == 1 else '...'}"
    shape = f"{{{'' if value is True else example}}}"
    return f"must be a group of keys{inside}, found {shown(value)}; write {f'{key}: ' if key else ''}{shape}"


def _above(value: Any, _: str, limits: Mapping[str, Any], __: Sequence[str]) -> str:
    words = {"gt": "greater than", "ge": "at least", "lt": "less than", "le": "at most"}
    rule = next(f"{words[name]} {limit:.12g}" for name, limit in limits.items() if name in words)
    return f"must be {rule}, found {shown(value)}"


def _length(value: Any, _: str, limits: Mapping[str, Any], __: Sequence[str]) -> str:
    least, most, found = (limits.get(name) for name in ("min_length", "max_length", "actual_length"))
    rule = f"at least {least}" if least is not None else f"at most {most}"
    count = f" values, found {found}" if found is not None else f" signs, found {shown(value)}"
    return f"must hold {rule}{count}"


def _path(value: Any, *_: Any) -> str:
    return f"must be a path, found {shown(value)}"


def _finite(value: Any, *_: Any) -> str:
    return f"must be a finite number, found {shown(value)}"


def _choice(expected: str, value: Any) -> str:
    known = re.findall(r"'([^']*)'", expected) or [expected]
    if isinstance(value, bool):  # YAML reads a bare on, off, yes or no as true or false
        return f"must be {expected}, found {shown(value)}"
    near = difflib.get_close_matches(
        str(value).strip().lower(), [each.lower() for each in known], n=1, cutoff=0.5
    )
    fix = f"; did you mean {next(each for each in known if each.lower() == near[0])!r}?" if near else ""
    return f"must be {expected}, found {shown(value)}{fix}"


def _pattern(pattern: str, value: str) -> str:
    for like in (
        plain_name(value),
        re.sub(r"[^A-Za-z0-9_.-]+", "-", value).strip("-")[:64],
        value.strip().upper(),
    ):
        if like and like != value and re.fullmatch(pattern, like):
            return f"has signs that it must not have: {shown(value)}; write {like}"
    count = re.search(r"\{(\d+)\}\$?$", pattern)
    rule = f"must have {count[1]} characters" if count else "does not have the form of such a value"
    return f"{rule}, found {shown(value)}"


_BY_ENDING = {
    "float_": _number,
    "int_from_float": _whole,
    "int_": _whole,
    "bool_": _truth,
    "string_type": _text,
    "tuple_type": _list,
    "list_type": _list,
    "set_type": _list,
    "dict_type": _group,
    "model_": _group,
    "dataclass_": _group,
    "mapping_type": _group,
    "greater_than": _above,
    "less_than": _above,
    "too_short": _length,
    "too_long": _length,
    "string_too": _length,
    "path_": _path,
    "finite_number": _finite,
}
