"""Which Ouster sensors a capture holds: datagrams by their flow, and the metadata that belongs to each sensor.

A size alone tells little: a request for the time has as many bytes as an IMU packet, and two sensors of one kind
send equal packets. So packets are grouped by who sent them, and a flow counts only if its content fits.
"""

import math
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from sensorium.drivers.devices.ouster.imu import is_block_profile, read_block
from sensorium.drivers.devices.ouster.packets import IMU_PACKET, IMU_PACKET_BYTES, read_header
from sensorium.drivers.payloads.ouster_metadata import OusterMetadata
from sensorium.errors import SensoriumError, SourceError, WireError
from sensorium.sync.sources.ip_packets import Datagram, address_text
from sensorium.timebase import SECOND_NS

_MAX_FLOWS = 1024
_MAX_PAIRS = 4096
_COMPARED = 4
_BACKWARDS_NS = SECOND_NS // 10
_MAX_METADATA_BYTES = 4 << 20
_MAX_METADATA_FILES = 64
_MAX_ACCELERATION_G = 64.0
_MAX_TURN_DEG_S = 8000.0  # four times the range of the IMUs built in


class Flow(NamedTuple):
    """Datagrams of one size from one address to one port."""

    source: bytes
    port: int
    bytes: int


@dataclass(slots=True)
class FlowFacts:
    """What a scan learnt about one flow."""

    count: int = 0
    lidar: int = 0
    imu: int = 0
    repeats: int = 0
    serials: Counter[int] = field(default_factory=Counter)
    device_ns: list[int] = field(default_factory=list)
    arrival_ns: list[int] = field(default_factory=list)

    @property
    def is_lidar(self) -> bool:
        return 2 * self.lidar > self.count

    @property
    def is_imu(self) -> bool:
        return 2 * self.imu > self.count

    @property
    def serial(self) -> str:
        known = [serial for serial, _ in self.serials.most_common(1)]
        return str(known[0]) if known else ""

    def note_stamp(self, device_ns: int, arrival_ns: int) -> None:
        if len(self.device_ns) < _MAX_PAIRS:
            self.device_ns.append(device_ns)
            self.arrival_ns.append(arrival_ns)


@dataclass(frozen=True, slots=True)
class MetadataFile:
    """Metadata that was found beside a capture."""

    path: Path
    metadata: OusterMetadata


@dataclass(slots=True)
class CaptureSensor:
    """One sensor of a capture.

    Attributes:
        stream: Name of its lidar's stream.
        file: Its metadata.
        is_guessed: Nothing but the size of the packets says that the metadata is this sensor's.
        lidar, imu: Its flows; ``imu`` is empty where the capture holds none.
    """

    stream: str
    file: MetadataFile
    is_guessed: bool
    lidar: list[Flow]
    imu: list[Flow] = field(default_factory=list)

    @property
    def metadata(self) -> OusterMetadata:
        return self.file.metadata


class Repeats:
    """Tells packets that a capture holds twice, as one on "any" or on a bridge does, from the sensor's own.

    No two packets of a sensor are equal: each bears its time.
    """

    def __init__(self) -> None:
        self._last: dict[Flow, deque[int]] = {}

    def has(self, flow: Flow, payload: bytes) -> bool:
        """Return whether a packet equals one of the few before it in its flow."""
        last = self._last.setdefault(flow, deque(maxlen=_COMPARED))
        mark = hash(payload)
        if mark in last:
            return True
        last.append(mark)
        return False


