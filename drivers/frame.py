"""The central types: what a stream is (`StreamInfo`) and what it carries (`Frame`).

A *sample* is the unit that is counted: one image, one UDP packet of a LiDAR, one IMU or force reading, one
audio sample (of all channels). A *frame* is what travels and is stored as one message: one image, one LiDAR
revolution, a block of IMU samples, a block of audio.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from sensorium.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STREAM_NAME = re.compile(r"[a-z0-9_]{1,48}")
MAX_SAMPLES_PER_FRAME = 1 << 20
COUNTER_GAP = "gap in the device's counter"
"""Reason of a loss that only a jump in the sequence numbers tells."""


class Modality(str, Enum):
    """What kind of thing a stream measures or says.

    ``JOINTS`` are measured states of a robot, ``ACTION`` what it was told to do; ``SCALAR`` slow readings such as
    temperature or voltage; ``TEXT`` what somebody said or typed.
    """

    CAMERA = "camera"
    DEPTH = "depth"
    LIDAR = "lidar"
    IMU = "imu"
    AUDIO = "audio"
    FORCE = "force"
    GNSS = "gnss"
    RADAR = "radar"
    TACTILE = "tactile"
    JOINTS = "joints"
    ACTION = "action"
    EVENT_CAMERA = "event_camera"
    CAN = "can"
    SCALAR = "scalar"
    TEXT = "text"
    OTHER = "other"


_IS_PERSONAL = {
    Modality.CAMERA: True,
    Modality.DEPTH: False,
    Modality.LIDAR: False,
    Modality.IMU: False,
    Modality.AUDIO: True,
    Modality.FORCE: False,
    Modality.GNSS: True,
    Modality.RADAR: False,
    Modality.TACTILE: False,
    Modality.JOINTS: False,
    Modality.ACTION: False,
    Modality.EVENT_CAMERA: True,
    Modality.CAN: False,
    Modality.SCALAR: False,
    Modality.TEXT: True,
    Modality.OTHER: False,
}

REFERENCE_ORDER = (
    Modality.CAMERA,
    Modality.LIDAR,
    Modality.DEPTH,
    Modality.RADAR,
    Modality.TACTILE,
    Modality.IMU,
    Modality.FORCE,
    Modality.JOINTS,
    Modality.ACTION,
    Modality.AUDIO,
    Modality.EVENT_CAMERA,
)
"""Whose frames are the instants of alignment where nobody says so; of what is not listed the fastest stream."""


def is_personal_by_default(modality: Modality, *, carries_colour: bool = False) -> bool:
    """Return whether a stream is personal unless the rig file says otherwise.

    Args:
        carries_colour: The stream holds colour images too: that makes depth personal.
    """
    return _IS_PERSONAL[modality] or (modality is Modality.DEPTH and carries_colour)


class Encoding:
    """Names of payload layouts.

    ``JPEG``, ``PNG``: one compressed image, untouched.
    ``MONO8``, ``BGR8``, ``RGB8``, ``MONO16``: raw pixels, row major, ``shape`` = (height, width[, channels]).
    ``COLUMNS``: for each entry of ``StreamInfo.columns`` in turn, ``count`` little-endian values.
    ``PCM_S16LE`` ... ``PCM_F32LE``: interleaved audio of 16, 24, 32 bits or floats, ``shape`` = (channels,).
    ``OUSTER``: the sensor's UDP packets back to back, equal sizes; ``details["metadata"]`` is its JSON.
    ``POINTS``: float32 little-endian rows x, y, z (m), intensity; a thinned view of another stream.
    ``MESSAGE``: a message of somebody else's schema, untouched; see ``StreamInfo.schema``.

    A codec adds an encoding of its own, which restores to one of these; ``drivers/payloads/table.py`` lists all.
    ``RANGE_IMAGE``: LiDAR packets. ``PACKED_IMAGE16``: 16-bit pixels. ``PACKED_COLUMNS``: columns.
    ``PACKED_PCM``, ``FLAC``: audio.
    ``H264``, ``H265``, ``AV1``: one access unit of video, from a codec or from the device itself.
    """

    JPEG: ClassVar[str] = "jpeg"
    PNG: ClassVar[str] = "png"
    MONO8: ClassVar[str] = "mono8"
    BGR8: ClassVar[str] = "bgr8"
    RGB8: ClassVar[str] = "rgb8"
    MONO16: ClassVar[str] = "mono16"
    COLUMNS: ClassVar[str] = "columns"
    PCM_S16LE: ClassVar[str] = "pcm_s16le"
    PCM_S24LE: ClassVar[str] = "pcm_s24le"
    PCM_S32LE: ClassVar[str] = "pcm_s32le"
    PCM_F32LE: ClassVar[str] = "pcm_f32le"
    OUSTER: ClassVar[str] = "ouster"
    POINTS: ClassVar[str] = "points"
    MESSAGE: ClassVar[str] = "message"
    RANGE_IMAGE: ClassVar[str] = "range_image"
    PACKED_IMAGE16: ClassVar[str] = "packed_image16"
    PACKED_COLUMNS: ClassVar[str] = "packed_columns"
    PACKED_PCM: ClassVar[str] = "packed_pcm"
    FLAC: ClassVar[str] = "flac"
    H264: ClassVar[str] = "h264"
    H265: ClassVar[str] = "h265"
    AV1: ClassVar[str] = "av1"


PCM_BYTES: Mapping[str, int] = {
    Encoding.PCM_S16LE: 2,
    Encoding.PCM_S24LE: 3,
    Encoding.PCM_S32LE: 4,
    Encoding.PCM_F32LE: 4,
}
"""Encodings of plain audio, and the bytes of one channel's sample."""

