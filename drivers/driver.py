"""What a driver is: a config and three hooks that its host process calls."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from sensorium.drivers.frame import Frame, Loss, Modality, StreamInfo
from sensorium.timebase import Clock, Timeline

CAPTURE_ZONE = "capture_zone"
"""Detail of a stream whose device stands in one place: the name of that zone, as the rig file says it."""

ZONE_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_./-]{0,63}"


class DriverConfig(BaseModel):
    """Options of a driver in the rig file. Unknown keys are refused; field names carry their unit.

    Attributes:
        personal: Overrides which streams need consent; None = the driver's default (cameras, audio, GNSS).
        zone: Where the device stands, if it always stands there: what consent for that zone alone needs to know.
        required: The rig is not worth recording without this device: refuse to start when it is missing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    personal: bool | None = None
    zone: str = Field(default="", pattern=f"^({ZONE_PATTERN})?$")
    required: bool = True


@dataclass(frozen=True, slots=True)
class Seen:
    """A device that is plugged in or answers.

    Attributes:
        name: What it calls itself.
        options: What leads to it, as its entry in the rig file says it.
    """

    name: str
    options: Mapping[str, str]


ConfigT = TypeVar("ConfigT", bound=DriverConfig)


@dataclass(frozen=True, slots=True)
class DriverContext:
    """What the host process gives a driver.

    Attributes:
        name: The device's name in the rig file; stream names begin with it.
        clock: Take arrival stamps from here when the kernel gives none.
        run_dir: Private folder (mode 0700) of this recording session; simulators write their truth here.
    """

    name: str
    host_id: str
    clock: Clock
    run_dir: Path


class Driver(ABC, Generic[ConfigT]):
    """A device with one or several streams, e.g. a LiDAR and its IMU.

    The host calls ``open`` once, ``read`` in a loop, ``close`` always (also after a failed ``open``). A
    driver that fails raises ``DeviceError``; its host process ends and is restarted with backoff.

    Attributes:
        config_type: Validated from the rig file before any process starts.
        modalities: What its streams are, as far as that is known before it is opened; whoever records is told before
            which devices have no grant.
        blocks: Wait for credit instead of dropping; only sensible for recordings that can wait.
        niceness: How far its host process steps back behind others; a device that cannot wait has 0.
        timeline: The host clock of the arrival stamps; None = this machine's, now.
        first_seq: Where the numbers of a stream begin, if not at 0 (a recording from the middle of a session).
    """

    config_type: ClassVar[type[DriverConfig]]
    modalities: ClassVar[tuple[Modality, ...]] = ()
    blocks: ClassVar[bool] = False
    niceness: ClassVar[int] = 0
    timeline: Timeline | None = None
    first_seq: Mapping[str, int] = MappingProxyType({})

    def __init__(self, config: ConfigT, context: DriverContext) -> None:
        self.config = config
        self.context = context

    @property
    def codec(self) -> str | None:
        """The codec that the device's own options ask for; its ``codec`` key in the rig file goes before it."""
        return None

    @classmethod
    def check(cls, config: Any) -> None:
        """Raise ``DeviceError`` or ``ConfigError`` if the device is plainly missing; cheap, opens nothing."""

    @classmethod
    def discover(cls) -> Sequence[Seen]:
        """Return what is there of this family; opens no device, takes a second at most, raises nothing."""
        return ()

    @abstractmethod
    def open(self) -> Sequence[StreamInfo]:
        """Open the device, apply settings, read them back, and return its streams.

        Raises:
            DeviceError: If the device is missing or did not take a setting; names both values.
        """

    @abstractmethod
    def read(self, timeout_s: float) -> Sequence[Frame | Loss]:
        """Return what has arrived, in order per stream; empty after ``timeout_s`` without data.

        Raises:
            DeviceError: If the device is gone.
            EndOfStreamError: If a finite source is exhausted.
        """

    def ask_key_frame(self, stream: str) -> None:
        """Hear that a packet of a compressed video stream was lost; ask the device for a key frame if it can."""

    @abstractmethod
    def close(self) -> None:
        """Release the device; safe to call twice and after a failed ``open``."""
