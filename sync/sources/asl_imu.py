"""What the six columns of an IMU's data.csv mean: by their heading, where it says so; else as EuRoC has them."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

_HEADING = re.compile(r"([^\[(]*)(?:[\[(]([^\])]*)[\])])?")
_GYRO = re.compile(r"w|w[xyz]|g[xyz]|omega|gyr\w*|ang\w*|rot\w*")
_ACC = re.compile(r"a|a[xyz]|acc\w*|lin\w*")
_STANDARD_GRAVITY = 9.80665


@dataclass(frozen=True, slots=True)
class ImuColumns:
    """How a row becomes x, y, z of the gyroscope in rad/s and of the accelerometer in m/s^2.

    Attributes:
        order: Which cell each of the six values is in.
        factors: What each is multiplied by.
        words: What is to be said about units that were converted; "" = nothing.
    """

    order: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    factors: tuple[float, ...] = (1.0,) * 6
    words: str = ""

    def values(self, numbers: Sequence[float]) -> list[float]:
        """Return the six values of a row of as many numbers."""
        return [numbers[at] * factor for at, factor in zip(self.order, self.factors, strict=True)]


def imu_columns(headings: Sequence[str]) -> ImuColumns:
    """Return what the headings of six columns say; EuRoC's order and units where they do not name all of them."""
    found: dict[tuple[bool, str], tuple[int, str]] = {}
    for at, heading in enumerate(headings):
        parsed = _HEADING.match(heading)
        words = re.findall(r"[a-z0-9]+", parsed[1].lower()) if parsed else []
        is_gyro = bool(words) and _GYRO.fullmatch(words[0]) is not None
        if not words or words[-1][-1] not in "xyz" or not (is_gyro or _ACC.fullmatch(words[0])):
            return ImuColumns()
        unit = (parsed[2] or "").strip().lower() if parsed else ""
        found[not is_gyro, words[-1][-1]] = at, unit
    if len(headings) != 6 or len(found) != 6:
        return ImuColumns()
    ordered = [found[key] for key in sorted(found)]
    factors = [_gyro_factor(unit) for _, unit in ordered[:3]] + [_acc_factor(unit) for _, unit in ordered[3:]]
    converted = sorted({unit for (_, unit), factor in zip(ordered, factors, strict=True) if factor != 1.0})
    words_said = f"values in {' and '.join(converted)} (as the heading says) are converted to rad/s and m/s^2"
    return ImuColumns(tuple(at for at, _ in ordered), tuple(factors), words_said if converted else "")


def _gyro_factor(unit: str) -> float:
    factor = math.pi / 180 if "deg" in unit or "°" in unit else 1.0
    return factor / 1000 if unit.startswith(("mdeg", "mrad")) else factor


def _acc_factor(unit: str) -> float:
    return {"g": _STANDARD_GRAVITY, "mg": _STANDARD_GRAVITY / 1000}.get(unit, 1.0)