VIDEO = frozenset({Encoding.H264, Encoding.H265, Encoding.AV1})
"""Encodings whose payloads build upon those before, from a key frame on."""


class ClockKind(str, Enum):
    """Where a stream's device stamps come from.

    ``NONE``: no device stamps. ``FREE``: a free-running device clock. ``SAMPLES``: a counter of samples.
    ``PTP``: claims to be disciplined. ``HOST``: the stamps already are host nanoseconds.
    """

    NONE = "none"
    FREE = "free"
    SAMPLES = "samples"
    PTP = "ptp"
    HOST = "host"


@dataclass(frozen=True, slots=True)
class DeviceClock:
    """How device ticks count: one tick lasts ``tick_ns_num / tick_ns_den`` ns, modulo ``modulus`` ticks."""

    kind: ClockKind = ClockKind.NONE
    tick_ns_num: int = 1
    tick_ns_den: int = 1
    modulus: int | None = None

    def __post_init__(self) -> None:
        if self.tick_ns_num <= 0 or self.tick_ns_den <= 0 or (self.modulus is not None and self.modulus < 2):
            raise ConfigError(f"device clock needs positive ticks and a modulus of at least 2, found {self}")

    @property
    def tick_ns(self) -> float:
        return self.tick_ns_num / self.tick_ns_den


@dataclass(frozen=True, slots=True)
class Latency:
    """From the capture instant to the host stamp.

    Attributes:
        min_ns: Known constant minimum; subtracted from the one-way estimate.
        min_uncertainty_ns: Bound on the error of ``min_ns``. One-way stamps cannot see it, so it is stated
            apart from the estimator's own uncertainty.
        max_ns: Largest credible latency: samples that are later were held back, or their clock stood still; alignment
            waits this long before it calls a stream silent.
    """

    min_ns: int = 0
    min_uncertainty_ns: int = 0
    max_ns: int = 1_000_000_000

    def __post_init__(self) -> None:
        if not 0 <= self.min_ns <= self.max_ns or self.min_uncertainty_ns < 0:
            raise ConfigError(f"latency bounds must satisfy 0 <= min <= max, found {self}")


