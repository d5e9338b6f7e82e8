"""Captures of an Ouster sensor's UDP traffic, fed to the decoder of the real driver.

Arrival is the capture's own stamp (UTC). The sensor's metadata lies beside the capture under the same name
with ``.json``, as the maker's tools write it. Packets are told apart by their size, because captures are
often rewritten to other ports.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from sensorium.drivers.devices.ouster.assembler import OusterAssembler
from sensorium.drivers.devices.ouster.packets import IMU_PACKET_BYTES
from sensorium.drivers.frame import Frame, Loss
from sensorium.drivers.payloads.ouster_metadata import OusterMetadata
from sensorium.errors import SensoriumError, SourceError
from sensorium.sync.sources.pcap import CaptureCounts, Datagram, read_datagrams
from sensorium.sync.sources.source import RECORDING_HOST, Problem, Source

STREAM = "lidar"


class OusterCaptureSource(Source):
    """One capture file of one sensor: its lidar, its IMU where the capture holds it, and a thinned view.

    Attributes:
        metadata: The sensor's.

    Raises:
        SourceError: If the file is no capture, its metadata is absent or wrong, or it holds no lidar packet.
    """

    kind = "Ouster capture"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._counts = CaptureCounts()
        self._traffic: Counter[tuple[int, int]] = Counter()
        for datagram in read_datagrams(path, self._counts):
            if not self._traffic:
                self.start_ns = datagram.arrival_ns
            self.start_ns = min(self.start_ns, datagram.arrival_ns)
            self.end_ns = max(self.end_ns, datagram.arrival_ns)
            self._traffic[datagram.port, len(datagram.payload)] += 1
        if not self._traffic and self._counts.is_truncated:
            raise SourceError(f"{path}: the capture is cut before its first whole UDP datagram")
        self.metadata = self._read_metadata()
        lidar, imu = self._count_of(self.metadata.packet_bytes), self._count_of(IMU_PACKET_BYTES)
        if not lidar:
            expected = f"{self.metadata.packet_bytes} bytes"
            raise SourceError(
                f"{path}: no lidar packet of {expected}, as its metadata says; it holds {self._found()}"
            )
        self.streams = tuple(
            info for info in self._assembler().streams() if info.name != f"{STREAM}_imu" or imu
        )
        self.problems = tuple(self._find_problems(sum(self._traffic.values()) - lidar - imu))

    def frames(self) -> Iterator[Frame | Loss]:
        assembler = self._assembler()
        names = {info.name for info in self.streams}
        for datagram in self.datagrams():
            if len(datagram.payload) == self.metadata.packet_bytes:
                items = assembler.feed_lidar(datagram.payload, datagram.arrival_ns)
            else:
                items = assembler.feed_imu(datagram.payload, datagram.arrival_ns)
            yield from (item for item in items if item.stream in names)
        yield from (item for item in assembler.flush() if item.stream in names)

    def datagrams(self) -> Iterator[Datagram]:
        """Yield the sensor's own datagrams, for a replay through real sockets."""
        sizes = (self.metadata.packet_bytes, IMU_PACKET_BYTES)
        for datagram in read_datagrams(self.path, CaptureCounts()):
            if len(datagram.payload) in sizes:
                yield datagram

    def _assembler(self) -> OusterAssembler:
        return OusterAssembler(STREAM, self.metadata, RECORDING_HOST)

    def _read_metadata(self) -> OusterMetadata:
        beside = self.path.with_suffix(".json")
        if not beside.is_file():
            raise SourceError(
                f"{self.path}: holds {self._found()}; only Ouster captures can be decoded, and they need the "
                f"sensor's metadata in {beside.name} beside them"
            )
        try:
            return OusterMetadata.from_json(beside.read_text("utf-8"))
        except (SensoriumError, ValueError, OSError) as err:
            raise SourceError(f"{beside}: not the metadata of an Ouster sensor: {err}") from err

    def _count_of(self, size: int) -> int:
        return sum(count for (_, length), count in self._traffic.items() if length == size)

    def _found(self) -> str:
        if not self._traffic:
            return "no UDP traffic"
        parts = [
            f"{count} UDP packets of {length} bytes to port {port}"
            for (port, length), count in self._traffic.most_common(3)
        ]
        return ", ".join(parts)

    def _find_problems(self, other: int) -> Iterator[Problem]:
        counts = self._counts
        if counts.is_truncated:
            text = f"the capture ends inside a packet after {counts.packets} whole ones"
            yield Problem("truncated", "", 1, text)
        if counts.cut:
            text = f"{counts.cut} packets were cut when they were captured (snap length) and are left out"
            yield Problem("cut_packet", "", counts.cut, text)
        if counts.incomplete:
            text = f"{counts.incomplete} datagrams lack fragments and are left out"
            yield Problem("incomplete_fragments", "", counts.incomplete, text)
        if other:
            yield Problem("other_traffic", "", other, f"{other} UDP datagrams are not of this sensor")
