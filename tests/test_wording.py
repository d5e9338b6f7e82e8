"""What is said of a wrong value: never in the words of the library that found it."""

import re
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError

from sensorium.wording import in_words, nearest, number_in, plain_name, said, shown


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    flush_s: float = 1.0
    other: int = 1


class Values(BaseModel):
    """One key of each type that files hold."""

    model_config = ConfigDict(allow_inf_nan=False)

    rate_hz: PositiveFloat = 1.0
    count: int = Field(default=1, ge=1, le=9)
    on: bool = True
    name: str = ""
    word: str = Field(default="abcd", pattern="^[a-z]{4}$")
    size: tuple[int, int] = (1, 1)
    names: tuple[str, ...] = ()
    kind: Literal["one", "two"] = "one"
    inner: Inner = Inner()
    path: Path = Path()
    table: dict[str, int] = {}


def fault(**values: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        Values.model_validate(values)
    (key,) = values
    return in_words(caught.value.errors()[0], key, list(Inner.model_fields) if key == "inner" else ())


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"rate_hz": "30 Hz"}, ["a number in Hz", "'30 Hz'", "write 30"]),
        ({"rate_hz": "1e3Hz"}, ["write 1000"]),
        ({"rate_hz": "2 kg"}, ["a number in Hz", "'2 kg'"]),
        ({"rate_hz": None}, ["is empty", "remove rate_hz"]),
        ({"rate_hz": [30]}, ["found [30]", "write 30"]),
        ({"rate_hz": float("nan")}, ["finite"]),
        ({"rate_hz": 0}, ["greater than 0", "found 0"]),
        ({"count": 2.5}, ["a whole number", "found 2.5", "write 2"]),
        ({"count": 12}, ["at most 9"]),
        ({"count": "three"}, ["a whole number", "'three'"]),
        ({"on": "ja"}, ["true or false", "write true"]),
        ({"on": 7}, ["true or false", "found 7"]),
        ({"name": 5}, ["a text", 'write "5"']),
        ({"name": ["a"]}, ["one text"]),
        ({"word": "ABCD"}, ["write abcd"]),
        ({"word": "abc"}, ["4 characters", "'abc'"]),
        ({"size": "640 X 480"}, ["write [640, 480]"]),
        ({"size": 640}, ["write [640, ...]"]),
        ({"names": "a, b"}, ["write [a, b]"]),
        ({"names": {"a": 1}}, ["a group of keys", "write [a]"]),
        ({"kind": "Two"}, ["'one' or 'two'", "did you mean 'two'?"]),
        ({"kind": True}, ["found true"]),
        ({"inner": 3}, ["flush_s, other", "found 3", "inner: {flush_s: ...}"]),
        ({"inner": True}, ["write inner: {}"]),
        ({"path": 3}, ["a path", "found 3"]),
        ({"table": [1]}, ["a group of keys", "found [1]"]),
    ],
)
def test_a_wrong_value_is_answered_with_what_to_write(values: dict[str, Any], parts: list[str]) -> None:
    text = fault(**values)
    for part in parts:
        assert part in text
    assert re.search(r"[Ii]nput should|valid (number|integer|dict)|tuple|unable to parse", text) is None, text


@pytest.mark.parametrize(
    ("text", "key", "number"),
    [
        ("30", "rate_hz", 30.0),
        ("29,97 fps", "rate_hz", 29.97),
        ("5 min", "max_s", 300.0),
        ("20 us", "tolerance_ms", 0.02),
        ("2 GiB", "memory_mb", 2147.483648),
        ("5 cm", "square_m", 0.05),
        ("fast", "rate_hz", None),
        ("3 V", "rate_hz", None),
    ],
)
def test_a_number_with_a_unit_is_turned_into_the_unit_of_its_key(
    text: str, key: str, number: float | None
) -> None:
    found = number_in(text, key)
    assert found == (None if number is None else pytest.approx(number))


def test_names_are_made_plain_and_the_nearest_known_is_found() -> None:
    assert [plain_name(text) for text in ("Cam-Left", "wristCamera", " 2. IMU ", "Ö")] == [
        "cam_left",
        "wrist_camera",
        "2_imu",
        "",
    ]
    assert nearest("Rate", ["rate_hz", "size"]) == "did you mean 'rate_hz'?"
    assert nearest("zzz", ["b", "a"]) == "known: a, b"
    assert nearest("zzz", [f"k{n:02d}" for n in range(20)], shows=2) == "known: k00, k01 and 18 more"


def test_long_values_are_cut_and_errors_are_one_line() -> None:
    assert len(shown("x" * 500)) <= 60
    with pytest.raises(ValidationError) as caught:
        Values.model_validate({"inner": {"flush_s": "soon"}})
    assert said(caught.value) == "inner.flush_s: must be a number in seconds, found 'soon'"
    assert said(KeyError("a")) == "'a' is missing"
    assert said(ValueError("two\nlines")) == "two lines"