@dataclass(frozen=True, slots=True)
class Column:
    """One numeric column: physical value = raw * scale; ``dtype`` is a numpy code such as ``<i2``."""

    name: str
    unit: str
    dtype: str = "<f4"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.dtype not in ("<i1", "<u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f4", "<f8"):
            raise ConfigError(f"column {self.name}: dtype {self.dtype!r} is not a little-endian number type")


@dataclass(frozen=True, slots=True)
class MessageSchema:
    """Schema of ``Encoding.MESSAGE`` payloads, in the terms of MCAP."""

    message_encoding: str
    name: str
    encoding: str
    data: bytes


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What a stream is; declared once, before its first frame.

    Attributes:
        name: ``[a-z0-9_]{1,48}``; also its topic (``/name``) and file name.
        rate_hz: Nominal samples per second; 0 for aperiodic streams.
        frame_rate_hz: Nominal frames (messages) per second; 0 = same as ``rate_hz``.
        shape: Images (height, width[, channels]); audio (channels,); LiDAR (rings, columns); else ().
        units: Unit of the payload as a whole where it has one (``m``, ``px``); columns carry their own.
        stamp_of: The instant that a device stamp means: ``exposure_start``, ``exposure_mid``, ``sample``,
            ``first_sample``, ``packet``, ``arrival``.
        is_personal: Recorded, shown and uploaded only with a live consent grant.
        is_sampled: Values may be interpolated between samples (IMU, force); else nearest sample only.
        has_device_counter: "Produced" is the device's own count; else what the driver observed.
        reference_of: For a derived stream (a thinned view), the stream it derives from; "" for originals.
        max_payload_bytes: Upper bound of one frame's payload; sizes credits and is enforced on the bus.
        meta_fields: Names of the numbers in ``Frame.meta``, in order (units in names: ``exposure_ns``). A name that
            ends in ``_any`` is of bits that at least one sample of the frame has set: joined frames have them all.
        details: What a decoder or a reader of the manifest needs once: sensor metadata, serial, firmware.
        is_synthetic: Produced by a simulator.
        restores_to: The plain encoding that a coded one gives back; "" where ``encoding`` is plain itself. Shape,
            columns and units always describe the plain payload.
    """

    name: str
    modality: Modality
    encoding: str
    rate_hz: float
    frame_id: str
    clock: DeviceClock = DeviceClock()
    latency: Latency = Latency()
    stamp_of: str = "sample"
    shape: tuple[int, ...] = ()
    units: str = ""
    host_id: str = "local"
    frame_rate_hz: float = 0.0
    columns: tuple[Column, ...] = ()
    schema: MessageSchema | None = None
    is_personal: bool = False
    is_sampled: bool = False
    has_device_counter: bool = False
    is_synthetic: bool = False
    reference_of: str = ""
    max_payload_bytes: int = 1 << 20
    meta_fields: tuple[str, ...] = ()
    details: dict[str, str] = field(default_factory=dict)
    restores_to: str = ""

    __pydantic_config__: ClassVar[Any] = {
        "extra": "forbid",
        "ser_json_bytes": "base64",
        "val_json_bytes": "base64",
        "ser_json_inf_nan": "constants",
    }

    def __post_init__(self) -> None:
        if not STREAM_NAME.fullmatch(self.name):
            raise ConfigError(f"stream name {self.name!r} must match {STREAM_NAME.pattern}")
        if not 0 <= self.rate_hz < 1e7 or not 0 <= self.frame_rate_hz < 1e7:
            raise ConfigError(f"stream {self.name}: rate {self.rate_hz} Hz is not a rate")
        if (self.encoding == Encoding.MESSAGE) != (self.schema is not None):
            raise ConfigError(f"stream {self.name}: encoding {self.encoding!r} and schema do not go together")
        if (self.plain_encoding == Encoding.COLUMNS) != bool(self.columns):
            raise ConfigError(
                f"stream {self.name}: encoding {self.plain_encoding!r} and columns do not go together"
            )

    @property
    def plain_encoding(self) -> str:
        """The encoding that a reader sees: ``encoding``, or what it restores to."""
        return self.restores_to or self.encoding

    @property
    def message_rate_hz(self) -> float:
        return self.frame_rate_hz or self.rate_hz

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample of a plain ``COLUMNS`` payload."""
        return sum(int(column.dtype[2:]) for column in self.columns)


