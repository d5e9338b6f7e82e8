"""Captures of the UDP traffic of Ouster sensors, fed to the decoder of the real driver.

Arrival is the capture's own stamp (UTC). A sensor's metadata lies beside the capture under the same name with
``.json``, as the maker's tools write it. Packets are told apart by who sent them, their size and their content,
not by their port, because captures are often rewritten to other ports.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from sensorium.drivers.devices.ouster.assembler import OusterAssembler
from sensorium.drivers.devices.ouster.packets import IMU_PACKET_BYTES
from sensorium.drivers.frame import DeviceClock, Frame, Loss, StreamInfo
from sensorium.drivers.payloads.ouster_metadata import OusterMetadata
from sensorium.errors import SourceError
from sensorium.sync.sources.capture_sensors import (
    CaptureSensor,
    Flow,
    Repeats,
    TrafficScan,
    metadata_files,
)
from sensorium.sync.sources.ip_packets import CaptureCounts, Datagram, address_text
from sensorium.sync.sources.pcap import read_datagrams
from sensorium.sync.sources.source import RECORDING_HOST, Problem, Source
from sensorium.sync.sources.stamp_units import WrongUnit, rate_unit
from sensorium.timebase import SECOND_NS

STREAM = "lidar"
_MICROSECONDS = 1_000_000
_LEAST_FRACTIONS = 100
_NEW_IMU_BYTES = 452


class OusterCaptureSource(Source):
    """One capture file: the lidar of each sensor, its IMU where the capture holds it, and a thinned view.

    Attributes:
        sensors: The sensors, the one whose metadata has the capture's own name first.

    Raises:
        SourceError: If the file is no capture, its metadata is absent or wrong, or it holds no lidar packet.
    """

    kind = "Ouster capture"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._files, self._no_files = metadata_files(path)
        except OSError as err:
            raise SourceError(f"{path}: cannot be read: {err.strerror}") from err
        self._tick_ns: int | None = None
        self._counts, self._scan = self._scanned()
        self._tick_ns = _other_tick_ns(self._counts, self._scan)
        if self._tick_ns is not None:
            self._counts, self._scan = self._scanned()
        if not self._scan.flows and self._counts.is_truncated:
            raise SourceError(f"{path}: the capture is cut before its first whole UDP datagram")
        self.start_ns, self.end_ns = self._scan.start_ns, self._scan.end_ns
        self.sensors = self._find_sensors()
        self._units = {sensor.stream: self._unit_of(sensor) for sensor in self.sensors}
        self.streams = tuple(info for sensor in self.sensors for info in self._declare(sensor))
        self.problems = tuple(self._find_problems())

    @property
    def metadata(self) -> OusterMetadata:
        """That of the first sensor."""
        return self.sensors[0].metadata

    @property
    def metadata_path(self) -> Path:
        return self.sensors[0].file.path

    @property
    def is_playable_live(self) -> bool:
        """Whether the driver of one sensor, which reads the stamps as they are, can take the packets."""
        return len(self.sensors) == 1 and not any(self._units.values())

    def frames(self) -> Iterator[Frame | Loss]:
        assemblers = {sensor.stream: self._assembler(sensor) for sensor in self.sensors}
        feeds = {}
        for sensor in self.sensors:
            feeds.update(dict.fromkeys(sensor.lidar, assemblers[sensor.stream].feed_lidar))
            feeds.update(dict.fromkeys(sensor.imu, assemblers[sensor.stream].feed_imu))
        names = {info.name for info in self.streams}
        for datagram in self.datagrams():
            items = feeds[_flow_of(datagram)](datagram.payload, datagram.arrival_ns)
            yield from (item for item in items if item.stream in names)
        for assembler in assemblers.values():
            yield from (item for item in assembler.flush() if item.stream in names)

    def datagrams(self) -> Iterator[Datagram]:
        """Yield the sensors' own datagrams, for a replay through real sockets."""
        flows = {flow for sensor in self.sensors for flow in (*sensor.lidar, *sensor.imu)}
        repeats = Repeats()
        for datagram in read_datagrams(self.path, CaptureCounts(), self._tick_ns):
            flow = _flow_of(datagram)
            if flow in flows and not repeats.has(flow, datagram.payload):
                yield datagram

    def _scanned(self) -> tuple[CaptureCounts, TrafficScan]:
        counts, scan = CaptureCounts(), TrafficScan(self._files)
        for datagram in read_datagrams(self.path, counts, self._tick_ns):
            scan.take(datagram)
        return counts, scan

    def _assembler(self, sensor: CaptureSensor) -> OusterAssembler:
        details = {"address": " ".join(dict.fromkeys(address_text(flow.source) for flow in sensor.lidar))}
        return OusterAssembler(sensor.stream, sensor.metadata, RECORDING_HOST, details=details)

    def _declare(self, sensor: CaptureSensor) -> Iterator[StreamInfo]:
        unit = self._units[sensor.stream]
        for info in self._assembler(sensor).streams():
            if info.name == f"{sensor.stream}_imu" and not sensor.imu:
                continue
            if unit is not None and unit.is_steady:
                clock = DeviceClock(info.clock.kind, unit.num, unit.den)
                info = replace(info, clock=clock)
            yield info

    def _unit_of(self, sensor: CaptureSensor) -> WrongUnit | None:
        facts = self._scan.flows[sensor.lidar[0]]
        return rate_unit(facts.device_ns, facts.arrival_ns)

    def _find_sensors(self) -> list[CaptureSensor]:
        found = self._scan.describe()
        if not self._files:
            beside = self.path.with_suffix(".json").name
            there = f"; beside it lie {', '.join(self._no_files)}" if self._no_files else self._json_beside()
            raise SourceError(
                f"{self.path}: holds {found}; only Ouster captures can be decoded, and they need the sensor's "
                f"metadata in {beside} beside them{there}"
            )
        sensors = self._scan.sensors()
        if sensors:
            return sensors
        names = " or ".join(file.path.name for file in self._files)
        if strangers := self._scan.strangers():
            known = ", ".join(file.metadata.serial for file in self._files)
            raise SourceError(
                f"{self.path}: its packets are those of sensor {', '.join(strangers)}, and {names} describes {known}; "
                f"give the metadata of the sensor that was captured"
            )
        sizes = " or ".join(f"{file.metadata.packet_bytes}" for file in self._files)
        raise SourceError(
            f"{self.path}: no lidar packet of {sizes} bytes, as its metadata says; it holds {found}"
            + "".join(f"; {text}" for _, _, text in self._left_out())
        )

    def _left_out(self) -> Iterator[tuple[str, int, str]]:
        """Yield (kind, count, sentence) of packets that never became datagrams."""
        counts = self._counts
        if counts.cut:
            text = f"{counts.cut} packets were cut when they were captured (snap length) and are left out: "
            yield "cut_packet", counts.cut, text + "capture whole ones (`tcpdump -s 0`)"
        if counts.untimed:
            text = (
                f"{counts.untimed} packets bear no time (simple packet blocks of pcapng) and are left out: "
            )
            yield "cut_packet", counts.untimed, text + "capture with times (`tcpdump -w`)"

    def _json_beside(self) -> str:
        names = sorted(entry.name for entry in self.path.parent.glob("*.json"))
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        return f"; found there under other names: {shown}" if names else ""

    def _find_problems(self) -> Iterator[Problem]:
        counts = self._counts
        if counts.is_truncated:
            text = f"the capture ends inside a packet after {counts.packets} whole ones"
            yield Problem("truncated", "", 1, text)
        for kind, count, text in self._left_out():
            yield Problem(kind, "", count, text)
        if counts.incomplete:
            text = f"{counts.incomplete} datagrams lack fragments and are left out"
            yield Problem("incomplete_fragments", "", counts.incomplete, text)
        if self._tick_ns is not None:
            yield Problem("wrong_unit", "", counts.packets, _tick_sentence(self._tick_ns))
        if self._scan.backwards:
            yield Problem("bad_stamp", "", self._scan.backwards, _backwards_sentence(self._scan))
        for sensor in self.sensors:
            yield from self._sensor_problems(sensor)
        yield from self._other_traffic()

    def _sensor_problems(self, sensor: CaptureSensor) -> Iterator[Problem]:
        facts = [self._scan.flows[flow] for flow in sensor.lidar]
        repeats = sum(self._scan.flows[flow].repeats for flow in (*sensor.lidar, *sensor.imu))
        if repeats:
            text = (
                f"{repeats} packets of {sensor.stream} and its IMU stand in the capture twice, as where two "
                f"interfaces of one path were captured; each is played once"
            )
            yield Problem("repeated_packet", sensor.stream, repeats, text)
        unreadable = sum(one.count - one.lidar for one in facts)
        if unreadable:
            text = f"{unreadable} packets of {sensor.stream} do not fit its metadata and are left out"
            yield Problem("bad_packet", sensor.stream, unreadable, text)
        if sensor.is_guessed and len(self.sensors) > 1:
            address = address_text(sensor.lidar[0].source)
            text = (
                f"{sensor.stream} (sent from {address}) is read with {sensor.file.path.name}; its packets state no "
                f"serial number, so only their size says that this is its metadata: beam angles may be another's"
            )
            yield Problem("guessed_metadata", sensor.stream, 1, text)
        unit = self._units[sensor.stream]
        if unit is not None:
            text = f"the stamps of {sensor.stream} advance {unit.words}"
            text += "; they are read as such" if unit.is_steady else "; they are no clock"
            yield Problem("wrong_unit", sensor.stream, sum(one.count for one in facts), text)

    def _other_traffic(self) -> Iterator[Problem]:
        own = {flow for sensor in self.sensors for flow in (*sensor.lidar, *sensor.imu)}
        others = [flow for flow in self._scan.flows if flow not in own]
        count = self._scan.beyond + sum(self._scan.flows[flow].count for flow in others)
        if not count:
            return
        text = f"{count} UDP datagrams are not of this sensor: {self._scan.describe(others)}"
        if strangers := self._scan.strangers():
            text += f"; lidar packets of sensor {', '.join(strangers)}, whose metadata is not here"
        unread = (sensor.metadata for sensor in self.sensors if not sensor.metadata.imu_packet_bytes)
        profiles = {metadata.imu_profile for metadata in unread}
        if profiles and any(flow.bytes in (IMU_PACKET_BYTES, _NEW_IMU_BYTES) for flow in others):
            text += (
                f"; IMU packets of profile {', '.join(sorted(profiles))} cannot be decoded with this metadata"
            )
        yield Problem("other_traffic", "", count, text)


