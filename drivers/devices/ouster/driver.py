"""Ouster OS LiDARs: UDP packets of the lidar and its IMU, metadata from a file or from the sensor itself."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from sensorium.drivers.devices.ouster.assembler import DEFAULT_PREVIEW_POINTS, OusterAssembler, OusterCounters
from sensorium.drivers.driver import Driver, DriverConfig, DriverContext, Seen
from sensorium.drivers.frame import Frame, Loss, Place, StreamInfo
from sensorium.drivers.links.http import fetch
from sensorium.drivers.links.mdns import find_services
from sensorium.drivers.links.udp import Datagram, UdpReceiver, resolve, wait_readable
from sensorium.drivers.payloads.ouster_metadata import OusterMetadata
from sensorium.errors import ConfigError, DeviceError
from sensorium.timebase import SECOND_NS, HostClock

__all__ = ["OusterAssembler", "OusterConfig", "OusterCounters", "OusterDriver"]

_SERVICE = "_roger._tcp.local"
"""Under which sensors announce themselves (Software User Manual, "Networking Guide": mDNS)."""
_METADATA_PATH = "/api/v1/sensor/metadata"
_IMU_BUFFER_BYTES = 1 << 20
_MAX_DRAINS = 4
_OVERFLOW = "kernel receive buffer overflow"


class OusterConfig(DriverConfig):
    """Options of :class:`OusterDriver`.

    Attributes:
        host: The sensor's address; packets from elsewhere are counted and dropped. None accepts any sender.
        metadata: File with the sensor's metadata; None = ask the sensor over HTTP.
        lidar_port, imu_port: Where the sensor sends to; 0 = any free port (see the driver's ``ports``).
        bind: Local address to receive on.
        preview_points: Points per revolution of the thinned stream ``<name>_points``; 0 = off.
        receive_buffer_bytes: Kernel buffer to ask for; about 40 ms of an OS-128 per MiB.
        http_port: Port of the sensor's HTTP interface.
        http_timeout_s: How long the sensor may take to answer with its metadata.
        silence_s: Without a lidar packet for this long the sensor counts as gone.
    """

    host: str | None = None
    metadata: Path | None = None
    lidar_port: int = Field(default=7502, ge=0, le=65535)
    imu_port: int = Field(default=7503, ge=0, le=65535)
    bind: str = "0.0.0.0"
    preview_points: int = Field(default=DEFAULT_PREVIEW_POINTS, ge=0, le=1 << 18)
    receive_buffer_bytes: PositiveInt = 8 << 20
    http_port: int = Field(default=80, ge=1, le=65535)
    http_timeout_s: PositiveFloat = 5.0
    silence_s: PositiveFloat = 10.0

    @model_validator(mode="after")
    def _has_a_source_of_metadata(self) -> "OusterConfig":
        if self.host is None and self.metadata is None:
            raise ValueError("needs host (metadata is then fetched from the sensor) or metadata (a file)")
        if self.lidar_port and self.lidar_port == self.imu_port:
            raise ValueError(f"lidar_port and imu_port are both {self.lidar_port}")
        return self


class OusterDriver(Driver[OusterConfig]):
    """Streams ``<name>`` (revolutions of packets), ``<name>_imu`` and ``<name>_points``."""

    config_type: ClassVar[type[DriverConfig]] = OusterConfig

    def __init__(self, config: OusterConfig, context: DriverContext) -> None:
        super().__init__(config, context)
        self._receivers: list[UdpReceiver] = []
        self._assembler: OusterAssembler | None = None
        self._address: str | None = None
        self._last_packet_ns = 0

    @classmethod
    def check(cls, config: Any) -> None:
        """Raise if the metadata file is missing or wrong, or the host name unknown."""
        if config.metadata is not None:
            _metadata_from_file(config.metadata)
        if config.host is not None:
            resolve(config.host)

    @property
    def counters(self) -> OusterCounters:
        """Packets that did not become samples, by reason."""
        return self._assembler.counters if self._assembler is not None else OusterCounters()

    @property
    def ports(self) -> tuple[int, ...]:
        """The bound lidar and IMU ports."""
        return tuple(receiver.port for receiver in self._receivers)

    @classmethod
    def discover(cls) -> Sequence[Seen]:
        """Return the sensors that answer on this network."""
        offers = find_services(_SERVICE, HostClock())
        return [Seen(offer.instance, {"host": offer.address}) for offer in offers]

    def open(self) -> Sequence[StreamInfo]:
        try:
            return self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> Sequence[StreamInfo]:
        config, clock = self.config, self.context.clock
        self._address = resolve(config.host) if config.host is not None else None
        metadata = self._metadata()
        lidar = UdpReceiver(config.bind, config.lidar_port, config.receive_buffer_bytes, clock)
        self._receivers.append(lidar)
        details = {
            "receive_buffer_bytes": str(lidar.buffer_bytes),
            "arrival_stamps": "kernel" if lidar.has_kernel_stamps else "program",
        }
        if lidar.buffer_bytes < config.receive_buffer_bytes:
            details["receive_buffer"] = (
                f"{lidar.buffer_bytes} of {config.receive_buffer_bytes} B granted; raise net.core.rmem_max"
            )
        self._assembler = OusterAssembler(
            self.context.name, metadata, self.context.host_id, config.preview_points, details
        )
        if self._assembler.has_imu:
            self._receivers.append(UdpReceiver(config.bind, config.imu_port, _IMU_BUFFER_BYTES, clock))
        self._last_packet_ns = clock.now_ns()
        streams = self._assembler.streams()
        if config.personal is None:
            return streams
        return [replace(info, is_personal=config.personal) for info in streams]

    def _metadata(self) -> OusterMetadata:
        if self.config.metadata is not None:
            return _metadata_from_file(self.config.metadata)
        text = _fetch_metadata(self.config)
        _refuse_other_ports(text, self.config)
        return OusterMetadata.from_json(text)

    def read(self, timeout_s: float) -> Sequence[Frame | Loss]:
        if self._assembler is None or not self._receivers:
            raise DeviceError(f"Ouster {self.context.name} is not open")
        clock = self.context.clock
        deadline_ns = clock.now_ns() + round(timeout_s * SECOND_NS)
        while True:
            remaining_s = (deadline_ns - clock.now_ns()) / SECOND_NS
            has_data = wait_readable(self._receivers, remaining_s)
            items = self._drain(self._assembler)
            if items or not has_data or remaining_s <= 0:
                self._refuse_silence()
                return items

    def _drain(self, assembler: OusterAssembler) -> list[Frame | Loss]:
        """Feed what the sockets hold, and expire what is old once they are empty."""
        items: list[Frame | Loss] = []
        now_ns = self.context.clock.now_ns()
        for _ in range(_MAX_DRAINS):
            batches = [receiver.receive() for receiver in self._receivers]
            if not any(batches):
                return items + assembler.expire(now_ns)
            for datagram in batches[0]:
                items += self._feed_lidar(assembler, datagram)
            for datagram in batches[1] if len(batches) > 1 else ():
                items += self._feed_imu(assembler, datagram)
        return items

    def _feed_lidar(self, assembler: OusterAssembler, datagram: Datagram) -> list[Frame | Loss]:
        if datagram.dropped_before:
            assembler.note_lost(datagram.dropped_before, Place.KERNEL, _OVERFLOW)
        if self._is_foreign(assembler, datagram):
            return []
        self._last_packet_ns = datagram.arrival_ns
        return assembler.feed_lidar(datagram.payload, datagram.arrival_ns)

    def _feed_imu(self, assembler: OusterAssembler, datagram: Datagram) -> list[Frame | Loss]:
        items: list[Frame | Loss] = []
        if datagram.dropped_before:
            items += assembler.note_imu_lost(datagram.dropped_before, Place.KERNEL, _OVERFLOW)
        if not self._is_foreign(assembler, datagram):
            items += assembler.feed_imu(datagram.payload, datagram.arrival_ns)
        return items

    def _is_foreign(self, assembler: OusterAssembler, datagram: Datagram) -> bool:
        is_foreign = self._address is not None and datagram.source[0] != self._address
        assembler.counters.foreign += is_foreign
        return is_foreign

    def _refuse_silence(self) -> None:
        silence_ns = self.context.clock.now_ns() - self._last_packet_ns
        if silence_ns > self.config.silence_s * SECOND_NS:
            port = self._receivers[0].port
            raise DeviceError(
                f"Ouster {self.config.host or 'sensor'}: no lidar packet on UDP port {port} for "
                f"{silence_ns / SECOND_NS:.0f} s; check power, cable, and that its udp_dest is this machine"
            )

    def close(self) -> None:
        for receiver in self._receivers:
            receiver.close()
        self._receivers = []


def _metadata_from_file(path: Path) -> OusterMetadata:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"Ouster metadata file {path} cannot be read: {err}") from err
    try:
        return OusterMetadata.from_json(text)
    except ConfigError as err:
        raise ConfigError(f"{path}: {err}") from err


def _fetch_metadata(config: OusterConfig) -> str:
    url = f"http://{config.host}:{config.http_port}{_METADATA_PATH}"
    label = f"Ouster {config.host}"
    document = fetch(label, "metadata", url, config.http_timeout_s, "give a metadata file")
    try:
        return document.decode()
    except UnicodeDecodeError as err:
        raise DeviceError(f"{label}: metadata from {url} is no text: {err}; give a metadata file") from err


def _refuse_other_ports(text: str, config: OusterConfig) -> None:
    """Compare the sensor's own settings with the rig file's."""
    try:
        settings = json.loads(text).get("config_params", {})
    except (ValueError, AttributeError):
        return  # from_json says what is wrong
    for key, wanted in (("udp_port_lidar", config.lidar_port), ("udp_port_imu", config.imu_port)):
        found = settings.get(key, wanted) if isinstance(settings, dict) else wanted
        if wanted and found != wanted:
            raise DeviceError(
                f"Ouster {config.host}: sensor has {key} = {found}, rig file {wanted}; make them equal"
            )