@dataclass(frozen=True, slots=True, eq=False)
class RecordedStamps:
    """Capture times that an episode already states; its replay keeps them.

    Attributes:
        capture_ns: (k,) int64 host nanoseconds, k = 1 or the frame's ``count``; not after the arrival.
        statistical_ns, floor_ns, asymmetry_ns: The stated half widths.
        epoch: Of the clock that they were mapped with.
    """

    capture_ns: "NDArray[np.int64]"
    statistical_ns: float
    floor_ns: float
    asymmetry_ns: float
    epoch: int

    def __post_init__(self) -> None:
        widths = (self.statistical_ns, self.floor_ns, self.asymmetry_ns)
        if not all(0 <= width < float("inf") for width in widths) or not 0 <= self.epoch < 1 << 31:
            raise ValueError(f"recorded stamps state half widths {widths} in epoch {self.epoch}")


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """What a driver publishes: ``count`` samples in one payload.

    Attributes:
        seq: Sequence number of the first sample. Numbers that a stream skips are samples that were produced
            and lost before this point; they are booked to ``device`` unless a :class:`Loss` says otherwise.
        count: Samples in the payload, at least 1.
        device_ticks: (k,) int64 raw device stamps, k = ``count``, or 1 = of the first sample; None without.
        arrival_ns: (k,) int64 host stamps, k = ``count`` or 1 (= when the whole frame was there).
        payload: Bytes laid out as ``StreamInfo.encoding`` says; never changed after publishing.
        meta: One number per name in ``StreamInfo.meta_fields``.
        recorded: Capture times that are known already; only the replay of an episode has them.
    """

    stream: str
    seq: int
    count: int
    device_ticks: "NDArray[np.int64] | None"
    arrival_ns: "NDArray[np.int64]"
    payload: bytes | memoryview
    meta: tuple[float, ...] = ()
    recorded: RecordedStamps | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_SAMPLES_PER_FRAME or self.seq < 0:
            raise ValueError(f"frame of {self.stream}: seq {self.seq}, count {self.count}")
        for stamps in (self.device_ticks, self.arrival_ns):
            if stamps is not None and stamps.shape not in ((1,), (self.count,)):
                raise ValueError(f"frame of {self.stream}: {stamps.shape} stamps for {self.count} samples")
        if self.recorded is not None:
            known = self.recorded.capture_ns
            if known.shape not in ((1,), (self.count,)) or (known > self.arrival_ns[-1]).any():
                raise ValueError(f"frame of {self.stream}: recorded capture times do not fit its arrival")

    @property
    def next_seq(self) -> int:
        return self.seq + self.count


class Place(str, Enum):
    """Where samples can be lost, from the sensor to the file; ``POLICY`` is what a capture rule left out."""

    SOURCE = "source"
    DEVICE = "device"
    KERNEL = "kernel"
    DRIVER = "driver"
    BUS = "bus"
    SYNCHRONIZER = "synchronizer"
    WRITER = "writer"
    POLICY = "policy"


@dataclass(frozen=True, slots=True)
class Loss:
    """``count`` samples of ``stream`` that were produced but will never be published, and why.

    A driver returns it from ``read`` among its frames; it explains the next gap in the sequence numbers (or,
    at the end of a stream, extends it).
    """

    stream: str
    count: int
    place: Place
    reason: str


def stamps(*values: int) -> "NDArray[np.int64]":
    """Return the values as an int64 array, the form of ``Frame.device_ticks`` and ``Frame.arrival_ns``."""
    import numpy as np  # here: grants and rig files name modalities and streams, and need no arrays

    return np.asarray(values, np.int64)
