"""ATI Net F/T: RDT requests and records, the calibration page, and how records are counted.

Source: "Net F/T Installation and Operation Manual" (ATI 9620-05-Net FT): RDT, netftapi2.xml, status codes.
"""

import math
import re
import struct
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

import numpy as np

from sensorium.errors import DeviceError, WireError
from sensorium.timebase import SECOND_NS

RDT_PORT = 49152
REQUEST = struct.Struct(">HHI")
REQUEST_HEADER = 0x1234
COMMAND_STOP = 0
COMMAND_REALTIME = 2
COMMAND_BUFFERED = 3
RECORD_BYTES = 36
RECORD = np.dtype([("rdt_seq", ">u4"), ("ft_seq", ">u4"), ("status", ">u4"), ("counts", ">i4", (6,))])

STATUS_SUMMARY = 0x80000000
STATUS_WARNINGS = 0x00010000
"""A threshold monitor has latched: the reading is good. Every other bit but the summary is an error."""

INTERNAL_RATE_HZ = 7000
SEQUENCE_MODULUS = 1 << 32
_REORDER_NS = SECOND_NS
_SLACK_RECORDS = 10

NEWTON = {
    "N": 1.0,
    "kN": 1000.0,
    "lbf": 4.4482216152605,
    "klbf": 4448.2216152605,
    "kgf": 9.80665,
    "gf": 0.00980665,
    "ozf": 0.27801385095378125,
}
NEWTON_METRE = {
    "Nm": 1.0,
    "kNm": 1000.0,
    "Nmm": 0.001,
    "lbfin": 0.1129848290276167,
    "lbfft": 1.3558179483314004,
    "kgfcm": 0.0980665,
    "kgfm": 9.80665,
    "gfcm": 0.0000980665,
    "ozfin": 0.00706155181422604,
}
_SAME = {
    "lb": "lbf",
    "klb": "klbf",
    "kg": "kgf",
    "g": "gf",
    "oz": "ozf",
    "newton": "n",
    "meter": "m",
    "metre": "m",
}
_FORCE, _LENGTH = "(newton|kn|n|klbf?|lbf?|kgf?|gf?|ozf?)s?", "(meter|metre|mm|cm|m|in|ft)s?"
_UNIT = re.compile(f"{_FORCE}(?:{_LENGTH})?|{_LENGTH}{_FORCE}")


@dataclass(frozen=True, slots=True)
class Calibration:
    """What turns counts into N and Nm, and what else the sensor says of itself.

    Attributes:
        newton_per_count, newton_metre_per_count: Scales of the integer columns.
        rate_hz: RDT output rate that the sensor is set to; None when unknown.
        internal_rate_hz: Rate of the ft_seq counter.
    """

    newton_per_count: float
    newton_metre_per_count: float
    rate_hz: float | None = None
    internal_rate_hz: int = INTERNAL_RATE_HZ
    product: str = ""
    serial: str = ""


def parse_calibration(page: str | bytes) -> Calibration:
    """Read the answer to ``/netftapi2.xml``.

    Raises:
        DeviceError: If counts or units are missing or unknown; names them.
    """
    values = _fields(page)
    rate = values.get("comrdtrate", "")
    try:
        return Calibration(
            _scale(values, "force", "scfgfu", NEWTON) / _counts(values, "force", "cfgcpf"),
            _scale(values, "torque", "scfgtu", NEWTON_METRE) / _counts(values, "torque", "cfgcpt"),
            float(rate) if rate else None,
            int(values.get("runrate") or INTERNAL_RATE_HZ),
            values.get("prodname", ""),
            values.get("setserial", ""),
        )
    except ValueError as err:
        raise DeviceError(f"netftapi2.xml has a wrong number: {err}") from err


def _fields(page: str | bytes) -> dict[str, str]:
    try:
        root = ElementTree.fromstring(page)
    except ElementTree.ParseError as err:
        try:  # some firmware says UTF-8 and sends Latin-1
            root = ElementTree.fromstring(page.decode("latin-1") if isinstance(page, bytes) else page)
        except ElementTree.ParseError:
            raise DeviceError(f"netftapi2.xml is not XML: {err}") from err
    return {element.tag.rpartition("}")[2].lower(): (element.text or "").strip() for element in root.iter()}


