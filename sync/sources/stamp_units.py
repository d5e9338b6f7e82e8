"""Stamps in a wrong unit, or of no clock at all: told by how they advance, or by where they lie."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sensorium.timebase import SECOND_NS

_LEAST_PAIRS = 8
_LEAST_SPAN_NS = SECOND_NS // 20
_LIKENESS = 0.1
"""How near to a power of ten the ratio must lie: far above any clock's skew, far below the next power."""
_MAX_POWER = 9

_FASTEST_TOPIC_NS = 100_000

_YEAR_NS = 31_556_952 * SECOND_NS
EARLIEST_UTC_NS, LATEST_UTC_NS = 25 * _YEAR_NS, 130 * _YEAR_NS
"""1995 to 2100: no recording that is stamped by a calendar clock lies outside."""

_NAMES = {1_000: "microseconds", 1_000_000: "milliseconds", SECOND_NS: "seconds", 100: "ticks of 100 ns"}


@dataclass(frozen=True, slots=True)
class WrongUnit:
    """Stamps that must be multiplied by ``num / den`` to be nanoseconds.

    Attributes:
        is_steady: The whole span says the same as its pieces; else only a part of each stamp is in a wrong unit
            (as a field for nanoseconds that holds microseconds), and no factor puts the stamps right.
    """

    num: int
    den: int
    is_steady: bool

    @property
    def name(self) -> str:
        """The unit's name, where it has one."""
        return _NAMES.get(self.num, "")

    @property
    def words(self) -> str:
        """Say it with the factor: ``1000 times too slow: they look like microseconds``."""
        if self.den > 1:
            return f"{self.den} times too fast for nanoseconds"
        unit = self.name
        return f"{self.num} times too slow for nanoseconds" + (f": they look like {unit}" if unit else "")


def rate_unit(device_ns: Sequence[int], arrival_ns: Sequence[int]) -> WrongUnit | None:
    """Return the unit that device stamps advance in, where it is a power of ten away from the arrivals' pace.

    Args:
        device_ns, arrival_ns: Of samples in the order of arrival, one each.
    """
    spans_ns = arrival_ns[-1] - arrival_ns[0], device_ns[-1] - device_ns[0]
    if len(device_ns) < _LEAST_PAIRS or spans_ns[0] <= 0 or max(spans_ns) < _LEAST_SPAN_NS:
        return None  # arrivals in a wrong unit span little themselves
    step = max(1, len(device_ns) // 64)
    device = np.asarray(device_ns[::step], np.float64)
    arrival = np.asarray(arrival_ns[::step], np.float64)
    gaps_ns = np.diff(arrival)
    moved = np.diff(device)[gaps_ns > 0] / gaps_ns[gaps_ns > 0]
    if len(moved) < _LEAST_PAIRS // 2:
        return None
    power = _power_of_ten(float(np.median(moved)))
    if not power:
        return None
    whole = _power_of_ten((device_ns[-1] - device_ns[0]) / (arrival_ns[-1] - arrival_ns[0]))
    return WrongUnit(10 ** max(0, -power), 10 ** max(0, power), whole == power)


def stand_still(device_ns: Sequence[int], arrival_ns: Sequence[int]) -> bool:
    """Return whether device stamps stay where they are or run backwards while messages arrive: they are no clock.

    Args:
        device_ns, arrival_ns: One each of the same samples, in any order.
    """
    if len(device_ns) < _LEAST_PAIRS:
        return False
    arrival = np.asarray(arrival_ns, np.int64)
    order = np.argsort(arrival, kind="stable")
    if arrival[order[-1]] - arrival[order[0]] < _LEAST_SPAN_NS:
        return False
    device = np.asarray(device_ns, np.int64)[order]
    return bool(device[-1] <= device[0] and np.median(device[1:] - device[:-1]) <= 0)


def calendar_unit(stamp_ns: int) -> WrongUnit | None:
    """Return the unit in which a stamp of a calendar clock lies between 1995 and 2100, if not nanoseconds."""
    if not 0 < stamp_ns < EARLIEST_UTC_NS:
        return None
    for factor in (1_000, 1_000_000, SECOND_NS):
        if EARLIEST_UTC_NS <= stamp_ns * factor <= LATEST_UTC_NS:
            return WrongUnit(factor, 1, True)
    return None


def arrival_unit(arrival_ns: Sequence[int]) -> WrongUnit | None:
    """Return the unit that arrivals are written in, where they lie in 1970 and come faster than any topic's.

    Args:
        arrival_ns: Of one topic, in any order.
    """
    if len(arrival_ns) < _LEAST_PAIRS:
        return None
    span_ns = max(arrival_ns) - min(arrival_ns)
    is_fast = 0 < span_ns < (len(arrival_ns) - 1) * _FASTEST_TOPIC_NS
    return calendar_unit(max(arrival_ns)) if is_fast else None


def _power_of_ten(ratio: float) -> int:
    """Return the power of ten that a ratio is near to; 0 where it is near to none, or to one."""
    if not 10.0 ** -(_MAX_POWER + 1) < ratio < 10.0 ** (_MAX_POWER + 1):
        return 0
    power = round(math.log10(ratio))
    return power if abs(ratio / 10.0**power - 1) < _LIKENESS and abs(power) <= _MAX_POWER else 0
