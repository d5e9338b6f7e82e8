"""What a session is to record, and what its processes are told."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from sensorium.sync.clocks.triggered import TriggerSettings
from sensorium.sync.clocks.watch_settings import WatchSettings
from sensorium.sync.episode.facts import SessionFacts
from sensorium.sync.recording.judged import JudgedWindow
from sensorium.sync.recording.press import PauseSettings


class RecorderSettings(BaseModel):
    """How much memory frames may take on their way to the disk, and how much a crash may cost.

    Attributes:
        memory_mb: Bytes under way, of all devices together; None = the larger of 256 MB and one second of the
            declared rates, at most a quarter of the machine's memory.
        batch_ms: Small samples travel in blocks that no sample waits longer than this for.
        flush_s: A killed recorder loses at most this much of the open episode.
        sync_s: A power cut loses at most this much, on a disk that keeps up; else the manifest says how much.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    memory_mb: float | None = Field(default=None, gt=0)
    batch_ms: float = Field(default=10.0, ge=0, le=1000)
    flush_s: float = Field(default=1.0, gt=0, le=60)
    sync_s: float = Field(default=1.0, gt=0, le=3600)


_GB = 1_000_000_000


class DiskSettings(BaseModel):
    """How much of the disk the spool may take.

    Attributes:
        quota_gb: Recording stops once the spool holds so much; None = as much as the disk has.
        reserve_gb: The uploader evicts what the store holds until so much can be recorded; None = a tenth of the
            quota, and without a quota nothing is evicted.
        min_free_gb: Recording stops once the disk has less than this.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    quota_gb: float | None = Field(default=None, gt=0)
    reserve_gb: float | None = Field(default=None, ge=0)
    min_free_gb: float = Field(default=(64 << 20) / _GB, gt=0)

    @property
    def quota_bytes(self) -> int | None:
        """The quota in bytes."""
        return None if self.quota_gb is None else round(self.quota_gb * _GB)

    @property
    def reserve_bytes(self) -> int:
        """What the uploader keeps free for recording; 0 = it evicts nothing."""
        tenth_gb = 0.0 if self.quota_gb is None else self.quota_gb / 10
        reserve_gb = tenth_gb if self.reserve_gb is None else self.reserve_gb
        return round(reserve_gb * _GB)

    @property
    def min_free_bytes(self) -> int:
        """What stays free in any case."""
        return round(self.min_free_gb * _GB)


class ThinkingSettings(BaseModel):
    """How much clock estimation, alignment and quality may cost.

    Attributes:
        cpu_share: Of one core.
        over_s: The share is held over this long.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cpu_share: float = Field(default=0.5, gt=0, le=1)
    over_s: float = Field(default=10.0, gt=0)


class SessionPlan(BaseModel):
    """What a session records beyond its devices.

    Attributes:
        despite_calibration: Record although a check failed before; failed checks of this session only warn.
        checked_at_start: What was judged before the session began; it belongs to every episode of it.
        reference: Stream whose frames are the ticks of alignment; None = chosen from what is there.
        pause: A switch that pauses while it is pressed.
        limitations: Sentences that hold for every episode of the session.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    facts: SessionFacts = SessionFacts()
    max_s: float | None = None
    max_bytes: int | None = None
    reference: str | None = None
    tolerance_ns: int = Field(default=10_000_000, gt=0)
    start: Literal["immediately", "manual"] = "immediately"
    calibration: Path | None = None
    on_failed_check: Literal["warn", "split", "stop"] = "warn"
    despite_calibration: bool = False
    checked_at_start: tuple[JudgedWindow, ...] = ()
    limitations: tuple[str, ...] = ()
    clocks: WatchSettings = WatchSettings()
    triggers: tuple[TriggerSettings, ...] = ()
    recorder: RecorderSettings = RecorderSettings()
    disk: DiskSettings = DiskSettings()
    pause: PauseSettings | None = None
    thinking: ThinkingSettings = ThinkingSettings()


class SyncSpec(SessionPlan):
    """The plan, and where the processes of the session meet; written by the supervisor as JSON.

    Attributes:
        devices: Names that must declare themselves before anything is recorded (or 20 s pass).
        bus_secret: Of which the drivers' tokens are made; "" = none is asked for, where all is one process.
    """

    spool: Path
    run_dir: Path
    bus_endpoint: str
    control_endpoint: str
    notes_endpoint: str
    sets_endpoint: str
    live_endpoint: str
    host_id: str
    devices: tuple[str, ...]
    consent: Path
    bus_secret: str = ""