class TrafficScan:
    """Takes the datagrams of a capture one by one, and then tells the sensors.

    Attributes:
        flows: By flow; what goes beyond a thousand flows is counted in ``beyond`` only.
        backwards: Datagrams that are stamped well before one that stands ahead of them in the file.
        most_backwards_ns: By how much at most.
    """

    def __init__(self, files: Sequence[MetadataFile]) -> None:
        self._files = files
        self._layouts = {file.metadata.packet_bytes: file.metadata for file in reversed(files)}
        found = [file.metadata for file in files]
        self._blocks = {each.imu_packet_bytes: each for each in found if is_block_profile(each)}
        self.flows: dict[Flow, FlowFacts] = {}
        self.beyond = self.backwards = self.most_backwards_ns = 0
        self._repeats = Repeats()
        self.start_ns = self.end_ns = 0

    @property
    def total(self) -> int:
        return self.beyond + sum(facts.count for facts in self.flows.values())

    def take(self, datagram: Datagram) -> None:
        if not self.flows:
            self.start_ns = self.end_ns = datagram.arrival_ns
        self.start_ns = min(self.start_ns, datagram.arrival_ns)
        self.end_ns = max(self.end_ns, datagram.arrival_ns)
        if self.end_ns - datagram.arrival_ns > _BACKWARDS_NS:
            self.backwards += 1
            self.most_backwards_ns = max(self.most_backwards_ns, self.end_ns - datagram.arrival_ns)
        flow = Flow(datagram.source, datagram.port, len(datagram.payload))
        facts = self.flows.get(flow)
        if facts is None:
            if len(self.flows) >= _MAX_FLOWS:
                self.beyond += 1
                return
            facts = self.flows[flow] = FlowFacts()
        facts.count += 1
        facts.repeats += self._repeats.has(flow, datagram.payload)
        self._look_into(datagram, facts)

    def _look_into(self, datagram: Datagram, facts: FlowFacts) -> None:
        size = len(datagram.payload)
        if size == IMU_PACKET_BYTES:
            facts.imu += is_imu_packet(datagram.payload)
        elif size in self._blocks:
            facts.imu += read_block(datagram.payload, self._blocks[size]) is not None
        elif size in self._layouts:
            try:
                header = read_header(datagram.payload, self._layouts[size])
            except WireError:
                return
            facts.lidar += 1
            facts.note_stamp(header.device_ns, datagram.arrival_ns)
            if header.serial:
                facts.serials[header.serial] += 1

    def sensors(self) -> list[CaptureSensor]:
        """Return the sensors whose metadata was found, the one that the first file describes first."""
        groups = _group(self.flows)
        taken: list[tuple[int, CaptureSensor]] = []
        for flows in groups:
            found = self._file_of(flows, {index for index, _ in taken})
            if found is not None:
                index, is_guessed = found
                taken.append((index, CaptureSensor("", self._files[index], is_guessed, flows)))
        taken.sort(key=lambda pair: pair[0])
        sensors = [sensor for _, sensor in taken]
        for number, sensor in enumerate(sensors, start=1):
            sensor.stream = "lidar" if number == 1 else f"lidar_{number}"
        self._give_imus(sensors)
        return sensors

    def _file_of(self, flows: list[Flow], used: set[int]) -> tuple[int, bool] | None:
        """Return the index of a sensor's metadata, and whether only the size of the packets speaks for it."""
        fitting = [
            index for index, file in enumerate(self._files) if file.metadata.packet_bytes == flows[0].bytes
        ]
        serial = self.flows[flows[0]].serial
        if serial:
            fitting = [index for index in fitting if self._files[index].metadata.serial in ("", "0", serial)]
            fitting.sort(key=lambda index: self._files[index].metadata.serial != serial)
            if fitting and self._files[fitting[0]].metadata.serial == serial:
                return fitting[0], False
        if not fitting:
            return None
        unused = [index for index in fitting if index not in used]
        return (unused or fitting)[0], bool(used) or len(fitting) > 1

    def _give_imus(self, sensors: list[CaptureSensor]) -> None:
        """Give each flow of IMU packets to the sensor at its address; of several there, to that of the port before."""
        for flow, facts in self.flows.items():
            here = [sensor for sensor in sensors if any(one.source == flow.source for one in sensor.lidar)]
            if here and facts.is_imu:
                nearest = min(here, key=lambda sensor: abs(flow.port - 1 - sensor.lidar[0].port))
                if nearest.metadata.imu_packet_bytes == flow.bytes:
                    nearest.imu.append(flow)

    def strangers(self) -> list[str]:
        """Return the serial numbers of sensors whose packets are here but whose metadata is not."""
        known = {file.metadata.serial for file in self._files}
        serials = {facts.serial for facts in self.flows.values() if facts.is_lidar}
        return sorted(serials - known - {""})

    def describe(self, flows: Sequence[Flow] | None = None, limit: int = 3) -> str:
        """Return the largest flows in words."""
        chosen = list(self.flows) if flows is None else list(flows)
        if not chosen:
            return "no UDP traffic"
        several = len({flow.source for flow in self.flows}) > 1
        counts: Counter[tuple[int, int, str]] = Counter()
        for flow in chosen:
            sender = f" from {address_text(flow.source)}" if several else ""
            counts[flow.port, flow.bytes, sender] += self.flows[flow].count
        return ", ".join(
            f"{count} UDP packets of {size} bytes{sender} to port {port}"
            for (port, size, sender), count in counts.most_common(limit)
        )


