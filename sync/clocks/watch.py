"""Everything that watches clocks beside the streams: the host's own, PTP, remote nodes. One object to poll."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat

from sensorium.errors import ConfigError, DeviceError
from sensorium.sync.clocks.chrony import ChronyMonitor
from sensorium.sync.clocks.host_base import HostBase
from sensorium.sync.clocks.probe import ProbeClient, load_key
from sensorium.sync.clocks.ptp import PtpMonitor, PtpPolicy, PtpStatus, PtpTracker
from sensorium.sync.clocks.ptp_management import PtpClient
from sensorium.sync.clocks.remote import RemoteClock
from sensorium.timebase import BaseReading, Clock
from sensorium.verdict import Status, Verdict


class PtpSettings(BaseModel):
    """How to ask ptp4l, and when its clock counts as locked.

    Attributes:
        socket: Of the daemon; None = where linuxptp puts it.
        free_running: ptp4l only measures (its own ``free_running 1``).
        master: This host is the master that its devices follow.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    socket: Path | None = None
    domain: int = Field(default=0, ge=0, le=255)
    transport_specific: int = Field(default=0, ge=0, le=15)
    free_running: bool = False
    master: bool = False
    offset_limit_us: PositiveFloat = 100.0
    holdover_ppm: NonNegativeFloat = 10.0


class ChronySettings(BaseModel):
    """How well chronyd must know the time: the fallback for UTC where there is no PTP."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit_us: PositiveFloat = 10_000.0


class NodeSettings(BaseModel):
    """A remote node that answers probes, and the file of the key that both share."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    host: str
    port: int = Field(ge=1, le=65535)
    key: Path
    limit_us: PositiveFloat = 1000.0


class WatchSettings(BaseModel):
    """What to watch beside the host's own clocks; nothing by default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ptp: PtpSettings | None = None
    chrony: ChronySettings | None = None
    nodes: tuple[NodeSettings, ...] = ()


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """What happened to a clock; ``subject`` is the host, ``ptp`` or a node's name."""

    subject: str
    detail: str


class ClockWatch:
    """Polls all clocks that are no stream. :meth:`step` never waits."""

    def __init__(self, host_id: str, settings: WatchSettings, clock: Clock) -> None:
        """Open what ``settings`` name.

        Raises:
            ConfigError: If a key cannot be used.
            DeviceError: If a node's name is unknown.
        """
        self.base = HostBase()
        self.ptp_status: PtpStatus | None = None
        self.nodes: dict[str, RemoteClock] = {}
        self._host_id = host_id
        self._monitor = None if settings.ptp is None else _monitor(host_id, settings.ptp, clock)
        self._chrony: ChronyMonitor | None = None
        self._chrony_status: Status | None = None
        if settings.chrony is not None:
            self._chrony = ChronyMonitor(host_id, clock, settings.chrony.limit_us * 1e3)
        try:
            for node in settings.nodes:
                client = ProbeClient(node.host, node.port, load_key(node.key), clock)
                self.nodes[node.name] = RemoteClock(node.name, client, clock, node.limit_us * 1e3)
        except (ConfigError, DeviceError):
            self.close()
            raise

    def step(self, reading: BaseReading | None = None) -> tuple[WatchEvent, ...]:
        """Do what is due and return what happened.

        Args:
            reading: Of the host's clocks, when one was taken (each second).
        """
        events: list[WatchEvent] = []
        if reading is not None:
            for host in self.base.update(reading):
                events.append(WatchEvent(self._host_id, f"{host.kind.value}: {host.detail}"))
        if self._monitor is not None:
            self.ptp_status = self._monitor.step() or self.ptp_status
            for ptp in self._monitor.tracker.take_events():
                events.append(WatchEvent("ptp", f"{ptp.kind.value}: {ptp.detail}"))
        if self._chrony is not None and self._chrony.step():
            judged = self._chrony.verdict
            if judged.status is not self._chrony_status:
                self._chrony_status = judged.status
                events.append(
                    WatchEvent("chrony", f"{judged.status.value}. {'; '.join(judged.reasons)}".strip())
                )
        for name, node in self.nodes.items():
            node.step()
            for change in node.take_events():
                events.append(WatchEvent(name, f"{change.kind.value}: {change.detail}"))
        return tuple(events)

    def verdicts(self) -> tuple[Verdict, ...]:
        """Return one verdict per clock, as of now."""
        found = [self.base.verdict(self._host_id)]
        if self.ptp_status is not None:
            found.append(self.ptp_status.verdict)
        elif self._monitor is not None:
            found.append(self._monitor.tracker.status(0).verdict)
        if self._chrony is not None:
            found.append(self._chrony.verdict)
        found += [node.verdict() for node in self.nodes.values()]
        return tuple(found)

    def close(self) -> None:
        """Release all sockets."""
        if self._monitor is not None:
            self._monitor.close()
        if self._chrony is not None:
            self._chrony.close()
        for node in self.nodes.values():
            node.close()


def _monitor(host_id: str, settings: PtpSettings, clock: Clock) -> PtpMonitor:
    policy = PtpPolicy(
        is_free_running=settings.free_running,
        is_master=settings.master,
        offset_limit_ns=round(settings.offset_limit_us * 1e3),
        holdover_per_ns=settings.holdover_ppm * 1e-6,
    )
    client = PtpClient(clock, settings.socket, settings.domain, settings.transport_specific)
    return PtpMonitor(client, PtpTracker(host_id, policy), clock)