def _scale(values: dict[str, str], what: str, key: str, known: dict[str, float]) -> float:
    unit = values.get(key, "")
    scale = {_plain(name): factor for name, factor in known.items()}.get(_plain(unit))
    if scale is None:
        found = (
            f"the unit of {what} ({key}) is {unit!r}"
            if unit
            else f"netftapi2.xml lacks {key}, the unit of {what}"
        )
        raise DeviceError(
            f"{found}; known: {', '.join(known)}. Set one of them on the sensor's page Configurations, or give "
            "counts_per_newton and counts_per_newton_metre"
        )
    return scale


def _counts(values: dict[str, str], what: str, key: str) -> float:
    if key not in values:
        raise DeviceError(
            f"netftapi2.xml lacks {key}, the counts per unit of {what}; give counts_per_newton and "
            "counts_per_newton_metre"
        )
    counts = float(values[key])
    if not (math.isfinite(counts) and counts > 0):
        raise ValueError(f"{key} is {values[key]!r}")
    return counts


def _plain(unit: str) -> str:
    """Return a unit in one spelling: ``in-lbs``, ``lbf·in`` and ``Lb-In`` are ``lbfin``."""
    letters = "".join(re.findall("[a-z]+", unit.lower()))
    parts = _UNIT.fullmatch(letters)
    if parts is None:
        return letters
    force, length = parts[1] or parts[4], parts[2] or parts[3] or ""
    return _SAME.get(force, force) + _SAME.get(length, length)


def request(command: int) -> bytes:
    """Return an RDT request; records are sent without end."""
    return REQUEST.pack(REQUEST_HEADER, command, 0)


@dataclass(frozen=True, slots=True)
class Record:
    """One reading: counts of fx, fy, fz, tx, ty, tz."""

    rdt_seq: int
    ft_seq: int
    status: int
    counts: tuple[int, ...]

    @property
    def is_warning(self) -> bool:
        return bool(self.status & STATUS_WARNINGS)

    @property
    def is_error(self) -> bool:
        return bool(self.status & ~(STATUS_SUMMARY | STATUS_WARNINGS))


def parse_records(payload: bytes) -> list[Record]:
    """Return the records of a datagram.

    Raises:
        WireError: If it is not a whole number of records, at least one.
    """
    if not payload or len(payload) % RECORD_BYTES:
        raise WireError(f"RDT datagram has {len(payload)} B, records have {RECORD_BYTES} B")
    rows = np.frombuffer(payload, RECORD).tolist()
    return [Record(rdt_seq, ft_seq, status, tuple(counts)) for rdt_seq, ft_seq, status, counts in rows]


class RecordCounter:
    """Counts what the sensor produced, from its two sequence numbers.

    Attributes:
        late: Records that came after younger ones, or twice.
        restarts: Times that ``rdt_seq`` began anew.
    """

    def __init__(self, rate_hz: float, internal_rate_hz: int) -> None:
        self.late = 0
        self.restarts = 0
        self._rate_hz = rate_hz
        self._internal_rate_hz = internal_rate_hz
        self._last: Record | None = None

    @property
    def has_begun(self) -> bool:
        return self._last is not None

    def missed_before(self, record: Record) -> int | None:
        """Return how many records the sensor made between the last one and this; None = an old one.

        A start request makes ``rdt_seq`` begin anew while ``ft_seq`` counts on: then the internal samples
        between the two say how many records there should have been.
        """
        last = self._last
        if last is None:
            self._last = record
            return 0
        behind = (last.ft_seq - record.ft_seq) % SEQUENCE_MODULUS
        if behind <= _REORDER_NS * self._internal_rate_hz // SECOND_NS:
            self.late += 1
            return None
        self._last = record
        step = (record.rdt_seq - last.rdt_seq) % SEQUENCE_MODULUS
        internal = (record.ft_seq - last.ft_seq) % SEQUENCE_MODULUS
        expected = internal * self._rate_hz / self._internal_rate_hz
        counter_ran_on = internal < SEQUENCE_MODULUS // 2
        if counter_ran_on and 0 < step <= 2 * expected + _SLACK_RECORDS:
            return step - 1
        self.restarts += 1
        return max(0, round(expected) - 1) if counter_ran_on else 0
