"""From Ouster packets and arrival stamps to frames, without sockets: for the driver and for captures."""

from dataclasses import dataclass, field

from sensorium.drivers.devices.ouster.imu import (
    LEGACY_BLOCK_SAMPLES,
    columns_of,
    is_block_profile,
    legacy_payload,
    rates_hz,
    read_block,
)
from sensorium.drivers.devices.ouster.packets import (
    IMU_PACKET,
    IMU_PACKET_BYTES,
    Crc,
    PacketHeader,
    check_crc,
    read_header,
)
from sensorium.drivers.frame import (
    ClockKind,
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
from sensorium.drivers.payloads.ouster import decode_scan, scan_points
from sensorium.drivers.payloads.ouster_metadata import OusterMetadata
from sensorium.errors import WireError
from sensorium.timebase import SECOND_NS

DEFAULT_PREVIEW_POINTS = 4096
IMU_BLOCK_NS = 50_000_000
REORDER_PACKETS = 4
"""An incomplete revolution waits for stragglers until this many packets of the next one are there."""
_LATE_FRAMES = 2
_LATE_IS_RESTART = 16
_SLACK_FRAMES = 20
_CRC_TRIALS = 256
"""After this many packets without one valid CRC the firmware is taken to send none."""
_ONE_PASS = 1 << 16
_SENSOR_LATENCY_NS = 10_000_000
"""Sensor-internal latency that Ouster's datasheets bound with "< 10 ms"; one-way stamps cannot see it."""


@dataclass(slots=True)
class OusterCounters:
    """Packets that did not become samples, by reason; ``restarts`` counts the sensor's initialisations."""

    malformed: int = 0
    foreign: int = 0
    corrupt: int = 0
    outside_window: int = 0
    duplicate: int = 0
    late: int = 0
    restarts: int = 0
    imu_malformed: int = 0


@dataclass(slots=True)
class _Packet:
    payload: bytes
    device_ns: int
    arrival_ns: int


@dataclass(slots=True)
class _Revolution:
    packets: dict[int, _Packet] = field(default_factory=dict)
    last_arrival_ns: int = 0


@dataclass(slots=True)
class _PendingLoss:
    """Samples known to be lost, to be booked against the next gap that turns up within two revolutions."""

    count: int
    place: Place
    reason: str
    frame: int


class OusterAssembler:
    """Puts packets into revolutions.

    Sequence numbers count the packets that the sensor must have sent: unwrapped frame number times packets
    per revolution plus place in the revolution, starting at 0 with the first packet seen. A sensor that
    restarts goes on with the next number; what it did not send meanwhile is not counted.

    Attributes:
        counters: What was thrown away, and why.
    """

    def __init__(
        self,
        name: str,
        metadata: OusterMetadata,
        host_id: str,
        preview_points: int = DEFAULT_PREVIEW_POINTS,
        details: dict[str, str] | None = None,
    ) -> None:
        """Prepare to assemble the packets of the sensor that ``metadata`` describes.

        Args:
            preview_points: Points per revolution of the thinned stream ``<name>_points``; 0 = no such stream.
            details: Added to the lidar stream's details.
        """
        self.counters = OusterCounters()
        self._name = name
        self._metadata = metadata
        self._host_id = host_id
        self._preview_points = preview_points
        self._details = details or {}
        self._slots = metadata.packet_slots.tolist()
        self._per_frame = metadata.packets_per_frame
        self._frame_ns = SECOND_NS / metadata.rate_hz
        self._serial = int(metadata.serial) if metadata.serial.isdigit() else 0
        self._has_crc = False
        self._packets_without_crc = 0
        # Revolutions being assembled, by unwrapped frame number, oldest first.
        self._revolutions: dict[int, _Revolution] = {}
        self._frame: int | None = None
        self._last_frame_id = 0
        self._last_arrival_ns = 0
        self._init_id = 0
        self._seq_base = 0
        self._next_seq = 0
        self._late_in_a_row = 0
        self._suspect: tuple[PacketHeader, bytes, int] | None = None
        self._pending: list[_PendingLoss] = []
        self._preview_seq = 0
        self._imu: list[tuple[bytes, int, int]] = []
        self._imu_seq = 0

    def streams(self) -> tuple[StreamInfo, ...]:
        """Return the declarations: lidar, its IMU if its packets can be read, thinned points if on."""
        infos = [self._lidar_info()]
        if self.has_imu:
            infos.append(self._imu_info())
        if self._preview_points:
            infos.append(self._preview_info())
        return tuple(infos)

    @property
    def has_imu(self) -> bool:
        """True if the sensor sends IMU packets of a profile that is read here."""
        return self._metadata.imu_packet_bytes > 0

    def _clock(self) -> DeviceClock:
        is_ptp = self._metadata.timestamp_mode == "TIME_FROM_PTP_1588"
        return DeviceClock(ClockKind.PTP if is_ptp else ClockKind.FREE)

    def _lidar_info(self) -> StreamInfo:
        metadata = self._metadata
        return StreamInfo(
            name=self._name,
            modality=Modality.LIDAR,
            encoding=Encoding.OUSTER,
            rate_hz=metadata.rate_hz * self._per_frame,
            frame_rate_hz=metadata.rate_hz,
            frame_id=self._name,
            clock=self._clock(),
            latency=self._lidar_latency(),
            stamp_of="packet",
            shape=(metadata.rings, metadata.columns),
            host_id=self._host_id,
            has_device_counter=True,
            max_payload_bytes=self._per_frame * metadata.packet_bytes,
            details={
                "metadata": metadata.text,
                "product": metadata.product,
                "serial": metadata.serial,
                "firmware": metadata.firmware,
                **self._details,
            },
        )

    def _lidar_latency(self) -> Latency:
        # A packet leaves when its last column is measured, and is stamped with its first; a frame is
        # published when its revolution is complete.
        column_ns = self._frame_ns / self._metadata.columns
        return Latency(
            min_ns=round((self._metadata.columns_per_packet - 1) * column_ns),
            min_uncertainty_ns=_SENSOR_LATENCY_NS,
            max_ns=round(2 * self._frame_ns) + 100_000_000,
        )

    def _imu_info(self) -> StreamInfo:
        rate_hz, frame_rate_hz = rates_hz(self._metadata)
        return StreamInfo(
            name=f"{self._name}_imu",
            modality=Modality.IMU,
            encoding=Encoding.COLUMNS,
            rate_hz=rate_hz,
            frame_rate_hz=frame_rate_hz,
            frame_id=f"{self._name}_imu",
            clock=self._clock(),
            latency=Latency(0, _SENSOR_LATENCY_NS, IMU_BLOCK_NS + 150_000_000),
            stamp_of="sample",
            host_id=self._host_id,
            columns=columns_of(self._metadata),
            is_sampled=True,
            max_payload_bytes=4096,
            details={"serial": self._metadata.serial},
        )

    def _preview_info(self) -> StreamInfo:
        return StreamInfo(
            name=f"{self._name}_points",
            modality=Modality.LIDAR,
            encoding=Encoding.POINTS,
            rate_hz=self._metadata.rate_hz,
            frame_id=self._name,
            clock=self._clock(),
            latency=self._lidar_latency(),
            stamp_of="packet",
            units="m",
            host_id=self._host_id,
            reference_of=self._name,
            max_payload_bytes=self._preview_points * 16,
            details={"stamp": "last packet of the revolution", "intensity": "reflectivity"},
        )

    def feed_lidar(self, packet: bytes, arrival_ns: int) -> list[Frame | Loss]:
        """Take one lidar datagram; return the frames that it completes. Garbage is counted, never raised."""
        header = self._admit(packet)
        if header is None:
            return []
        if self._frame is None:
            self._start(header)
        elif not self._continues(header, arrival_ns):
            return self._suspect_restart(header, packet, arrival_ns)
        if self._suspect is not None:
            self.counters.malformed += 1
            self._suspect = None
        return self._place(header, packet, arrival_ns)

    def _admit(self, packet: bytes) -> PacketHeader | None:
        try:
            header = read_header(packet, self._metadata)
        except WireError:
            self.counters.malformed += 1
            return None
        if header.serial and self._serial and header.serial != self._serial:
            self.counters.foreign += 1
            return None
        if self._slot(header) < 0:
            self.counters.outside_window += 1
            return None
        if not self._is_intact(packet):
            self.counters.corrupt += 1
            self.note_lost(1, Place.DRIVER, "packet checksum")
            return None
        return header

    def _is_intact(self, packet: bytes) -> bool:
        """Return False if the packet contradicts its CRC, once the sensor is known to send one."""
        if not self._has_crc and self._packets_without_crc >= _CRC_TRIALS:
            return True
        is_good = check_crc(packet, self._metadata) is Crc.GOOD
        self._packets_without_crc += not is_good
        self._has_crc |= is_good
        return is_good or not self._has_crc

    def _slot(self, header: PacketHeader) -> int:
        return int(self._slots[header.first_column // self._metadata.columns_per_packet])

    def _start(self, header: PacketHeader) -> None:
        """Begin to count anew at this packet, with the next sequence number."""
        self._frame = header.frame_id
        self._last_frame_id = header.frame_id
        self._init_id = header.init_id
        self._pending.clear()
        self._seq_base = header.frame_id * self._per_frame + self._slot(header) - self._next_seq

    def _frames_ahead(self, header: PacketHeader) -> int:
        return ((header.frame_id - self._last_frame_id + _ONE_PASS // 2) % _ONE_PASS) - _ONE_PASS // 2

    def _continues(self, header: PacketHeader, arrival_ns: int) -> bool:
        """Return whether the frame number can follow the last one in the time that passed."""
        elapsed_frames = max(0, arrival_ns - self._last_arrival_ns) / self._frame_ns
        is_near = -_LATE_FRAMES <= self._frames_ahead(header) <= _SLACK_FRAMES + 2 * elapsed_frames
        return is_near and header.init_id == self._init_id

    def _suspect_restart(self, header: PacketHeader, packet: bytes, arrival_ns: int) -> list[Frame | Loss]:
        """Hold a packet with an impossible frame number until a second one confirms a restart."""
        before, self._suspect = self._suspect, (header, packet, arrival_ns)
        if before is None:
            return []
        first, first_packet, first_arrival_ns = before
        if (first.init_id, first.frame_id) != (header.init_id, header.frame_id):
            self.counters.malformed += 1
            return []
        self._suspect = None
        self.counters.restarts += 1
        ended = self._emit_all()
        self._start(first if self._slot(first) <= self._slot(header) else header)
        ended += self._place(first, first_packet, first_arrival_ns)
        return ended + self._place(header, packet, arrival_ns)

    def _place(self, header: PacketHeader, packet: bytes, arrival_ns: int) -> list[Frame | Loss]:
        assert self._frame is not None
        ahead = self._frames_ahead(header)
        frame = self._frame + ahead
        if ahead > 0:
            self._frame, self._last_frame_id = frame, header.frame_id
        self._last_arrival_ns = max(self._last_arrival_ns, arrival_ns)
        slot = self._slot(header)
        if frame * self._per_frame + slot < self._seq_base + self._next_seq:
            return self._late(header, packet, arrival_ns)
        self._late_in_a_row = 0
        revolution = self._revolutions.setdefault(frame, _Revolution())
        if slot in revolution.packets:
            self.counters.duplicate += 1
            return []
        revolution.packets[slot] = _Packet(packet, header.device_ns, arrival_ns)
        revolution.last_arrival_ns = arrival_ns
        return self._emit_due(frame)

    def _late(self, header: PacketHeader, packet: bytes, arrival_ns: int) -> list[Frame | Loss]:
        """Drop a packet whose turn is over; many in a row are a sensor that began anew nearby."""
        self._late_in_a_row += 1
        if self._late_in_a_row < _LATE_IS_RESTART:
            self.counters.late += 1
            return []
        self.counters.restarts += 1
        ended = self._emit_all()
        self._start(header)
        return ended + self._place(header, packet, arrival_ns)

    def _emit_due(self, frame: int) -> list[Frame | Loss]:
        """Emit ``frame`` and all before it if it is complete; else those that have waited long enough."""
        packets = self._revolutions[frame].packets
        if len(packets) == self._per_frame:
            return self._emit_until(frame)
        if len(packets) >= REORDER_PACKETS:
            return self._emit_until(frame - 1)
        return self._emit_until(frame - 2)

    def _emit_until(self, last: int) -> list[Frame | Loss]:
        emitted: list[Frame | Loss] = []
        for frame in sorted(frame for frame in self._revolutions if frame <= last):
            emitted += self._emit(frame, self._revolutions.pop(frame))
        return emitted

    def _emit_all(self) -> list[Frame | Loss]:
        return self._emit_until(max(self._revolutions, default=0))

    def _emit(self, frame: int, revolution: _Revolution) -> list[Frame | Loss]:
        emitted: list[Frame | Loss] = []
        slots = sorted(revolution.packets)
        breaks = [i for i in range(1, len(slots)) if slots[i] != slots[i - 1] + 1]
        for start, end in zip([0, *breaks], [*breaks, len(slots)], strict=True):
            seq = frame * self._per_frame + slots[start] - self._seq_base
            emitted += self._explain_gap(seq - self._next_seq)
            emitted.append(self._frame_of(seq, [revolution.packets[slot] for slot in slots[start:end]]))
            self._next_seq = seq + end - start
        self._pending = [loss for loss in self._pending if loss.frame >= frame - 1]
        if self._preview_points:
            emitted += self._preview([revolution.packets[slot] for slot in slots])
        return emitted

    def _explain_gap(self, missing: int) -> list[Loss]:
        losses: list[Loss] = []
        for pending in self._pending:
            booked = min(missing, pending.count)
            if booked:
                losses.append(Loss(self._name, booked, pending.place, pending.reason))
                pending.count -= booked
                missing -= booked
        return losses

    def _frame_of(self, seq: int, packets: list[_Packet]) -> Frame:
        return Frame(
            stream=self._name,
            seq=seq,
            count=len(packets),
            device_ticks=stamps(*(packet.device_ns for packet in packets)),
            arrival_ns=stamps(*(packet.arrival_ns for packet in packets)),
            payload=b"".join([packet.payload for packet in packets]),
        )

    def _preview(self, packets: list[_Packet]) -> list[Frame]:
        scan = decode_scan(b"".join([packet.payload for packet in packets]), self._metadata)
        points = scan_points(scan, self._metadata, self._preview_points)
        if not len(points):
            return []
        last = packets[-1]
        seq = self._preview_seq
        self._preview_seq += 1
        return [
            Frame(
                f"{self._name}_points",
                seq,
                1,
                stamps(last.device_ns),
                stamps(last.arrival_ns),
                points.astype("<f4", copy=False).tobytes(),
            )
        ]

    def note_lost(self, count: int, place: Place, reason: str) -> None:
        """Say that ``count`` lidar datagrams were lost here; they are booked against the next gap, if any."""
        frame = self._frame if self._frame is not None else 0
        self._pending.append(_PendingLoss(count, place, reason, frame))

    def feed_imu(self, packet: bytes, arrival_ns: int) -> list[Frame | Loss]:
        """Take one IMU datagram; return the block that it completes. Garbage is counted, never raised."""
        if is_block_profile(self._metadata):
            return self._feed_imu_block(packet, arrival_ns)
        if len(packet) != IMU_PACKET_BYTES or not self.has_imu:
            self.counters.imu_malformed += 1
            return []
        sys_ns, accel_ns, gyro_ns = IMU_PACKET.unpack(packet)[:3]
        if max(sys_ns, accel_ns, gyro_ns) >= 1 << 63:
            self.counters.imu_malformed += 1
            return []
        self._imu.append((packet, accel_ns, arrival_ns))
        is_full = len(self._imu) >= LEGACY_BLOCK_SAMPLES or arrival_ns - self._imu[0][2] >= IMU_BLOCK_NS
        return self._emit_imu() if is_full else []

    def _feed_imu_block(self, packet: bytes, arrival_ns: int) -> list[Frame | Loss]:
        block = read_block(packet, self._metadata)
        if block is None:
            self.counters.imu_malformed += 1
            return []
        count, seq = len(block.device_ns), self._imu_seq
        if not count:
            return []
        self._imu_seq += count
        name = f"{self._name}_imu"
        return [Frame(name, seq, count, block.device_ns, stamps(arrival_ns), block.payload)]

    def note_imu_lost(self, count: int, place: Place, reason: str) -> list[Frame | Loss]:
        """Book ``count`` IMU datagrams that were lost in front of the next one."""
        before = self._emit_imu()
        self._imu_seq += count
        return [*before, Loss(f"{self._name}_imu", count, place, reason)]

    def _emit_imu(self) -> list[Frame | Loss]:
        if not self._imu:
            return []
        taken, self._imu = self._imu, []
        frame = Frame(
            stream=f"{self._name}_imu",
            seq=self._imu_seq,
            count=len(taken),
            device_ticks=stamps(*(accel_ns for _, accel_ns, _ in taken)),
            arrival_ns=stamps(*(arrival_ns for _, _, arrival_ns in taken)),
            payload=legacy_payload(b"".join([packet for packet, _, _ in taken])),
        )
        self._imu_seq += len(taken)
        return [frame]

    def expire(self, now_ns: int) -> list[Frame | Loss]:
        """Return what has waited too long at ``now_ns``: half-filled blocks, revolutions without new packets.

        Everything that arrived before ``now_ns`` must have been fed.
        """
        expired: list[Frame | Loss] = []
        for frame in sorted(self._revolutions):
            if now_ns - self._revolutions[frame].last_arrival_ns > self._frame_ns:
                expired += self._emit_until(frame)
        if self._imu and now_ns - self._imu[0][2] >= IMU_BLOCK_NS:
            expired += self._emit_imu()
        return expired

    def flush(self) -> list[Frame | Loss]:
        """Return everything that is still waiting, at the end of a capture."""
        return self._emit_all() + self._emit_imu()