def _flow_of(datagram: Datagram) -> Flow:
    return Flow(datagram.source, datagram.port, len(datagram.payload))


def _other_tick_ns(counts: CaptureCounts, scan: TrafficScan) -> int | None:
    """Return what fractions of a second count where that contradicts the file's header, else None.

    A file whose header says microseconds but whose fractions go beyond a million was written in nanoseconds; one
    whose header says nanoseconds but whose fractions never reach a thousandth of a second, in microseconds.
    """
    if counts.tick_ns == 1000 and counts.largest_fraction >= _MICROSECONDS:
        return 1
    has_enough = counts.packets >= _LEAST_FRACTIONS and scan.end_ns - scan.start_ns > 2 * SECOND_NS
    if counts.tick_ns == 1 and has_enough and 0 < counts.largest_fraction < _MICROSECONDS:
        return 1000
    return None


def _backwards_sentence(scan: TrafficScan) -> str:
    return (
        f"{scan.backwards} packets are stamped up to {scan.most_backwards_ns / SECOND_NS:.3g} s before one that stands "
        f"ahead of them, as after a step of the capturing clock, or where files were joined; they are played in the "
        f"order of the file, and those of a revolution that is over are lost: `reordercap` sorts joined files"
    )


def _tick_sentence(tick_ns: int) -> str:
    said, meant = ("microseconds", "nanoseconds") if tick_ns == 1 else ("nanoseconds", "microseconds")
    return (
        f"the capture's header says that its stamps count {said}, but they count {meant} (factor 1000); "
        f"they are read as such"
    )