def _group(flows: dict[Flow, FlowFacts]) -> list[list[Flow]]:
    """Return the flows of lidar packets by sensor: by serial number where packets state it, else by sender and port."""
    groups: dict[object, list[Flow]] = {}
    for flow, facts in flows.items():
        if facts.is_lidar:
            groups.setdefault((flow.bytes, facts.serial or (flow.source, flow.port)), []).append(flow)
    return list(groups.values())


def is_imu_packet(payload: bytes) -> bool:
    """Return whether 48 bytes can be the ``LEGACY`` IMU packet of a sensor: finite values in range, stamps that agree.

    The stamps of accelerometer and gyroscope are of one clock; that of the system may be of another.
    """
    _, accel_ns, gyro_ns, *values = IMU_PACKET.unpack(payload)
    is_turn_credible = all(math.isfinite(value) and abs(value) <= _MAX_TURN_DEG_S for value in values[3:])
    is_acceleration_credible = all(
        math.isfinite(value) and abs(value) <= _MAX_ACCELERATION_G for value in values[:3]
    )
    is_time_credible = max(accel_ns, gyro_ns) < 1 << 63 and abs(accel_ns - gyro_ns) < SECOND_NS
    return is_turn_credible and is_acceleration_credible and is_time_credible and (accel_ns or gyro_ns) != 0


def metadata_files(capture: Path) -> tuple[list[MetadataFile], list[str]]:
    """Return the metadata beside a capture, the likeliest first, and what lies there but is none, in words.

    Looked at: ``NAME.json`` and, as the maker's tools number them, ``NAME_0.json`` and so on.

    Raises:
        SourceError: If ``NAME.json`` is there but is not the metadata of a sensor.
    """
    found: list[MetadataFile] = []
    others: list[str] = []
    for path in _candidates(capture):
        try:
            found.append(MetadataFile(path, _read(path)))
        except (SensoriumError, ValueError, OSError, RecursionError) as err:
            if path == capture.with_suffix(".json"):
                raise SourceError(f"{path}: not the metadata of an Ouster sensor: {err}") from err
            others.append(f"{path.name} ({err})")
    return found, others


def _candidates(capture: Path) -> Iterator[Path]:
    exact = capture.with_suffix(".json")
    if exact.is_file():
        yield exact
    stem = capture.stem
    beside = sorted(
        entry
        for entry in capture.parent.iterdir()
        if entry.suffix == ".json" and entry.stem.startswith((f"{stem}_", f"{stem}-", f"{stem}."))
    )
    yield from beside[:_MAX_METADATA_FILES]


def _read(path: Path) -> OusterMetadata:
    if path.stat().st_size > _MAX_METADATA_BYTES:
        raise ValueError(f"{path.stat().st_size} bytes")
    return OusterMetadata.from_json(path.read_text("utf-8"))
