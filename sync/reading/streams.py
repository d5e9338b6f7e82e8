"""What a reader is told of each stream before anything of it is read."""

from collections.abc import Mapping
from dataclasses import dataclass

from sensorium.drivers.frame import PCM_BYTES, Encoding, Modality, StreamInfo
from sensorium.drivers.roles import Role, has_role
from sensorium.sync.episode.manifest import StreamRecord

_METHODS = {
    "images": "images({0!r})",
    "points": "points({0!r})",
    "audio": "audio({0!r})",
    "columns": "columns({0!r})",
    "messages": "frames({0!r}), whose payloads are messages of somebody else's schema",
}


@dataclass(frozen=True, slots=True, repr=False)
class Stream:
    """One stream of an episode, from its signed manifest.

    Attributes:
        holds: ``images``, ``points``, ``audio``, ``columns`` or ``messages``: the method of the episode that reads it.
        modality: What kind of sensor: ``camera``, ``lidar``, ``imu`` ...
        encoding: How payloads are laid out once a codec is undone.
        rate_hz: Nominal samples per second; 0 where they come when they come.
        frame_id: The sensor's frame in the calibration.
        columns: Unit of each column, by name; empty where it has none.
        units: Unit of the payload as a whole (``mm`` of a depth image), "" where it has none.
        shape: Images (height, width[, channels]); audio (channels,); LiDAR (rings, columns); else ().
        count: Samples that were recorded.
        start_ns, end_ns: First and last capture, UTC ns; None where nothing was recorded.
        uncertainty_ns: 95th percentile of how far its capture times may be off; None where it is not known.
        withheld: Why it cannot be read here; "" if it can.
    """

    name: str
    holds: str
    modality: str
    encoding: str
    rate_hz: float
    frame_id: str
    columns: Mapping[str, str]
    units: str
    shape: tuple[int, ...]
    count: int
    start_ns: int | None
    end_ns: int | None
    uncertainty_ns: float | None
    is_personal: bool
    is_synthetic: bool
    withheld: str = ""

    @property
    def is_readable(self) -> bool:
        return not self.withheld

    @property
    def reader(self) -> str:
        """How it is read, in words."""
        return _METHODS[self.holds].format(self.name)

    def __repr__(self) -> str:
        rate = f" at {self.rate_hz:g} Hz" if self.rate_hz else ""
        withheld = ", withheld" if self.withheld else ""
        return f"<Stream {self.name}: {self.modality} {self.holds}{rate}, {self.count} samples{withheld}>"


def stream_of(record: StreamRecord, withheld: str) -> Stream:
    """Return what a reader is told of a stream of the manifest."""
    info = record.info
    p95_us = record.clock.uncertainty_p95_us
    return Stream(
        info.name,
        holds_of(info),
        info.modality.value,
        info.plain_encoding,
        info.rate_hz,
        info.frame_id,
        {column.name: column.unit for column in info.columns},
        info.units,
        info.shape,
        record.total.recorded,
        record.first_utc_ns,
        record.last_utc_ns,
        None if p95_us is None else p95_us * 1000,
        info.is_personal,
        info.is_synthetic,
        withheld,
    )


def holds_of(info: StreamInfo) -> str:
    """Return by which method of an episode a stream is read."""
    if info.plain_encoding == Encoding.COLUMNS:
        return "columns"
    if info.plain_encoding in PCM_BYTES:
        return "audio"
    if has_role(info, Role.CLOUD):
        return "points"
    is_picture = has_role(info, Role.IMAGE) or info.modality in (Modality.CAMERA, Modality.DEPTH)
    return "images" if is_picture else "messages"
