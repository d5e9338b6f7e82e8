"""Pulses that the Linux kernel stamps: a PPS source, or a trigger's output on a GPIO or serial line.

``/sys/class/pps/ppsN/assert`` reads ``seconds.nanoseconds#sequence``: the newest edge on CLOCK_REALTIME, taken in
the interrupt, and the kernel's count of edges (Documentation/driver-api/pps.rst). The file holds one edge only, so
it is looked at several times per period; edges that were overwritten in between show as a gap in the count.
Tested with written files of that form. Hardware seen: no.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import NonNegativeFloat, PositiveFloat

from sensorium.drivers.driver import Driver, DriverConfig, DriverContext, Seen
from sensorium.drivers.frame import (
    ClockKind,
    Column,
    DeviceClock,
    Encoding,
    Frame,
    Latency,
    Loss,
    Modality,
    Place,
    StreamInfo,
    stamps,
)
from sensorium.errors import DeviceError
from sensorium.timebase import SECOND_NS, read_bases

_SOURCES = Path("/sys/class/pps")
COUNT_MODULUS = 1 << 32
"""The kernel counts edges in a ``__u32`` and prints it with %d, so the upper half shows as negative."""
LOOKS_PER_PERIOD = 20
LONGEST_WAIT_NS = SECOND_NS // 50
_STAMP = re.compile(r"(\d{1,12})\.(\d{9})#(-?\d{1,10})\s*")
_SLACK_NS = 100_000
"""How far REALTIME and RAW may drift apart between two looks, and a bracket be wrong, without a step of the clock."""


@dataclass(frozen=True, slots=True)
class KernelEdge:
    """One edge as sysfs shows it."""

    realtime_ns: int
    count: int


class PpsConfig(DriverConfig):
    """Options of a kernel PPS source.

    Attributes:
        source: Its folder; ``ls /sys/class/pps/*/name`` tells which is which.
        edge: Which of the two edges is the pulse.
        rate_hz: Pulses per second. More than about 50 are better taken by a driver that does not poll.
        marks_utc_second: The pulses mark the seconds of UTC, so the system clock can be held against them. Not so
            for a camera trigger.
        bound_us: Bound on the lateness of the kernel's stamp: that of its interrupt.
    """

    source: Path = Path("/sys/class/pps/pps0")
    edge: Literal["assert", "clear"] = "assert"
    rate_hz: PositiveFloat = 1.0
    marks_utc_second: bool = True
    bound_us: NonNegativeFloat = 50.0


def pulse_stream(
    name: str,
    rate_hz: float,
    host_id: str,
    latency: Latency,
    *,
    details: Mapping[str, str],
    is_personal: bool | None = None,
    is_synthetic: bool = False,
) -> StreamInfo:
    """Return the declaration of a stream of pulses: ticks are edges on the host clock, numbers the box's count.

    The payload is what the kernel stamped: the edge on CLOCK_REALTIME, int64 nanoseconds.
    """
    return StreamInfo(
        name,
        Modality.OTHER,
        Encoding.COLUMNS,
        rate_hz,
        frame_id=name,
        clock=DeviceClock(ClockKind.HOST),
        latency=latency,
        columns=(Column("realtime", "ns", "<i8"),),
        host_id=host_id,
        is_personal=bool(is_personal),
        has_device_counter=True,
        is_synthetic=is_synthetic,
        max_payload_bytes=8,
        details=dict(details),
    )


def parse_edge(text: str) -> KernelEdge | None:
    """Return the edge in a sysfs file; None if it has none of that form."""
    found = _STAMP.fullmatch(text)
    if found is None:
        return None
    return KernelEdge(int(found[1]) * SECOND_NS + int(found[2]), int(found[3]) % COUNT_MODULUS)


def _source_name(source: Path) -> str:
    try:
        return (source / "name").read_text().strip()
    except OSError:
        return source.name


class PpsDriver(Driver[PpsConfig]):
    """One stream, named like the device, with one sample per pulse."""

    config_type: ClassVar[type[DriverConfig]] = PpsConfig

    def __init__(self, config: PpsConfig, context: DriverContext) -> None:
        super().__init__(config, context)
        self._seq = 0
        self._last = KernelEdge(0, 0)
        self._looked_ns = 0
        self._next_ns = 0
        self._wait_ns = min(round(SECOND_NS / config.rate_hz / LOOKS_PER_PERIOD), LONGEST_WAIT_NS)

    @classmethod
    def check(cls, config: Any) -> None:
        """Raise ``DeviceError`` if there is no such source."""
        path = config.source / config.edge
        if not path.is_file():
            raise DeviceError(
                f"PPS source {config.source} has no file {config.edge!r}; ls /sys/class/pps lists the sources "
                "(modprobe pps_ldisc or pps-gpio makes one)"
            )

    @classmethod
    def discover(cls) -> Sequence[Seen]:
        """Return the kernel's PPS sources."""
        return [
            Seen(_source_name(source), {"source": str(source)}) for source in sorted(_SOURCES.glob("pps*"))
        ]

    def open(self) -> Sequence[StreamInfo]:
        self.check(self.config)
        self._last = self._look()
        self._looked_ns = self.context.clock.now_ns()
        config = self.config
        details = {"source": str(config.source), "edge": config.edge}
        if config.marks_utc_second:
            details["marks"] = "utc_second"
        latency = Latency(min_uncertainty_ns=round(config.bound_us * 1e3))
        name = self.context.name
        return (
            pulse_stream(
                name,
                config.rate_hz,
                self.context.host_id,
                latency,
                details=details,
                is_personal=config.personal,
            ),
        )

    def read(self, timeout_s: float) -> Sequence[Frame | Loss]:
        clock = self.context.clock
        deadline_ns = clock.now_ns() + round(timeout_s * SECOND_NS)
        while True:
            clock.sleep_until(min(self._next_ns, deadline_ns))
            now_ns = clock.now_ns()
            if now_ns < self._next_ns:
                return ()
            self._next_ns = now_ns + self._wait_ns
            edge = self._look()
            if edge.count != self._last.count:
                return self._take(edge)
            self._looked_ns = now_ns
            if now_ns >= deadline_ns:
                return ()

    def _take(self, edge: KernelEdge) -> Sequence[Frame | Loss]:
        """Return the new edge on the host clock, and what came between it and the last one."""
        bases = read_bases()
        edge_ns = bases.raw_ns - (bases.realtime_ns - edge.realtime_ns)
        looked_ns, self._looked_ns = self._looked_ns, bases.raw_ns
        new = (edge.count - self._last.count) % COUNT_MODULUS
        self._last = edge
        possible = (bases.raw_ns - looked_ns) / SECOND_NS * self.config.rate_hz * 2 + 16
        if new > possible:
            raise DeviceError(
                f"PPS source {self.config.source}: the count went to {edge.count}, which is {new} edges on at "
                f"{self.config.rate_hz:g} Hz; was the source set up anew, or is rate_hz wrong?"
            )
        name = self.context.name
        found: list[Frame | Loss] = []
        if new > 1:
            found.append(Loss(name, new - 1, Place.KERNEL, "overwritten by the next edge before it was read"))
        self._seq += new
        if not looked_ns - _SLACK_NS <= edge_ns <= bases.raw_ns + _SLACK_NS:
            # The stamp is on REALTIME; only a step of that clock puts it outside of the two looks.
            return [*found, Loss(name, 1, Place.DRIVER, "the system clock was stepped at this edge")]
        payload = edge.realtime_ns.to_bytes(8, "little", signed=True)
        arrival_ns = max(bases.raw_ns, edge_ns)
        found.append(Frame(name, self._seq - 1, 1, stamps(edge_ns), stamps(arrival_ns), payload))
        return found

    def _look(self) -> KernelEdge:
        path = self.config.source / self.config.edge
        try:
            text = path.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as err:
            raise DeviceError(f"PPS source {path} cannot be read: {err}") from err
        if not text.strip():
            raise DeviceError(
                f"PPS source {path} is empty: it does not capture this edge; set edge to the other one"
            )
        edge = parse_edge(text)
        if edge is None:
            raise DeviceError(f"PPS source {path} reads {text[:60]!r}, expected seconds.nanoseconds#sequence")
        return edge

    def close(self) -> None:
        """Nothing is held open."""
